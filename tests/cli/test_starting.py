"""Signals and closed pipes from the first moment on: one line, and the exit code that shells have for it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx import parser

from onnxshot import early_signals
from onnxshot.report.values import SCHEMA_VERSION

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

COMMANDS = {
    "module": [sys.executable, "-m", "onnxshot", "inspect", "net.onnx"],
    "script": [sys.executable, "{folder}/onnxshot", "inspect", "net.onnx"],  # as an installer makes it
}
SCRIPT = "import sys\nfrom onnxshot.cli.app import entry\nsys.exit(entry())\n"
ROOT = str(Path(early_signals.__file__).parents[1])


def begun(folder: Path, name: str, *options: str) -> "subprocess.Popen[str]":
    """The command, at its first import that takes long, where it waits."""
    (folder / "onnxshot").write_text(SCRIPT)
    blocker = folder / "path" / "numpy"
    blocker.mkdir(parents=True)
    flag = folder / "flag"
    (blocker / "__init__.py").write_text(f"import pathlib, time\npathlib.Path({str(flag)!r}).touch()\ntime.sleep(60)\n")
    words = [*(part.format(folder=folder) for part in COMMANDS[name]), *options]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": f"{folder}/path{os.pathsep}{ROOT}"}, cwd=folder / "path",
    )  # fmt: skip
    while not flag.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, "Interrupted"), (signal.SIGTERM, "Stopped")])
def test_told_to_end_while_it_imports_it_prints_the_object_that_was_asked_for(
    number: signal.Signals, kind: str, tmp_path: Path
) -> None:
    process = begun(tmp_path, "module", "--json")
    process.send_signal(number)
    out, told = process.communicate(timeout=30)
    found = json.loads(out)
    assert (process.returncode, found["schema_version"]) == (128 + number, SCHEMA_VERSION)
    message = told.removeprefix("error: ").strip()
    assert found["error"] == {"code": 128 + number, "kind": kind, "message": message, "hint": ""}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "stopped by SIGTERM"),
        (signal.SIGHUP, "stopped by SIGHUP"),
    ],
)
def test_told_to_end_while_it_imports_it_says_one_line(
    name: str, number: signal.Signals, said: str, tmp_path: Path
) -> None:
    process = begun(tmp_path, name)
    process.send_signal(number)
    out, told = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + number, "")
    assert told == f"error: {said}; nothing is half written\n"


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "stopped by SIGTERM")]
)
def test_a_signal_that_an_import_makes_an_error_of_is_still_one(
    number: signal.Signals, said: str, tmp_path: Path
) -> None:
    """As compiled libraries do; ONNX Runtime is imported late."""
    flag, library = tmp_path / "flag", tmp_path / "path" / "onnxruntime"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text(
        f"import pathlib, time\npathlib.Path({str(flag)!r}).touch()\ntry:\n    time.sleep(60)\n"
        "except BaseException as e:\n    raise ImportError('initialization failed') from e\n"
    )
    onnx.save(parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) '
                                 "{ y = Relu(x) }"), tmp_path / "m.onnx")  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxshot", "bench", "m.onnx"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"PYTHONPATH": f"{library.parent}{os.pathsep}{ROOT}"}, cwd=tmp_path,
    )  # fmt: skip
    while not flag.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (128 + number, f"error: {said}; nothing is half written\n")


def test_a_library_leaves_the_handlers_of_its_user_alone() -> None:
    code = "import signal; a = [signal.getsignal(n) for n in (2, 15, 1)]; import onnxshot;"
    code += "assert a == [signal.getsignal(n) for n in (2, 15, 1)]"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": ROOT})


@pytest.mark.parametrize("arguments", [["--help"], ["quantize", "--help"]])
def test_help_into_a_pipe_that_is_closed_is_no_error(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "onnxshot", *arguments], stdout=write, stderr=subprocess.PIPE, text=True, check=False,
        env=os.environ | {"PYTHONPATH": ROOT},
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
