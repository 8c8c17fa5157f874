"""No file may crash, hang or confuse onnxshot, and none may leave half a result behind."""

import contextlib
import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import malformed_models
import pytest

SECONDS = 10  # per file, of CPU, which a busy machine does not count
STILL = 300  # of the clock: what waits for ever uses no CPU


class Worker:
    """A process that loads and saves; a crash or a hang costs it, not the tests."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        script = Path(__file__).parents[1] / "helpers" / "load_and_save_worker.py"
        process = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def run(self, path: Path, out: Path, seconds: float = SECONDS) -> dict[str, object]:
        self._process = self._process or self._start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(path), str(out), seconds]) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], STILL)
        line = self._process.stdout.readline() if ready else ""
        if line:
            answer: dict[str, object] = json.loads(line)
            return answer
        code = self._process.wait() if ready else None
        self.close()
        ended = "Hang" if code in (None, -signal.SIGPROF) else "Crash"
        return {"error": ended, "text": f"exit status {code}", "exit_code": code, "seconds": 0.0}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with contextlib.closing(Worker()) as made:
        yield made


def test_what_takes_too_long_is_told_as_a_hang(worker: Worker, tmp_path: Path) -> None:
    path = malformed_models.CASES["a chain of 10000 nodes that do nothing"][0](tmp_path)
    assert worker.run(path, tmp_path / "out.onnx", 0.05)["error"] == "Hang"


def test_there_are_more_than_a_hundred_files() -> None:
    assert len(malformed_models.CASES) > 200
    assert sum(refused for _, refused in malformed_models.CASES.values()) > 100


@pytest.mark.parametrize("name", list(malformed_models.CASES))
def test_hostile_file(name: str, tmp_path: Path, worker: Worker) -> None:
    make, refused = malformed_models.CASES[name]
    path = make(tmp_path)
    out = tmp_path / "results" / "new" / "out.onnx"
    answer = worker.run(path, out)
    assert float(str(answer["seconds"])) < SECONDS
    if answer["error"] is None:
        assert not refused, "it loaded"
        assert [p.name for p in out.parent.iterdir()] in (["out.onnx"], ["out.onnx", "out.onnx.data"])
        return
    assert answer["error"] == "ModelError", answer["text"]
    assert answer["exit_code"] == 4
    text = str(answer["text"])
    assert text.isprintable()
    assert text.startswith(str(path))
    assert not (tmp_path / "results").exists()


COMMAND_LINE = [
    "base cut to 50 %",
    "unsorted nodes",
    "unknown operator with line breaks",
    "dims [-8, 4]",
    "external: parent folder",
    "500 nested branches",
]


@pytest.mark.parametrize(
    "name", [n if n in COMMAND_LINE else pytest.param(n, marks=pytest.mark.slow) for n in malformed_models.CASES]
)
def test_hostile_file_on_the_command_line(name: str, tmp_path: Path) -> None:
    make, refused = malformed_models.CASES[name]
    path = make(tmp_path)
    out = tmp_path / "results" / "out.onnx"
    command = [sys.executable, "-m", "onnxshot", "quantize", path, "--mode", "weights", "-o", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=9 * SECONDS, check=False)
    assert "Traceback" not in done.stderr
    if done.returncode == 0:
        assert not refused, done.stderr
        assert out.exists()
        return
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("error:")
    assert len(done.stderr.splitlines()) == 1
    assert not out.parent.exists()
