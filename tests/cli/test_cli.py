"""The command line as scripts depend on it: what is printed where, names of files, exit codes."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import fixture
from handmade import HANDMADE
from planned_models import initializers

import onnxshot
from onnxshot.cli import app as cli

QUICK = ["--threads", "1"]


class Ran:
    """What a command gave: exit code, stdout, stderr."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        """The one JSON object that is all of stdout."""
        assert self.code == 0, self.err
        (line,) = self.out.splitlines()
        return json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))

    @property
    def error(self) -> str:
        """The one line that is all of stderr, where nothing is on stdout."""
        assert self.out == ""
        return self.line

    @property
    def line(self) -> str:
        """The one line that is all of stderr."""
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line

    @property
    def json_error(self) -> Any:
        """The error in the one JSON object that is all of stdout."""
        (line,) = self.out.splitlines()
        error = json.loads(line)["error"]
        assert error["code"] == self.code
        return error


class Shell:
    """Runs commands in this process, from inside a folder that holds net.onnx and calib.npz."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.folder, self.capsys, self.patch = folder, capsys, patch

    def __call__(self, *args: object) -> Ran:
        self.patch.setattr(sys, "argv", ["onnxshot", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self.capsys.readouterr()
        return Ran(code, out, err)


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    case = HANDMADE["resnet_block"]()
    onnx.save(case.model, str(tmp_path / "net.onnx"))
    np.savez(tmp_path / "calib.npz", x=np.stack([f["x"] for f in case.feeds]))
    monkeypatch.chdir(tmp_path)
    begin = inspect.unwrap(onnxshot.Settings.__init__)
    monkeypatch.setattr(begin, "__defaults__", _quick(begin.__defaults__))
    return Shell(tmp_path, capsys, monkeypatch)


def _quick(defaults: tuple[object, ...] | None) -> tuple[object, ...]:
    """The defaults of Settings, with a hundredth of a second to time each model."""
    assert defaults is not None
    assert 0.5 in defaults
    return tuple(0.01 if value == 0.5 else value for value in defaults)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---------------------------------------------------------------------- quantize


def test_quantize_writes_beside_the_input_and_prints_to_stderr_only(shell: Shell) -> None:
    ran = shell("quantize", "net.onnx", "--calib", "calib.npz", *QUICK)
    assert ran.code == 0, ran.err
    assert ran.out == ""
    assert names(shell.folder) == ["calib.npz", "net.int8.onnx", "net.int8.recipe.yaml", "net.onnx"]
    assert "net.int8.onnx" in ran.err
    assert "SQNR" in ran.err
    assert ran.err.splitlines()[-1].startswith("next: ")
    assert len(ran.err.splitlines()) < 25


def test_quantize_json_is_one_object(shell: Shell) -> None:
    ran = shell("quantize", "net.onnx", "--calib", "calib.npz", "-o", "out/small.onnx", "--json", *QUICK)
    values = ran.json
    assert ran.err == ""
    assert values["outputs"][0]["path"] == "out/small.onnx"
    assert values["outputs"][0]["bytes"] == (shell.folder / "out" / "small.onnx").stat().st_size
    assert values["recipe"]["mode"] == "static"
    assert 20 < values["sqnr_db"] < 60


def test_a_folder_is_quantized_into_a_folder(shell: Shell) -> None:
    (shell.folder / "net" / "onnx").mkdir(parents=True)
    onnx.save(HANDMADE["resnet_block"]().model, "net/onnx/model.onnx")
    (shell.folder / "net" / "config.json").write_text("{}")
    ran = shell("quantize", "net", "--calib", "calib.npz", *QUICK)
    assert ran.code == 0, ran.err
    assert ran.out == ""
    assert names(shell.folder / "net-q8" / "onnx") == ["model_quantized.onnx", "model_quantized.recipe.yaml"]
    assert "SQNR" in ran.err
    assert ran.err.splitlines()[-1] == "net-q8: 1 model, 1 file copied beside it"
    ran = shell("quantize", "net", "--calib", "calib.npz", "-o", "other", "--report", "r.html", "--json", *QUICK)
    values = ran.json
    assert values["outputs"][0]["path"] == "other/onnx/model_quantized.onnx"
    assert (shell.folder / "r.html").is_file()
    refused = shell("quantize", "net", "--calib", "calib.npz", "--emit", "openvino", *QUICK)
    assert (refused.code, "--emit is for one file" in refused.error) == (2, True)


def test_an_exact_result_is_still_json(shell: Shell) -> None:
    """Nothing differs: the ratio of signal to noise is infinite, which JSON cannot hold."""
    onnx.save(HANDMADE["no_weights"]().model, "plain.onnx")
    feed = {i.name: np.ones([d.dim_value or 1 for d in i.type.tensor_type.shape.dim], np.float32)
            for i in onnx.load("plain.onnx").graph.input}  # fmt: skip
    np.savez("ones.npz", **feed)
    ran = shell("quantize", "plain.onnx", "--mode", "weights", "--calib", "ones.npz", "--json", *QUICK)
    assert ran.json["sqnr_db"] == 200
    assert ran.json["verdict"]["reasons"][0] == "nothing was quantized"


def test_options_reach_the_recipe(shell: Shell) -> None:
    ran = shell(
        "quantize", "net.onnx", "--calib", "calib.npz", "--target", "ort-avx2", "--method", "minmax", "--per-tensor",
        "--exclude", "c1", "--exclude", "Softm?x*", "--samples", "4", "--no-verify", "--no-cache", "--json",
    )  # fmt: skip
    assert ran.code == 2
    assert "exclude pattern 'Softm?x*'" in ran.json_error["message"]
    ran = shell(
        "quantize", "net.onnx", "--calib", "calib.npz", "--target", "ort-avx2", "--method", "minmax", "--per-tensor",
        "--exclude", "c1", "--include", "Add", "--samples", "4", "--no-verify", "--no-cache", "--json",
        "--report", "report.json", "--activation-type", "int8",
    )  # fmt: skip
    values = ran.json
    expected = {
        "target": "ort-avx2", "method": "minmax", "per_channel": False, "exclude": ["c1"], "include": ["Add"],
        "activation_type": "int8",
    }  # fmt: skip
    assert expected.items() <= values["recipe"].items()
    assert values["sqnr_db"] is None
    assert values["samples"]["calibration"] == 3
    assert json.loads(Path("report.json").read_text()) == values


def test_arguments_of_a_recipe_are_set(shell: Shell) -> None:
    Path("r.yaml").write_text("mode: ${mode:static}\nformat: qdq\n")
    ran = shell("quantize", "net.onnx", "--recipe", "r.yaml", "--set", "mode=weights", "--json", *QUICK)
    assert ran.json["recipe"]["mode"] == "weights"
    ran = shell("quantize", "net.onnx", "--set", "mode=weights", *QUICK)
    assert ran.code == 2
    assert "--set is given without --recipe" in ran.error
    Path("two.yaml").write_text("stages: [prune: {sparsity: 0.5}, quantize]")
    assert "stages[1] is 'quantize'" in shell("quantize", "net.onnx", "--recipe", "two.yaml", *QUICK).error
    Path("two.yaml").write_text("stages: [prune: {sparsity: 0.5}, quantize: {}]")
    assert "run them with onnxshot compress" in shell("quantize", "net.onnx", "--recipe", "two.yaml", *QUICK).error


def test_a_report_that_cannot_be_written_is_an_error_of_its_own(shell: Shell) -> None:
    Path("taken").mkdir()
    ran = shell("quantize", "net.onnx", "--mode", "weights", "--no-verify", "--report", "taken")
    assert ran.code == 2
    assert "the report taken is a folder" in ran.error
    assert names(shell.folder) == ["calib.npz", "net.onnx", "taken"], "it is told before the work"
    assert shell("quantize", "net.onnx", "--mode", "weights", "--no-verify", "--report", "new/r.json").code == 0
    assert json.loads(Path("new/r.json").read_text())["input"] == "net.onnx"


@pytest.mark.parametrize("mode", ["weights", "dynamic"])
def test_modes_without_data(shell: Shell, mode: str) -> None:
    ran = shell("quantize", "net.onnx", "--mode", mode, "--format", "qdq", *QUICK)
    assert ran.code == 0, ran.err
    given, made = (onnx.load(name) for name in ("net.onnx", "net.int8.onnx"))
    floats, stored = initializers(given), initializers(made)
    convs = [[n for n in proto.graph.node if n.op_type == "Conv"] for proto in (given, made)]
    assert len(convs[1]) == len(convs[0]) == 2
    assert "DynamicQuantizeLinear" not in {n.op_type for n in made.graph.node}, "a Conv computes in float in both modes"
    by_output = {n.output[0]: n for n in made.graph.node}
    for before, after in zip(*convs, strict=True):
        product = by_output[after.input[1]]
        whole, scale = stored[by_output[product.input[0]].input[0]], stored[product.input[1]]
        assert (product.op_type, whole.dtype.name, scale.dtype.name) == ("Mul", "int8", "float32")
        weight = floats[before.input[1]]
        assert before.input[1] not in stored, "in 8 bits alone"
        assert np.allclose(scale.ravel(), np.abs(weight).max(axis=(1, 2, 3)) / 127, rtol=1e-5), "one for each channel"
        assert (np.abs(whole * scale - weight) <= 0.5001 * scale).all()


def test_qoperator(shell: Shell) -> None:
    ran = shell("quantize", "net.onnx", "--calib", "calib.npz", "--format", "qoperator", "--json", *QUICK)
    assert ran.json["recipe"]["format"] == "qoperator"
    assert [n.op_type for n in onnx.load("net.int8.onnx").graph.node].count("QLinearConv") == 2


def test_requantize(shell: Shell) -> None:
    shell("quantize", "net.onnx", "--calib", "calib.npz", "--no-verify")
    ran = shell("quantize", "net.int8.onnx", "--calib", "calib.npz")
    assert ran.code == 2
    assert "quantized already" in ran.error
    assert "--requantize" in ran.error
    ran = shell("quantize", "net.int8.onnx", "--calib", "calib.npz", "--requantize", "--no-verify")
    assert ran.code == 0, ran.err
    assert Path("net.int8.int8.onnx").exists()


def test_complete(shell: Shell) -> None:
    shell("quantize", "net.onnx", "--calib", "calib.npz", "--no-verify", "--effort", "fast")
    ran = shell("quantize", "net.int8.onnx", "--complete", "--no-verify", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["recipe"]["complete"] is True
    assert any("0 scales were completed" in note for note in ran.json["notes"])
    again = shell("quantize", "net.int8.onnx", "--complete", "--requantize")
    assert again.code == 2


def test_require_faster_exits_3_with_the_file_written(shell: Shell) -> None:
    def slower(report: Any, *_: object) -> None:
        report.latency = {"float_ms": 1.0, "ms": 2.0, "speedup": 0.5}

    shell.patch.setattr(onnxshot.verification.proof, "record_latency", slower)
    ran = shell("quantize", "net.onnx", "--calib", "calib.npz", "--require-faster", *QUICK)
    assert ran.code == 3
    assert Path("net.int8.onnx").exists()
    assert ran.err.splitlines()[-1].startswith("error: net.int8.onnx was written, but it is slower")
    assert "slower than float" in ran.err
    ran = shell("quantize", "net.onnx", "--calib", "calib.npz", "--require-faster", "--json", *QUICK)
    assert ran.code == 3
    assert json.loads(ran.out)["latency"]["speedup"] == 0.5
    assert ran.json_error["kind"] == "GoalMissed"
    assert "--require-faster" in ran.json_error["hint"]
    ran = shell("quantize", "net.onnx", "--calib", "calib.npz", "--require-faster", "--no-verify")
    assert ran.code == 3
    assert "not measured" in ran.err


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["quantize", "net.onnx", "--calib", "calib.npz", "--mode", "fast"], 2, "static, dynamic, weights"),
        (["quantize", "net.onnx", "--calib", "calib.npz", "--method", "best"], 2, "entropy"),
        (["quantize", "net.onnx", "--calib", "calib.npz", "--target", "mars"], 2, "ort"),
        (["quantize", "net.onnx", "--calib", "calib.npz", "-o", "net.onnx"], 2, "input itself"),
        (["quantize", "net.onnx", "--calib", "calib.npz", "--samples", "few"], 2, "all"),
        (["quantize", "missing.onnx", "--calib", "calib.npz"], 4, "missing.onnx"),
        (["quantize", "calib.npz", "--calib", "calib.npz"], 4, "calib.npz"),
        (["quantize", "net.onnx"], 5, "--calib"),
        (["quantize", "net.onnx", "--calib", "nowhere"], 5, "nowhere"),
        (["quantize", "net.onnx", "--calib", "calib.npz", "--activation-type", "uint16"], 6, "16-bit"),
        (["inspect", "missing.onnx"], 4, "missing.onnx"),
        (["inspect", "net.onnx", "--exclude", "nothing"], 2, "closest"),
        (["compare", "missing.onnx", "net.onnx", "--calib", "calib.npz"], 4, "missing.onnx"),
        (["compare", "net.onnx", "missing.onnx", "--calib", "calib.npz"], 4, "missing.onnx"),
        (["compare", "net.onnx", "net.onnx"], 5, "--calib"),
        (["bench", "missing.onnx"], 4, "missing.onnx"),
        (["emit", "net.onnx", "--to", "mars"], 2, "mars"),
        (["emit", "missing.onnx"], 4, "missing.onnx"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_mistake_is_one_line_and_a_code(shell: Shell, args: list[str], code: int, words: str, as_json: bool) -> None:
    before = names(shell.folder)
    ran = shell(*args, *(["--json"] if as_json else []))
    assert ran.code == code, ran.err
    assert words in (ran.line if as_json else ran.error)
    if as_json:
        error = ran.json_error
        kind = getattr(onnxshot.errors, error["kind"])
        assert kind.exit_code == code
        assert ran.line == f"error: {kind(error['message'], error['hint'])}"
    assert names(shell.folder) == before


@pytest.mark.parametrize("args", [["quantize", ""], ["quantize", "net.onnx", "-o", ""]])
def test_an_empty_argument_is_no_folder(shell: Shell, args: list[str]) -> None:
    before = names(shell.folder)
    ran = shell(*args, "--calib", "calib.npz")
    assert (ran.code, "an argument is empty" in ran.error) == (2, True)
    assert names(shell.folder) == before


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["quantise", "net.onnx"], "No such command 'quantise' (did you mean 'quantize'? "),
        (["quantize", "net.onnx", "--targt", "ort"], "no option --targt (did you mean --target? "),
        (["prune", "net.onnx", "--bits", "4"], "no option --bits (onnxshot quantize has it; "),
        (["quantize", "net.onnx", "--min-sqnr", "loud"], "--min-sqnr is 'loud' (a number)"),
        (["bench", "net.onnx", "--threads", "0"], "--threads is '0' ("),
        (["ui", "--port", "x"], "--port is 'x' (a whole number)"),
        (["net.onnx", "--calib", "c"], "a command comes first: onnxshot quantize net.onnx --calib DATA, or"),
        (["help", "quantize"], "(type onnxshot quantize --help)"),
        (["help"], "(type onnxshot --help)"),
        (["quantize", "net.onnx", "--calib", "calib.npz", "net.onnx", "b"], "2 arguments more than it takes, the"),
        (["quantize", "net.onnx", "-o", "-"], "-o is '-' (a model goes to a file: "),
        (["quantize", "net.onnx", "--calib"], "onnxshot quantize --help lists the options"),
        (["prune", "net.onnx", "--pattern", "chanels"], "--pattern is 'chanels' (did you mean channels?)"),
        (["version"], "(type onnxshot --version)"),
        (["cache", "clean"], "onnxshot cache --help lists the commands"),
        (["quantize", "net.onnx", "--calibration", "c"], "no option --calibration (did you mean --calib? "),
        (["quantize", "net.onnx", "--effort", "bst"], "--effort is 'bst' (one of fast, balanced, best)"),
        (["quantize", "net.onnx", "--bits", "4", "--precision", "fp16"], "--bits is 4, which does not go with --"),
        (["quantize", "net.onnx", "--memory", "4"], "--memory is 4, less than 256M"),
        (["prune", "net.onnx", "--sparsity", "half"], "--sparsity is 'half' (a share, such as 50% or 0.5)"),
        (["compress", "net.onnx", "--calib", "calib.npz", "--sparsity", "150%"], "--sparsity is 1.5 ("),
    ],
)
def test_what_was_mistyped_is_told_with_what_was_meant(shell: Shell, args: list[str], line: str) -> None:
    ran = shell(*args)
    assert (ran.code, line in ran.error) == (2, True), ran.error


