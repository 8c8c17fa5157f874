"""Measure a file in the onnxruntime of this interpreter, for `runtimes.py`: `runtimes_worker.py JOB.json`.

Needs onnxruntime and numpy alone, and Python 3.10. The job: float, int8, numbered: paths of models, the last the second
one with a name for every node; feeds: .npz files; seconds, threads; out: a folder, to which answer.json, the optimized
graph and a profile of one run go.
"""

from __future__ import annotations

import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  # no onnxshot here

import measured
import numpy as np
import onnxruntime


def main() -> None:
    with open(sys.argv[1]) as file:  # noqa: PTH123
        job = json.load(file)
    answer = {"version": onnxruntime.__version__}
    try:
        answer.update(measure(job))
    except Exception as e:  # ONNX Runtime's errors share no base class
        answer["why"] = str(e).splitlines()[0][:300]
    with open(job["out"] + "/answer.json", "w") as file:  # noqa: PTH123
        json.dump(answer, file)


def measure(job: dict) -> dict:
    feeds = [dict(np.load(path)) for path in job["feeds"]]
    loaded = {name: measured.session(job[name], job["threads"]) for name in ("float", "int8")}
    names = measured.tensors(loaded["float"])
    wanted, got = ([measured.run(run, feed, names) for feed in feeds] for run in loaded.values())
    answer = measured.distance(wanted, got)
    clock = time.process_time_ns if job["threads"] == 1 else time.perf_counter_ns
    answer["speed"] = measured.in_turns(loaded, feeds, job["seconds"], clock)["int8"]
    answer["profile"] = profile(job, feeds[0])
    return answer


def profile(job: dict, feed: dict) -> str:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = job["threads"]
    options.enable_profiling = True
    options.profile_file_prefix = job["out"] + "/profile"
    options.optimized_model_filepath = job["out"] + "/optimized.onnx"
    run = onnxruntime.InferenceSession(job["numbered"], options, providers=["CPUExecutionProvider"])
    measured.run(run, feed)
    return run.end_profiling()


if __name__ == "__main__":
    main()
