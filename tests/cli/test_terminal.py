"""Every command of the README and of docs/ on a pseudo-terminal, in the root of a clone, with its bars shown."""

import io
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pseudo_terminal
import pyte
import pytest
from doc_pages import PAGES, commands_of, yaml_of
from fixture_data import FIXTURES, facts
from rich.console import Console

import onnxshot
from onnxshot.errors import CalibrationError
from onnxshot.progress import _NAMES, PRUNING, QUANTIZING, Place, following

ROOT = Path(__file__).resolve().parents[2]
KNOWN = facts()["digits_mobile"]
MODEL = f"fixtures/{KNOWN['file']}"
CALIB, PRESET = ROOT / "fixtures/data/digits/calib", ROOT / "fixtures/data/digits/preset.yaml"
# As `python -m onnxshot`, but a bar is shown at once: these models are done within its first second.
SHOW_BARS = "import onnxshot.cli.terminal as t; t.SHOWN_AFTER = 0; from onnxshot.cli.app import entry; entry()"
# Placeholders of the pages, and what stands for them in the folder that `clone` makes.
STAND_INS = {
    **dict.fromkeys(("MODEL", "MODEL...", "M", "model.onnx", "FLOAT", "A", "a.onnx"), "model.onnx"),
    **dict.fromkeys(("CANDIDATE", "B", "b.onnx", "INT8", "FILE", "result.onnx"), "net.onnx"),
    **dict.fromkeys(("model.int8.onnx", "net.int8.onnx"), "net.onnx"),
    **dict.fromkeys(("PATH", "ENV", "old"), sys.executable),
    **dict.fromkeys(("DATA", "D", "data/"), "data"),
    "DIR": "bundle", "MANIFEST.yaml": "manifest.yaml", "RECIPE": "net.recipe.yaml", "R.yaml": "stages.yaml",
    "smollm/": "language", "texts.txt": "language/calib.txt",
    "L": "0.5", "T": "ort", "FORMAT": "onnx",
}  # fmt: skip
# Commands that a sentence names without what they need.
INCOMPLETE = (
    *("batch", "bench", "compare", "emit", "prune", "quantize", "replay", "verify"),
    *("quantize FOLDER", "calibrate --holdout 0"),
)
# Commands whose first example takes seconds of search; their other tests run them with less.
LONG = ("batch", "compress", "sensitivity")
MISSING_PACKAGE = 6  # the exit code
LASTING = {"ui": "http://"}  # what a command shows that runs until it is stopped
BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}"  # what rich draws bars with
# What stands before SHOW_BARS so that TensorRT is missing wherever the test runs.
NO_TENSORRT = "import sys; sys.modules.update(tensorrt=None, tensorrt_rtx=None); "
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _commands() -> Iterator[Any]:
    """Every command of the pages once, called after the page where it stands first.

    The first example of each command is fast, as are those that end at once because TensorRT is missing.
    """
    seen: set[str] = set()
    shown = set(LONG)
    for page in PAGES:
        for words in commands_of(page):
            text = shlex.join(words)
            if text not in seen and text not in INCOMPLETE:
                seen.add(text)
                fast = words[0] not in shown or _builds_engine(words)
                shown.add(words[0])
                marks = [] if fast else [pytest.mark.slow]
                yield pytest.param(words, id=f"{Path(page).stem}: {text[:70]}", marks=marks)


def _builds_engine(words: list[str]) -> bool:
    return any(word.endswith(".engine") for word in words)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a clone, with a model, samples and what earlier commands of the pages have made."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("onnxshot", "calibration", "fixtures"):
        (root / name).symlink_to(ROOT / name)
    shutil.copyfile(ROOT / MODEL, root / "model.onnx")
    shutil.copytree(FIXTURES / "language", root / "language")
    data = np.load(FIXTURES / KNOWN["heldout"])
    pictures = ((data["images"][:24, None, None].astype(np.float32) / 255) - data["mean"]) / data["std"]
    for part, some in {"data": slice(None), "part1": slice(12), "part2": slice(12, None)}.items():
        (root / part).mkdir()
        for number, picture in enumerate(pictures[some].astype(np.float32)):
            np.savez(root / part / f"{number:02}.npz", image=picture)
    made = onnxshot.quantize(root / "model.onnx", root / "data", output=root / "net.onnx", effort="fast")
    made.report.save(root / "r.json")
    onnxshot.bundle(made, root / "bundle", root / "data")
    for name, part in {"1.npz": "part1", "2.npz": "part2", "all.npz": "data"}.items():
        onnxshot.calibrate(root / "model.onnx", root / part, output=root / name)
    shutil.copytree(root / "bundle", root / "out" / "bundle")
    shutil.copyfile(root / "net.onnx", root / "out" / "net.int8.onnx")
    (root / "manifest.yaml").write_text(yaml_of("README.md", "models"))
    (root / "stages.yaml").write_text("stages: [{prune: {sparsity: ${sparsity:0.5}}}, {quantize: {effort: fast}}]\n")
    (root / "score.py").write_text("def top1(run):\n    return 1.0\n")
    return root


