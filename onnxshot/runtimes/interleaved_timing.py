"""Time models in interleaved runs. Another environment's Python also runs this file as a script.

It imports only the standard library, and numpy and onnxruntime inside `timed`. As a script it takes one argument, a
JSON file with the job, and writes its answer to a JSON file. Its stdin stays open as long as the caller waits.

Job: "models", paths; "feeds", .npz files; "threads", "rounds", "seconds"; "answer", the file to write. Answer:
"version" of onnxruntime, "ms", milliseconds of each model by round, and "cpu", the same of CPU time; or "error", with
"model", the index of the model that fails.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

LEAST_ROUNDS = 3


def time_interleaved(
    runs: Sequence[Callable[[Any], Any]],
    feeds: Sequence[Any],
    rounds: int,
    seconds: float,
    enough: Callable[[list[list[float]]], bool] = lambda times: False,
    cpu: list[list[float]] | None = None,
) -> list[list[float]]:
    """Time models in interleaved runs.

    Every model runs once per round, on the same sample. Ends after `rounds` rounds, after about `seconds` per model, or
    when `enough` returns true, but not before 3 rounds.

    Args:
        runs: Functions that run a model on a sample.
        feeds: Samples.
        rounds: Most rounds.
        seconds: Approximate time limit per model.
        enough: Called with the milliseconds so far, after each round.
        cpu: The CPU time of all threads of the process is added to it: [rounds, models] milliseconds.

    Returns:
        [rounds, models] milliseconds.
    """
    for run in runs:
        for _ in range(2):  # the first run plans memory and packs weights
            run(feeds[0])
    times: list[list[float]] = []
    end = time.perf_counter() + seconds * len(runs)
    while len(times) < rounds and (len(times) < LEAST_ROUNDS or time.perf_counter() < end):
        feed = feeds[len(times) % len(feeds)]
        row, spent = [0.0] * len(runs), [0.0] * len(runs)
        for turn in range(len(runs)):  # rotate, so that no model is always the first
            i = (turn + len(times)) % len(runs)
            start, began = time.perf_counter_ns(), time.process_time_ns()
            runs[i](feed)
            row[i], spent[i] = (time.perf_counter_ns() - start) / 1e6, (time.process_time_ns() - began) / 1e6
        times.append(row)
        if cpu is not None:
            cpu.append(spent)
        if enough(times):
            break
    return times


def loaded(ort: Any, path: str, threads: int) -> Callable[[Any], Any]:
    """Load a model. Its threads sleep instead of spinning when idle, so that it does not disturb the next model."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [arg.name for arg in session.get_inputs()]

    def run(feed: Any) -> Any:
        missing = [name for name in names if name not in feed]
        if missing:
            raise ValueError(f"it asks for input {missing[0]!r}, which the sample does not hold")
        return session.run(None, {name: feed[name] for name in names})

    return run


def timed(job: dict[str, Any]) -> dict[str, Any]:
    """Time the models of a job, and return the answer."""
    import numpy as np
    import onnxruntime as ort

    answer: dict[str, Any] = {"version": ort.__version__}
    feeds = [dict(np.load(path)) for path in job["feeds"]]
    runs = []
    for number, path in enumerate(job["models"]):
        try:
            run = loaded(ort, path, job["threads"])
            run(feeds[0])
        except Exception as e:  # ONNX Runtime's errors share no base class
            return {**answer, "error": str(e), "model": number}
        runs.append(run)
    cpu: list[list[float]] = []
    times = time_interleaved(runs, feeds, job["rounds"], job["seconds"], cpu=cpu)
    return {**answer, "ms": times, "cpu": cpu}


def main() -> None:
    """Read the job, time the models, and write the answer."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123  # the standard library at its barest
        job = json.load(file)
    try:
        answer = timed(job)
    except Exception as e:  # from any package installed there
        answer = {"error": f"{type(e).__name__}: {e}"}
    with open(job["answer"], "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(answer, file)


def _end_with_stdin() -> None:
    """Exit when the caller is gone, which closes stdin."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    main()