def test_a_name_that_begins_with_a_dash_is_told_from_an_option(shell: Shell) -> None:
    (shell.folder / "net.onnx").rename(shell.folder / "-net.onnx")
    assert "a file whose name begins with a dash is given as ./-net.onnx" in shell("inspect", "-net.onnx").error
    assert shell("inspect", "./-net.onnx").code == 0


def test_half_of_the_weights_is_50_percent(shell: Shell) -> None:
    for share in ("50%", "0.5"):
        assert shell("prune", "net.onnx", "--sparsity", share, "-o", f"{share}.onnx", *QUICK).code == 0
    first, second = (onnx.load(shell.folder / name) for name in ("50%.onnx", "0.5.onnx"))
    assert first.graph == second.graph


@pytest.mark.parametrize("args", [["quantize", "net.onnx", "--nonsense"], ["quantize"], ["fly"], ["bench"]])
def test_wrong_options_exit_2(shell: Shell, args: list[str]) -> None:
    ran = shell(*args)
    assert (ran.code, ran.out) == (2, "")
    known = args[0] if args[0] != "fly" else ""
    listed = "options" if known else "commands"
    assert f"{' '.join(filter(None, ('onnxshot', known)))} --help lists the {listed}" in ran.error
    error = shell(*args, "--json").json_error
    assert (error["code"], error["kind"]) == (2, "UsageError")
    assert "--help" in error["hint"]
    assert error["message"] in ran.error