@pytest.fixture
def clone(original: Path, tmp_path: Path) -> Path:
    """A copy for one test: no command finds what another has left."""
    return shutil.copytree(original, tmp_path / "clone", symlinks=True)


@pytest.mark.parametrize("words", list(_commands()))
def test_a_command_of_the_pages_ends_well_on_a_terminal(words: list[str], clone: Path, tmp_path: Path) -> None:
    words = [STAND_INS.get(word, word) for word in words]
    if any("openvino" in word for word in words):
        pytest.importorskip("openvino")
    env = {**os.environ, "ONNXSHOT_CACHE": str(tmp_path / "cache"), "BROWSER": "true"}
    script = NO_TENSORRT + SHOW_BARS if _builds_engine(words) else SHOW_BARS
    if "out/q4.onnx" in words[1:3]:  # an earlier command of the page has made it
        onnxshot.quantize(clone / words[1], bits=4, output=clone / "out" / "q4.onnx")
    shown = pseudo_terminal.run([sys.executable, "-c", script, *words], clone, env, until=LASTING.get(words[0], ""))
    text = ESCAPES.sub("", shown.text)
    assert not re.search(r"internal error|Traceback|Warning|\bnan\b", text), text
    if _builds_engine(words):
        assert shown.code == MISSING_PACKAGE, text
        assert "pip install 'onnxshot[tensorrt]'" in " ".join(text.split())
        assert not list(clone.glob("*.engine"))
        return
    assert shown.code == 0, text
    if "--json" in words:
        assert json.loads(text)["input"] == words[1]
        assert BAR not in shown.text
    elif words[0] in ("quantize", "prune", "compress") and "--calib" in words and "dynamic" not in words:
        assert BAR in shown.text, "no bar was shown"
    drawn = [ESCAPES.sub("", line) for line in re.split(r"[\r\n]|\x1b\[1A|\x1b\[2K", shown.text) if BAR in line]
    assert [line for line in drawn if len(line.rstrip()) > pseudo_terminal.COLUMNS] == []


# Stages with and without counts, one within another, a name that is too long, and what is printed meanwhile.
LINES = """
import sys, time, onnxshot.cli.terminal as t
from onnxshot.progress import doing
t.SHOWN_AFTER = 0.05
with t.progress(True, "reading") as show:
    time.sleep(0.4)
    with doing("try"):
        show("weights and all else " * 9, 1, 4)
        time.sleep(0.4)
        with doing("calibrate"):
            for done in range(1, 9):
                show("calibrating", done, 8)
                t.show_text(f"printed {done}")
                time.sleep(0.08)
        print("said on stderr", file=sys.stderr)
        time.sleep(0.4)
    show("calibrating, part 1 of 12, sample 3 of 8", 3, 96)
    time.sleep(0.4)
    assert not sys.argv[1:], sys.argv[1]
print("the end")
"""


def _screens(text: str) -> tuple[list[list[str]], pyte.Screen]:
    """The lines of the terminal that are not blank, whenever some of the text has been drawn; the screen at the end."""
    screen, found = pyte.Screen(pseudo_terminal.COLUMNS, 24), []
    stream = pyte.Stream(screen)
    for some in re.split(r"(?<=\n)|(?=\x1b\[)", text):
        stream.feed(some)
        found.append([line.rstrip() for line in screen.display if line.strip()])
    return found, screen


