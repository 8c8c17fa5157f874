"""`bench --python`: another environment's ONNX Runtime times the files, and what can be wrong there is one line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime
import pytest

import onnxshot
from onnxshot.errors import ModelError, TargetError, UsageError
from onnxshot.runtimes import ort_other_environment
from onnxshot.runtimes.ort_other_environment import bench_in, interpreter, version

FEEDS = [{"x": np.ones((1, 8), np.float32)}, {"x": np.zeros((3, 8), np.float32)}]


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[n,8] x) => (float[n,8] y) { y = Tanh(x) }'
    onnx.save(onnx.parser.parse_model(text), str(path))
    return path


def program(tmp_path: Path, text: str) -> Path:
    """An interpreter that is none: a shell script."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_files_are_timed_in_the_environment_that_is_named(net: Path) -> None:
    rows = bench_in(sys.executable, [net, net], FEEDS, threads=1, rounds=7, seconds=5.0)
    assert [row.rounds for row in rows] == [7, 7]
    assert rows[0].ratio == 1.0
    assert all(0 < row.p10 <= row.median_ms <= row.p90 for row in rows)
    assert {row.runtime for row in rows} == {f"onnxruntime {onnxruntime.__version__}"}


def test_the_folder_of_an_environment_stands_for_its_interpreter(net: Path, tmp_path: Path) -> None:
    inside = tmp_path / "env" / "bin"
    inside.mkdir(parents=True)
    (inside / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (inside / "python").chmod(0o755)
    assert interpreter(tmp_path / "env") == inside / "python"
    (row,) = onnxshot.bench([net], FEEDS, seconds=0.01, threads=1, python=tmp_path / "env")
    assert row.runtime == f"onnxruntime {onnxruntime.__version__}"


def test_what_is_set_for_this_python_is_not_handed_on(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise RuntimeError('the wrong one')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # nor is a file of that name in the working folder taken
    assert version(Path(sys.executable)) == f"onnxruntime {onnxruntime.__version__}"
    assert bench_in(sys.executable, [net], FEEDS, threads=1, rounds=3)[0].rounds == 3


@pytest.mark.parametrize(("given", "says"), [("nowhere/python", "is not there"), ("net.onnx", "cannot be executed")])
def test_no_interpreter_is_a_usage_error(net: Path, given: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(net.parent)
    with pytest.raises(UsageError, match=says):
        bench_in(given, [net], FEEDS)
    with pytest.raises(UsageError, match="holds no bin/python"):
        bench_in(net.parent, [net], FEEDS)


@pytest.mark.parametrize(("script", "says"), [
    ("exit 0", "does not report its onnxruntime version"),
    ("echo 'out of order' >&2; exit 3", "out of order"),
    ("echo onnxruntime-of-a-kind", "does not report its"),
    ("echo \"ModuleNotFoundError: No module named 'onnxruntime'\" >&2; exit 1", "pip install onnxruntime numpy"),
    ("kill -9 $$", "does not report its"),
])  # fmt: skip
def test_an_interpreter_that_does_not_answer(net: Path, tmp_path: Path, script: str, says: str) -> None:
    with pytest.raises(TargetError, match=says):
        bench_in(program(tmp_path, script), [net], FEEDS)


def test_an_environment_without_onnxruntime(net: Path, tmp_path: Path) -> None:
    """-S: no installed package is found. What is asked of a real interpreter that has none."""
    bare = program(tmp_path, f'exec {sys.executable} -S "$@"')
    with pytest.raises(TargetError, match=r"No module named .* pip install onnxruntime numpy"):
        bench_in(bare, [net], FEEDS)


def test_an_interpreter_that_ends_while_it_times(net: Path, tmp_path: Path) -> None:
    """It tells its version, and then ends."""
    dies = program(tmp_path, 'case "$2" in *print*) echo onnxruntime 1.2.3;; *) echo "no memory" >&2; exit 9;; esac')
    with pytest.raises(TargetError, match=r"exit status 9 during timing in onnxruntime 1\.2\.3: no memory"):
        bench_in(dies, [net], FEEDS)


def test_an_interpreter_that_hangs_is_stopped(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_other_environment, "_LEAST_SECONDS", 0.3)
    hangs = program(tmp_path, 'case "$2" in *print*) echo onnxruntime 1.2.3;; *) exec sleep 60;; esac')
    start = time.monotonic()
    with pytest.raises(TargetError, match=r"stopped after 0\.3 seconds"):
        bench_in(hangs, [net], FEEDS, seconds=0.01)
    assert time.monotonic() - start < 30


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are of POSIX")
def test_what_a_wrapper_has_started_is_stopped_with_it(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell around the interpreter, which hangs: the child would wait on as an orphan."""
    told = tmp_path / "child"
    script = f"sleep 600 & echo $! > {told}.new; mv {told}.new {told}; wait"
    monkeypatch.setattr(ort_other_environment, "_START_SECONDS", 1.0)
    with pytest.raises(TargetError, match="was stopped after 1 seconds"):
        bench_in(program(tmp_path, script), [net], FEEDS, threads=1)
    child = int(told.read_text())
    for _ in range(200):  # whoever adopts it may take a moment to bury it
        try:
            gone = Path(f"/proc/{child}/stat").read_text().split()[2] == "Z"
        except OSError:
            try:
                os.kill(child, 0)
                gone = False
            except ProcessLookupError:
                gone = True
        if gone:
            break
        time.sleep(0.05)
    assert gone


def test_a_model_that_the_other_runtime_refuses_is_named(net: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"broken\.onnx does not run in onnxruntime"):
        bench_in(sys.executable, [net, broken], FEEDS)
    with pytest.raises(ModelError, match=r"net\.onnx does not run .* asks for input 'x'"):
        bench_in(sys.executable, [net], [{"other": np.ones((1, 8), np.float32)}])


def test_samples_of_text_and_of_no_size_go_over(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> net (string[n] x, int64 k, float[0] e) =>'
        " (string[n] y, int64 z, float[0] f) { y = Identity(x) z = Identity(k) f = Identity(e) }"
    )
    onnx.save(onnx.parser.parse_model(text), str(path))
    feed = {"x": np.array(["a", "bc"], object), "k": np.array(3, np.int64), "e": np.zeros(0, np.float32)}
    assert bench_in(sys.executable, [path], [feed], threads=1, rounds=3)[0].rounds == 3


def test_the_worker_runs_on_python_3_8() -> None:
    """No syntax that is newer than the oldest interpreter that is promised."""
    import ast

    ast.parse(ort_other_environment._WORKER.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_the_worker_ends_when_nobody_waits(net: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", **FEEDS[0])
    job = {"models": [str(net)], "feeds": [str(tmp_path / "0.npz")], "threads": 1, "rounds": 10**9, "seconds": 600}
    (tmp_path / "job.json").write_text(json.dumps({**job, "answer": str(tmp_path / "answer")}))
    command = [sys.executable, str(ort_other_environment._WORKER), str(tmp_path / "job.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.stdin.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == b""
    assert not (tmp_path / "answer").exists()


def test_json_carries_the_version_and_failures_have_exit_codes(net: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onnxshot", "bench", "net.onnx", "--seconds", "0.01", "--json", "--python"]

    def run(python: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, python], cwd=tmp_path, capture_output=True, text=True, env=os.environ)

    told = run(sys.executable)
    assert told.returncode == 0, told.stderr
    (row,) = json.loads(told.stdout)["models"]
    assert row["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    missing = run("nowhere")
    assert (missing.returncode, json.loads(missing.stdout)["error"]["kind"]) == (2, "UsageError")
    assert "nowhere is not there" in missing.stderr
    none = run(str(program(tmp_path, "exit 7")))
    assert (none.returncode, json.loads(none.stdout)["error"]["code"]) == (6, 6)
    assert none.stderr.count("\n") == 1
