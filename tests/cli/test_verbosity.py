"""--quiet, --verbose and --log-level: what goes to stdout and stderr, before and after the name of the command."""

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pseudo_terminal
import pytest
from handmade import HANDMADE

from onnxshot.cli import app as cli
from onnxshot.cli import terminal

Run = Callable[..., tuple[int, str, str]]
LINE = re.compile(r"\[ *\d+\.\d s\] (?:debug: )?([\w ]+): (?:\d+\.\d\d s|started)")


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in a folder with net.onnx and calib.npz: exit code, stdout, stderr."""
    case = HANDMADE["resnet_block"]()
    onnx.save(case.model, str(tmp_path / "net.onnx"))
    np.savez(tmp_path / "calib.npz", x=np.stack([f["x"] for f in case.feeds]))
    monkeypatch.chdir(tmp_path)

    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["onnxshot", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert not terminal.is_quiet()
        assert [type(h) for h in logging.getLogger("onnxshot").handlers] == [logging.NullHandler]
        assert logging.getLogger("onnxshot").level == logging.NOTSET
        return int(end.value.code or 0), out, err

    return called


QUICK = ("--calib", "calib.npz", "--threads", "1", "--effort", "fast", "--search-time", "0")


def test_quiet_prints_the_path_of_the_result_alone(run: Run) -> None:
    assert run("quantize", "net.onnx", *QUICK, "-q") == (0, "net.int8.onnx\n", "")
    assert run("-q", "emit", "net.onnx", "-o", "sub.onnx") == (0, "sub.onnx\n", "")
    assert run("calibrate", "net.onnx", "--calib", "calib.npz", "-o", "s.npz", "--quiet") == (0, "s.npz\n", "")
    assert run("inspect", "net.onnx", "-q") == (0, "", "")
    channels = ("--pattern", "channels", "--target-params", "0.9", "--calib", "calib.npz")
    code, out, _ = run("prune", "net.onnx", *channels, "-q")
    assert (code, out) in ((0, "net.pruned.onnx\n"), (3, "net.pruned.onnx\n"))


def test_quiet_prints_json_and_errors(run: Run) -> None:
    code, out, err = run("-q", "inspect", "net.onnx", "--json")
    assert (code, out[0], err) == (0, "{", "")
    code, out, err = run("inspect", "missing.onnx", "-q")
    assert (code, out) == (4, "")
    assert err.startswith("error: ")


def test_a_quiet_command_tells_what_fails_in_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.quiet(True):
        terminal.show_text("a: done", "ready")
        terminal.show_text("b: failed", "bad")
    assert capsys.readouterr().err == "b: failed\n"


@pytest.mark.parametrize("words", [("-v", "quantize", "net.onnx"), ("quantize", "net.onnx", "-v")])
def test_verbose_shows_stages_and_their_seconds(run: Run, words: tuple[str, ...]) -> None:
    code, _, err = run(*words, *QUICK)
    assert code == 0
    lines = [line for line in err.splitlines() if line.startswith("[")]
    assert all(LINE.fullmatch(line) for line in lines)
    named = [LINE.fullmatch(line)[1] for line in lines]  # type: ignore[index]
    assert named[-1] == "quantize"
    assert "verify" in named
    assert "started" not in err
    assert "net.int8.onnx" in err, "and all that is printed without it"


def test_twice_verbose_shows_starts(run: Run) -> None:
    _, out, err = run("inspect", "net.onnx", "-vv", "--json")
    assert "debug: inspect: started" in err
    assert out.startswith("{")


def test_a_quiet_command_logs_what_it_is_asked_to(run: Run) -> None:
    """`-q --log-level warning`: in a CI job, only what speaks against the result."""
    code, out, err = run("quantize", "net.onnx", "--mode", "weights", "-q", "--log-level", "WARNING")
    assert (code, out) == (0, "net.int8.onnx\n")
    assert err
    assert all(re.match(r"\[ *\d+\.\d s\] warning: ", line) for line in err.splitlines())


@pytest.mark.parametrize(
    ("words", "told"),
    [(("-q", "-v"), "contradict"), (("--log-level", "loud"), "one of debug, info, warning, error")],
)
def test_options_that_contradict_are_told(run: Run, words: tuple[str, ...], told: str) -> None:
    code, out, err = run("inspect", "net.onnx", *words)
    assert (code, out) == (2, "")
    assert told in err


@pytest.mark.parametrize(
    ("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)], ids=str
)
def test_colours_follow_the_terminal_and_no_color(variables: dict[str, str], coloured: bool, tmp_path: Path) -> None:
    env = {**os.environ, "ONNXSHOT_CACHE": str(tmp_path)}
    settings = "; ".join(f"os.environ[{k!r}] = {v!r}" for k, v in variables.items()) or "pass"
    code = f"import os, sys; {settings}; sys.argv[0] = 'onnxshot'; from onnxshot.cli.app import entry; entry()"
    shown = pseudo_terminal.run([sys.executable, "-c", code, "--help"], tmp_path, env)
    assert shown.code == 0
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]m", shown.text)) == coloured
    if "NO_COLOR" in variables:
        assert not re.search(r"\x1b\[[0-9;]+m", shown.text), "nor bold, as of ruff and uv"


@pytest.mark.parametrize(("variables", "coloured"), [({}, False), ({"FORCE_COLOR": "1"}, True)], ids=str)
def test_a_pipe_gets_colours_if_forced(
    variables: dict[str, str], coloured: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert ("\x1b[" in run("--help")[1]) == coloured
    assert run("inspect", "gone.onnx")[2].startswith("\x1b[31merror: " if coloured else "error: ")