@pytest.mark.parametrize("error", [(), ("it failed",)])
def test_one_line_tells_the_stage_and_leaves_nothing(error: tuple[str, ...], tmp_path: Path) -> None:
    shown = pseudo_terminal.run([sys.executable, "-c", LINES, *error], tmp_path, dict(os.environ))
    found, screen = _screens(shown.text)
    bars = [[line for line in lines if BAR in line] for lines in found]
    assert max(map(len, bars)) == 1
    told = {re.sub(r"[^ -~]+", "#", line) for lines in bars for line in lines}
    for stage in (
        r"reading +# 0:00", r"trying candidates +# 0:0\d", r"calibrating +# [1-7]/8 0:0\d",
        r"weights and all else [a-z ]+# # 1/4 0:0\d", r"calibrating, part 1 of 12, sample 3 of 8 #",
    ):  # fmt: skip
        assert any(re.fullmatch(stage, line) for line in told), (stage, told)
    printed = [*(f"printed {n}" for n in range(1, 9)), "said on stderr"]
    assert found[-1][:9] == printed
    assert (shown.code, found[-1][-1]) == ((1, "AssertionError: it failed") if error else (0, "the end"))
    assert error or found[-1][9:] == ["the end"]
    assert not screen.cursor.hidden


def test_what_is_interrupted_leaves_a_clean_terminal(tmp_path: Path) -> None:
    shown = pseudo_terminal.run(
        [sys.executable, "-c", SHOW_BARS, "bench", str(ROOT / MODEL), "--seconds", "60"], tmp_path,
        dict(os.environ), until="timing",
    )  # fmt: skip
    found, screen = _screens(shown.text)
    assert shown.code == 130
    assert len(found[-1]) == 1, found[-1]
    assert BAR not in found[-1][0]
    assert not screen.cursor.hidden


def test_an_error_is_wrapped_at_words_and_its_hint_stands_below(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onnxshot", "quantize", str(ROOT / MODEL)]
    shown = pseudo_terminal.run(command, tmp_path, {**os.environ, "PYTHONPATH": str(ROOT)})
    _, screen = _screens(shown.text)
    first, *hint = [line.rstrip() for line in screen.display if line.strip()]
    assert (shown.code, first) == (5, "error: calibration data is needed and none was given")
    assert hint[0].startswith("  hint: give --calib a folder of pictures")
    assert all(line.startswith("    ") for line in hint[1:])
    told = " ".join(line.strip() for line in hint).removeprefix("hint: ")
    with pytest.raises(CalibrationError) as caught:
        onnxshot.quantize(ROOT / MODEL)
    assert told.split()[-3:] == caught.value.hint.split()[-3:], "no word is broken or lost"


def test_what_is_left_of_a_step_follows_from_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxshot.cli import progress_line

    clock = [0.0]
    monkeypatch.setattr(progress_line.time, "monotonic", lambda: clock[0])
    line, seen = progress_line.ProgressLine("working"), []
    for second, done in ((3600.0, 10), (3601.0, 20), (3605.0, 60), (3606.0, 60), (3606.5, 5), (3608.5, 105)):
        clock[0] = second
        line.show("trying candidates", done, 110)
        console = Console(width=80, file=io.StringIO())
        console.print(line)
        seen.append(console.file.getvalue().partition(f"{done}/110 ")[2].strip())  # type: ignore[attr-defined]
    # 10 in a second, then 50 in 5 s or 6 s; then a new walk of 100 in 2 s.
    assert seen == ["1:00:00", "1:00:01", "1:00:05, about 5 s left", "1:00:06, about 6 s left", "1:00:06", "1:00:08"]


STAGED: dict[str, tuple[Any, Any]] = {
    "quantize": (QUANTIZING, lambda model, **how: onnxshot.quantize(model, CALIB, **how)),
    "tune": (QUANTIZING, lambda model, **how: onnxshot.tune(model, CALIB, goal=onnxshot.Goal(min_sqnr=50), **how)),
    "prune": (PRUNING, lambda model, **how: onnxshot.prune(model, CALIB, sparsity=0.5, **how)),
    "channels": (PRUNING, lambda model, **how: onnxshot.shrink(model, CALIB, target_flops=0.7, **how)),
}


@pytest.mark.parametrize("verb", STAGED)
def test_every_stage_has_a_place_and_none_goes_back(verb: str) -> None:
    stages, run = STAGED[verb]
    place, told = Place(stages), []

    def enter(name: str | None) -> None:
        place.enter(name or "")
        told.append((name, str(place)))

    known = {_NAMES[stage] for row in stages for stage in row}
    settings = onnxshot.Settings(samples=8, threads=1, use_cache=False, bench_seconds=0.02, search_seconds=1)
    with following(enter):
        run(ROOT / MODEL, preset=str(PRESET), settings=settings)
    assert {name for name, _ in told if name} <= known
    numbers = [int(at.partition("/")[0]) for _, at in told]
    assert numbers == sorted(numbers)
    assert numbers[-1] >= len(stages) - 1
    assert all(at.endswith(f"/{len(stages)}") for _, at in told)
