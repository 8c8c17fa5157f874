"""Messages speak Python to who calls the API, and options to who typed a command."""

import ast
import dataclasses
import functools
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from handmade.core import model, weight

import onnxshot
from onnxshot import wording
from onnxshot.errors import OnnxshotError
from onnxshot.wording import OWNERS, TOKEN, on_command_line, option, worded

ROOT = Path(__file__).parents[2]
TABLE = re.findall(r"^    (\[\[.*?\]\])  +(\S.*?)  +(\S.*)$", inspect.getdoc(wording) or "", re.MULTILINE)
FOREIGN = re.compile(r"optimum-cli|tf2onnx|paddle2onnx|--query-gpu|--format=csv|--output model.onnx")
OF_COMMANDS_ALONE = ("onnxshot/cli/", "onnxshot/early_signals.py", "onnxshot/ui/", "onnxshot/report/trackers/send.py")
SAMPLES = [{"x": np.random.default_rng(i).normal(size=(2, 64)).astype(np.float32)} for i in range(4)]
QUIET = onnxshot.Settings(threads=1, use_cache=False, bench_seconds=0.01, search_seconds=0.0)


@functools.cache
def texts() -> list[tuple[str, str]]:
    """All texts of the package that are no docstrings: (place, text)."""
    return list(read_texts())


def read_texts() -> Iterator[tuple[str, str]]:
    for path in (*(ROOT / "onnxshot").rglob("*.py"), *(ROOT / "calibration").rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place.startswith(OF_COMMANDS_ALONE):
            continue
        source = path.read_text("utf-8")
        if not re.search(r"--[a-z]|\[\[|onnxshot [a-z]| -o\b|command", source):
            continue
        tree = ast.parse(source)
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "VALUE" for part in node.values)
                yield place, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
                yield place, node.value


def tokens() -> set[str]:
    return {token for place, text in texts() for token in TOKEN.findall(text) if place != "onnxshot/wording.py"}


@pytest.mark.parametrize(("token", "python", "command"), TABLE)
def test_the_table_of_tokens_is_true(token: str, python: str, command: str) -> None:
    assert len(TABLE) == 8
    assert worded(f"give {token}, or") == f"give {python}, or"
    with on_command_line():
        assert worded(f"give {token}, or") == f"give {command}, or"


def test_other_brackets_stay() -> None:
    for text in ("shape [[1, 2], [3, 4]]", "[[]]", "x[[0]]", "a [[ b ]]"):
        assert worded(text) == text


def test_no_text_names_an_option_of_the_command_line_but_by_a_token() -> None:
    bare = [(place, TOKEN.sub("", text)) for place, text in texts() if place != "onnxshot/wording.py"]
    found = [(p, t) for p, t in bare if re.search(r"(^|[\s(;\"'`])--[a-z]", t) and not FOREIGN.search(t)]
    assert found == []


def test_no_text_names_a_command_but_by_a_token() -> None:
    verbs = "|".join(name for name in onnxshot.__all__ if name.islower())
    command = re.compile(rf"\bonnxshot ({verbs})\b|with -o\b|same command")
    bare = [(place, TOKEN.sub("", text)) for place, text in texts()]
    heads = "makes the same bytes again"  # the first line of a record file, and the format of bundles
    assert [(p, t) for p, t in bare if command.search(t) and heads not in t and t != "onnxshot bundle"] == []


def test_tokens_name_what_exists() -> None:
    commands = typer.main.get_command(importlib_app())
    flags = {flag for command in commands.commands.values() for p in command.params  # type: ignore[attr-defined]
             for flag in (*p.opts, *p.secondary_opts)}  # fmt: skip
    verbs = [getattr(onnxshot, name) for name in onnxshot.__all__ if inspect.isfunction(getattr(onnxshot, name))]
    names = {name for verb in verbs for name in inspect.signature(verb).parameters}
    names |= {"max_memory", *inspect.signature(onnxshot.batch.run).parameters}
    classes = {"Settings": onnxshot.Settings, "Goal": onnxshot.Goal, "EmitOptions": onnxshot.EmitOptions,
               "TextPreset": onnxshot.TextPreset}  # fmt: skip
    for name, owner in OWNERS.items():
        assert name in {field.name for field in dataclasses.fields(classes[owner])}
    asked = {word for token in tokens() if "|" not in token for word in token.split()}
    assert len(asked) > 40
    for word in asked:
        name, _, value = word.partition("=")
        if name.islower() and name not in {verb.__name__ for verb in verbs}:
            assert name in OWNERS or name in names, word
            with on_command_line():
                assert option(name, value or None).split()[0] in flags, word


def importlib_app() -> typer.Typer:
    from onnxshot.cli.app import app

    return app


def net() -> onnx.ModelProto:
    text = "g (float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    return model(text, {"w": weight(64, 64), "v": weight(64, 64, seed=1)})