def test_an_internal_error_is_one_line_and_code_1(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(onnxshot, "quantize", broken)
    ran = shell("quantize", "net.onnx")
    assert ran.code == 1
    assert ran.error == "error: internal error: ZeroDivisionError: division by zero; ONNXSHOT_DEBUG=1 shows where"
    assert shell("quantize", "net.onnx", "--json").json_error["kind"] == "InternalError"
    monkeypatch.setenv("ONNXSHOT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        shell("quantize", "net.onnx")


# ---------------------------------------------------------------------- the other commands


def test_version_and_help(shell: Shell) -> None:
    ran = shell("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"onnxshot {onnxshot.__version__}\n", "")
    ran = shell("--help")
    assert ran.code == 0
    for command in ("quantize", "inspect", "compare", "bench", "emit"):
        assert command in ran.out
        assert shell(command, "-h").code == 0


def test_inspect(shell: Shell) -> None:
    ran = shell("inspect", "net.onnx")
    assert (ran.code, ran.out) == (0, "")
    assert "target ort, mode static" in ran.err
    assert "of multiply-accumulates" in ran.err
    values = shell("inspect", "net.onnx", "--json", "--calib", "calib.npz").json
    assert values["int8_macs_share"] == 1.0
    assert values["ops"] == {"Conv": 2, "Relu": 2, "Add": 1}
    assert {n["how"] for n in values["nodes"]} == {"static", "float"}
    assert values["inputs"][0]["name"] == "x"
    assert names(shell.folder) == ["calib.npz", "net.onnx"]


def test_inspect_of_a_quantized_model(shell: Shell) -> None:
    onnx.save(HANDMADE["already_qdq"]().model, "done.onnx")
    assert shell("inspect", "done.onnx", "--json").json["quantized_already"] is True
    assert "quantized already" in shell("inspect", "done.onnx").err


def test_compare(shell: Shell) -> None:
    shell("quantize", "net.onnx", "--calib", "calib.npz", "--no-verify")
    values = shell("compare", "net.onnx", "net.int8.onnx", "--calib", "calib.npz", "--json", *QUICK).json
    assert 20 < values["sqnr_db"] < 60
    assert values["worst"][0]["sqnr_db"] <= values["worst"][-1]["sqnr_db"]
    assert values["samples"]["judged"] == 8
    assert "held_out" not in values["samples"], "what a candidate was made from is not known"
    ran = shell("compare", "net.onnx", "net.int8.onnx", "--calib", "calib.npz", *QUICK)
    assert (ran.code, ran.out) == (0, "")
    assert "SQNR" in ran.err


def test_an_error_of_prune_is_one_line(shell: Shell) -> None:
    ran = shell("prune", "net.onnx", "--sparsity", "0.5", "--scope", "every")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "--scope is 'every'" in ran.err


def test_bench(shell: Shell) -> None:
    args = ("bench", "net.onnx", "net.onnx", "--seconds", "0.01", *QUICK)
    rows = shell(*args, "--json").json["models"]
    assert [row["path"] for row in rows] == ["net.onnx", "net.onnx"]
    assert rows[0]["ratio"] == 1.0
    assert all(row["median_ms"] > 0 for row in rows)
    ran = shell(*args)
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.partition("not certain")[0].count("net.onnx") == 2


def test_emit(shell: Shell) -> None:
    values = shell("emit", "net.onnx", "--to", "onnx", "--json").json
    size = Path("net.normalized.onnx").stat().st_size
    assert values["input"] == "net.onnx"
    (written,) = values["outputs"]
    assert (written["path"], written["format"], written["bytes"]) == ("net.normalized.onnx", "onnx", size)
    onnx.checker.check_model(onnx.load("net.normalized.onnx"), full_check=True)
    ran = shell("emit", "net.onnx", "-o", "deep/net.onnx")
    assert (ran.code, ran.out) == (0, "")
    assert Path("deep/net.onnx").exists()


# ---------------------------------------------------------------------- as a process of its own


def test_as_a_process(shell: Shell) -> None:
    """Once for a result and once for an error: nothing of the runtime's chatter gets onto stdout."""
    command = [sys.executable, "-m", "onnxshot"]
    good = subprocess.run(
        [*command, "quantize", "net.onnx", "--mode", "weights", "--no-verify", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert Ran(good.returncode, good.stdout, good.stderr).json["outputs"][0]["path"] == "net.int8.onnx"
    Path("broken.onnx").write_bytes(Path("net.onnx").read_bytes()[:-300])
    bad = subprocess.run([*command, "quantize", "broken.onnx"], capture_output=True, text=True, check=False)
    assert bad.returncode == 4
    assert "broken.onnx" in Ran(4, bad.stdout, bad.stderr).error


# ---------------------------------------------------------------------------- channels


def test_channels_are_cut_on_the_command_line(shell: Shell) -> None:
    before = onnx.load(fixture("digits_mobile"))
    ran = shell(
        "prune", fixture("digits_mobile"), "--pattern", "channels", "--sparsity", 0.3, "--multiple", 1,
        "-o", "cut.onnx", "--json", *QUICK,
    )  # fmt: skip
    after = onnx.load(shell.folder / "cut.onnx")
    onnx.checker.check_model(after, full_check=True)
    work, left = ran.json["macs"]
    assert left <= 0.71 * work
    assert after.ByteSize() < before.ByteSize()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sparsity", 0.5, "--target-flops", 0.5], "--target-flops with --pattern unstructured"),
        (["--pattern", "channels"], "--target-flops is missing (give it, or --target-params,"),
        (["--pattern", "channels", "--sparsity", 0.5, "--prune-scope", "tails"], "--prune-scope is 'tails'"),
        (["--pattern", "channels", "--sparsity", 0.5, "--multiple", 3], "--multiple is 3"),
        (["--pattern", "channels", "--sparsity", 0.5, "--importance", "taylor"], "--importance is 'taylor'"),
        (["--pattern", "channels", "--sparsity", 0.5, "--importance", "batchnorm"], "followed by a BatchNorm"),
        (["--pattern", "channels", "--sparsity", 1.5], "--sparsity is 1.5"),
        (["--pattern", "channels", "--sparsity", "50%", "--target-flops", 0.5], "--sparsity is given beside --t"),
        (["--pattern", "channels", "--sparsity", 0.5, "--scope", "erk"], "--scope with --pattern channels"),
        (["--pattern", "channels", "--sparsity", 0.5, "--keep-zeros"], "--keep-zeros with --pattern channels"),
    ],
)
def test_options_of_channels_that_contradict_are_told(shell: Shell, arguments: list[object], told: str) -> None:
    ran = shell("prune", fixture("digits_mobile"), *arguments, "-o", "cut.onnx", *QUICK)
    assert ran.code == 2
    assert told in ran.error
    assert not (shell.folder / "cut.onnx").exists()


def test_bundle_and_verify(shell: Shell) -> None:
    assert shell("quantize", "net.onnx", "--calib", "calib.npz", "--bundle", "out", *QUICK).code == 0
    assert [row["passed"] for row in shell("verify", "out", "--json").json["outputs"]] == [True]
    (shell.folder / "out" / "recipe.json").write_text("{}")
    broken = shell("verify", "out")
    assert (broken.code, "'recipe.json'" in broken.error) == (4, True)
    (shell.folder / "mine").mkdir()
    (shell.folder / "mine" / "x").touch()
    assert shell("quantize", "net.onnx", "--calib", "calib.npz", "--bundle", "mine", *QUICK).code == 2


def test_bundle_of_stages(shell: Shell) -> None:
    done = shell("compress", "net.onnx", "--sparsity", "0.5", "--calib", "calib.npz", "--bundle", "out", *QUICK)
    assert done.code == 0, done.err
    assert shell("verify", "out").code == 0
    assert list(json.loads((shell.folder / "out" / "recipe.json").read_text())) == ["stages"]


def test_diff(shell: Shell) -> None:
    shell("quantize", "net.onnx", "--calib", "calib.npz", "-o", "q.onnx", "--effort", "fast", *QUICK)
    found = shell("diff", "net.onnx", "q.onnx", "--calib", "calib.npz", "--json").json
    assert found["changed"]["type"]
    assert found["sqnr_db"] > 20
    assert "differ" in shell("diff", "net.onnx", "q.onnx").err
