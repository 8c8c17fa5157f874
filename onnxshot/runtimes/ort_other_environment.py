"""Measure latency in the ONNX Runtime of another Python environment.

Its interpreter runs `interleaved_timing.py`, which needs numpy and onnxruntime. The environments share only files: the
models at their paths, and the samples as .npz.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxshot import system
from onnxshot.errors import ModelError, TargetError, UsageError
from onnxshot.files.atomic_write import scratch
from onnxshot.graph.load import first_line
from onnxshot.runtimes.ort_bench import Latency, latencies
from onnxshot.runtimes.ort_runtime import Feed, one_line

_WORKER = Path(__file__).with_name("interleaved_timing.py")
_START_SECONDS, _LEAST_SECONDS, _TIMES = 60.0, 300.0, 20.0
"""Seconds to report a version; least seconds for timing; and the factor on the time asked for, if that is longer."""
_NOT_CARRIED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")  # of this environment, not of the other one
_VERSION = "import numpy, onnxruntime; print('onnxruntime', onnxruntime.__version__)"


def bench_in(
    python: str | Path,
    models: Sequence[Path],
    feeds: Sequence[Feed],
    *,
    threads: int = 2,
    rounds: int = 10_000,
    seconds: float = 2.0,
) -> list[Latency]:
    """Measure the latency of models in another environment's ONNX Runtime, as `ort_bench.bench` does in this one.

    PYTHONPATH and PYTHONHOME are not passed on.

    Args:
        python: Interpreter, Python 3.8 or newer, or the folder of a virtual environment.
        models: Files; the first is the one that ratios refer to.
        feeds: Samples.
        threads: CPU threads of each inference.
        rounds: Most rounds.
        seconds: Approximate time limit per model.

    Raises:
        UsageError: There is no such interpreter, or samples have a type that it cannot read.
        TargetError: The interpreter does not run, lacks onnxruntime or numpy, or ends or hangs during timing.
        ModelError: Its ONNX Runtime refuses a model.
    """
    if not models or not feeds or rounds < 1:
        raise UsageError(f"nothing to time: {len(models)} models, {len(feeds)} samples, {rounds} rounds")
    program = interpreter(python)
    named = version(program)
    with scratch() as folder:
        job = {
            "models": [str(path.resolve()) for path in models], "feeds": _stored(feeds, folder), "threads": threads,
            "rounds": rounds, "seconds": seconds, "answer": str(folder / "answer.json"),
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        limit = max(_LEAST_SECONDS, _TIMES * seconds * len(models))
        code, last = _run(program, [_WORKER.read_text(encoding="utf-8"), str(folder / "job.json")], folder, limit)
        answer = _answer(folder / "answer.json")
    if answer is None:
        raise TargetError(f"{program} ended with exit status {code} during timing in {named}: {last or 'no message'}")
    if "error" in answer:
        error = one_line(Exception(answer["error"]))
        if "model" in answer:
            raise ModelError(f"{models[answer['model']]} does not run in {named} of {program}: {error}")
        raise TargetError(f"{program} cannot time models in {named}: {error}")
    return latencies(models, answer["ms"], f"onnxruntime {answer['version']}", answer.get("cpu"))


def interpreter(python: str | Path) -> Path:
    """The interpreter for a path, a name on PATH, or the folder of a virtual environment.

    Symbolic links are kept: a virtual environment is recognized by the interpreter's own path.

    Raises:
        UsageError: There is no such interpreter.
    """
    place = Path(python).expanduser()
    if place.is_dir():
        inside = [place / "bin" / "python", place / "Scripts" / "python.exe", place / "python.exe"]
        place = next((p for p in inside if p.is_file()), place)
        if place.is_dir():
            raise UsageError(f"{python} holds no bin/python", "give an interpreter, or the folder of an environment")
    found = shutil.which(str(place))
    if found is None:
        what = "cannot be executed" if place.exists() else "is not there"
        raise UsageError(f"the interpreter {python} {what}", "give one such as env/bin/python")
    return Path(found).absolute()


def version(program: Path) -> str:
    """Name and version of the environment's runtime, such as "onnxruntime 1.20.1".

    Raises:
        TargetError: The interpreter does not run, or lacks onnxruntime or numpy.
    """
    with scratch() as folder:
        code, last = _run(program, [_VERSION], folder, _START_SECONDS)
        lines = (folder / "stdout").read_text(errors="replace").strip().splitlines()
    if code == 0 and lines and lines[-1].startswith("onnxruntime "):
        return lines[-1]
    if "No module named" in last:
        raise TargetError(f"{program} lacks a package: {last}", f"{program} -m pip install onnxruntime numpy")
    raise TargetError(f"{program} does not report its onnxruntime version: {last or f'exit status {code}'}")


def _run(program: Path, code: Sequence[str], folder: Path, limit: float) -> tuple[int, str]:
    """Run Python code in an empty folder. Returns its exit status, and the last line it wrote to stderr.

    The code is passed as text, because Python searches a script's own folder for modules first.

    Raises:
        TargetError: It does not start, or takes longer than `limit` seconds.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_CARRIED}
    work = folder / "work"
    work.mkdir()
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as errors:
        try:
            process = subprocess.Popen(
                [str(program), "-c", *code], stdin=subprocess.PIPE, stdout=out, stderr=errors, cwd=work,
                env=environment, start_new_session=True,
            )  # fmt: skip
        except OSError as e:
            raise TargetError(f"{program} does not run: {e.strerror}") from e
        with process:
            try:
                ended = process.wait(limit)  # its stdin stays open: a closed stdin tells it that nobody waits
            except subprocess.TimeoutExpired as e:
                raise TargetError(f"{program} was stopped after {limit:g} seconds without an answer") from e
            finally:
                system.end_tree(process)  # the interpreter may be a shell script around the real one
    lines = (folder / "stderr").read_text(errors="replace").strip().splitlines()
    return ended, first_line(lines[-1]) if lines else ""


def _stored(feeds: Sequence[Feed], folder: Path) -> list[str]:
    """Write the samples to files that any numpy reads.

    Raises:
        UsageError: A sample has a type that numpy does not have by itself, such as bfloat16.
    """
    paths = []
    for number, feed in enumerate(feeds):
        for name, value in feed.items():
            if np.asarray(value).dtype.kind == "V" or np.asarray(value).dtype.isbuiltin == 2:
                raise UsageError(
                    f"input {name!r} is {np.asarray(value).dtype}, which another environment's numpy cannot read",
                    "time this model without [[python]]",
                )
        path = folder / f"{number}.npz"
        np.savez(path, **{name: _plain(value) for name, value in feed.items()})
        paths.append(str(path))
    return paths


def _plain(value: Any) -> Any:
    """Text as numpy stores it without pickling."""
    array = np.asarray(value)
    return array.astype(np.str_) if array.dtype.kind == "O" else array


def _answer(path: Path) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
