"""What single layers take in ONNX Runtime, and how wide it makes them: what decides which widths are worth having."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxshot.files.atomic_write import scratch
from onnxshot.runtimes.ort_runtime import session

_LEAST_ROUNDS, _MOST_ROUNDS = 5, 400
_QUANTILE = 0.25  # of the runs of one kernel: what else the machine does only ever adds
_PROBED = 64  # channels of the layer whose weights are looked at


def layer_times(models: Iterable[ModelProto], *, threads: int = 2, seconds: float = 2.0) -> list[float]:
    """Microseconds of one run of each model's kernels, a quarter quantile of runs in turns on random float inputs.

    A change of layout at a model's ends is not counted: inside a network there is none. Ends after 400 rounds, or after
    `seconds` but not before 5 rounds. Held: a session for each model. Raises ModelError where a model does not load.
    """
    with scratch() as folder:
        rng = np.random.default_rng(0)
        runs = [
            session(model.SerializeToString(), threads=threads, profile=folder / str(i))
            for i, model in enumerate(models)
        ]
        feeds = [{i.name: rng.standard_normal(i.shape).astype(np.float32) for i in run.get_inputs()} for run in runs]
        end, rounds = time.perf_counter() + seconds, 0
        while rounds < _MOST_ROUNDS and (rounds < _LEAST_ROUNDS or time.perf_counter() < end):
            for run, feed in zip(runs, feeds, strict=True):
                run.run(None, feed)
            rounds += 1
        return [_kernels(json.loads(Path(run.end_profiling()).read_bytes())) for run in runs]


def _kernels(events: Sequence[dict[str, Any]]) -> float:
    taken = defaultdict(list)
    for event in events:
        kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if kernel and not event["args"]["op_name"].startswith("Reorder"):
            taken[event["name"]].append(event["dur"])
    return sum(float(np.quantile(times[1:], _QUANTILE)) for times in taken.values())  # the first run plans memory


def conv_block() -> int:
    """To a multiple of how many channels ONNX Runtime widens a Conv on this CPU, 1 where to none.

    Read from the weight that it stores for a Conv with one output: 16 with AVX-512, 8 with AVX2.
    """
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 4, 4]) for n, c in (("x", _PROBED), ("y", 1)))
    w = numpy_helper.from_array(np.ones((1, _PROBED, 1, 1), np.float32), "w")
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "one", [x], [y], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with scratch() as folder:
        at = folder / "optimized.onnx"
        session(model.SerializeToString(), threads=1, save_optimized=at)
        return max(int(t.dims[0]) for t in onnx.load(str(at)).graph.initializer)