BAD: dict[str, Callable[[onnx.ModelProto, onnx.ModelProto], object]] = {
    "no samples": lambda m, q: onnxshot.quantize(m),
    "quantized already": lambda m, q: onnxshot.quantize(q, SAMPLES),
    "no such target": lambda m, q: onnxshot.quantize(m, SAMPLES, target="abacus"),  # type: ignore[arg-type]
    "no such effort": lambda m, q: onnxshot.quantize(m, SAMPLES, effort="bst"),  # type: ignore[arg-type]
    "no such option": lambda m, q: onnxshot.quantize(m, SAMPLES, efort="best"),  # type: ignore[call-arg]
    "types of weights": lambda m, q: onnxshot.quantize(m, SAMPLES, weight_type="int4"),
    "no dynamic": lambda m, q: onnxshot.quantize(m, SAMPLES, target="tensorrt", mode="dynamic"),
    "blocks": lambda m, q: onnxshot.quantize(m, target="tensorrt", mode="weights", bits=4, asymmetric=True),
    "bits and types": lambda m, q: onnxshot.quantize(m, mode="weights", bits=4, weight_type="int8"),
    "half": lambda m, q: onnxshot.quantize(m, SAMPLES, precision="bf16"),
    "auto": lambda m, q: onnxshot.quantize(m, mode="auto", bits=4),
    "both": lambda m, q: onnxshot.quantize(q, SAMPLES, complete=True, settings=onnxshot.Settings(requantize=True)),
    "no such file": lambda m, q: onnxshot.quantize(m, "nowhere/"),
    "no statistics": lambda m, q: onnxshot.quantize(m, stats="nowhere.npz"),
    "no such node": lambda m, q: onnxshot.quantize(m, SAMPLES, exclude=["head"]),
    "random goal": lambda m, q: onnxshot.tune(m, "random", onnxshot.Goal(min_sqnr=30)),
    "perplexity": lambda m, q: onnxshot.tune(m, SAMPLES, onnxshot.Goal(max_perplexity_rise=0.1)),
    "nothing to measure on": lambda m, q: onnxshot.sensitivity(m, None),
    "inspect auto": lambda m, q: onnxshot.inspect(m, recipe=onnxshot.Recipe(mode="auto")),
    "raw pixels": lambda m, q: onnxshot.inspect(m, calib=[{"x": np.zeros((2, 64, 3), np.uint8)}]),
    "scope without samples": lambda m, q: onnxshot.prune(m, sparsity=0.5, scope="auto"),
    "no such layer": lambda m, q: onnxshot.prune(m, sparsity=0.5, layers={"Relu": 0.1}),
    "nothing to learn from": lambda m, q: onnxshot.compress(m, None, sparsity=0.5),
    "no bundle": lambda m, q: onnxshot.verify("nowhere"),
    "no record": lambda m, q: onnxshot.replay(m, "nowhere.yaml", "out.onnx"),
}  # fmt: skip


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    return onnxshot.quantize(net(), SAMPLES, settings=QUIET, effort="fast").model_proto


@pytest.mark.parametrize("call", BAD)
def test_errors_of_the_api_speak_python(call: str, quantized: onnx.ModelProto) -> None:
    with pytest.raises(OnnxshotError) as caught:
        BAD[call](net(), quantized)
    assert not re.search(r"(^|[ (])--[a-z]|\[\[|\]\]", str(caught.value))


GOOD: dict[str, Callable[[onnx.ModelProto], Any]] = {
    "random": lambda m: onnxshot.quantize(m, "random", settings=QUIET, effort="fast").report.to_dict(),
    "weights": lambda m: onnxshot.quantize(m, mode="weights", settings=QUIET).report.to_dict(),
    "half": lambda m: onnxshot.quantize(m, precision="fp16", settings=QUIET).report.to_dict(),
    "inspect": lambda m: onnxshot.inspect(m, recipe=onnxshot.Recipe(target="portable")).to_text(),
    "prune": lambda m: onnxshot.prune(m, sparsity=0.9, settings=QUIET).report.to_dict(),
    "pruned": lambda m: onnxshot.prune(m, SAMPLES, sparsity=0.9, settings=QUIET).report.to_dict(),
    "shrink": lambda m: onnxshot.shrink(m, target_params=0.5, settings=QUIET).report.to_dict(),
    "compare": lambda m: onnxshot.compare(m, onnxshot.prune(m, sparsity=0.9, settings=QUIET), SAMPLES).to_dict(),
    "tune": lambda m: onnxshot.tune(m, SAMPLES, onnxshot.Goal(min_sqnr=99), settings=QUIET).report.to_dict(),
}  # fmt: skip


@pytest.mark.parametrize("call", GOOD)
def test_reports_of_the_api_speak_python_and_those_of_commands_options(call: str) -> None:
    python = str(GOOD[call](net()))
    with on_command_line():
        command = str(GOOD[call](net()))
    assert not re.search(r"(^|[ ('\"])--[a-z]|\[\[[a-z]", python)
    assert re.search(r"(^|[ ('\"])--[a-z]", command) or call in ("inspect", "weights"), "the call says nothing"
    assert not re.search(r"\[\[[a-z]", command)


def test_a_command_and_its_workers_are_worded_as_options(quantized: onnx.ModelProto, tmp_path: Path) -> None:
    from onnxshot.cli.app import app
    from onnxshot.source_tree import environment

    onnx.save(quantized, tmp_path / "q.onnx")
    with pytest.raises(OnnxshotError, match="quantize with --requantize"):
        app(["quantize", str(tmp_path / "q.onnx"), "--calib", "random"], standalone_mode=False)
    code = "from onnxshot.wording import worded; print(worded('[[effort=best]]'))"
    with on_command_line():
        child = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert child.stdout == "--effort best\n"
    assert wording.VARIABLE not in os.environ and worded("[[effort=best]]") == 'effort="best"'
