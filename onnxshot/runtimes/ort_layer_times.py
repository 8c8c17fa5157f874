"""Measure single layers in ONNX Runtime, and how far it pads their channels: this decides which widths pay off."""

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
_QUANTILE = 0.25  # of the runs of one kernel: other load only ever adds time
_PROBED = 64  # input channels of the Conv that is examined


def layer_times(models: Iterable[ModelProto], *, threads: int = 2, seconds: float = 2.0) -> list[float]:
    """Measure small models in interleaved runs on random float inputs.

    Changes of layout at the ends of a model are not counted: there are none inside a network. Ends after 400 rounds, or
    after `seconds` but not before 5 rounds.

    Memory: a session for each model.

    Args:
        models: Models with float inputs of fixed shape.
        threads: CPU threads of each inference.
        seconds: Time limit for all models together.

    Returns:
        Microseconds of one run of each model's kernels, the lower quartile of all runs.

    Raises:
        ModelError: A model does not load.
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
        return [_kernel_time(json.loads(Path(run.end_profiling()).read_bytes())) for run in runs]


def _kernel_time(events: Sequence[dict[str, Any]]) -> float:
    taken = defaultdict(list)
    for event in events:
        kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if kernel and not event["args"]["op_name"].startswith("Reorder"):
            taken[event["name"]].append(event["dur"])
    return sum(float(np.quantile(times[1:], _QUANTILE)) for times in taken.values())  # the first run plans memory


def conv_block() -> int:
    """The multiple to which ONNX Runtime pads the channels of a Conv on this CPU; 1 if it does not pad.

    It is read from the weight stored for a Conv with one output: 16 with AVX-512, 8 with AVX2.
    """
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 4, 4]) for n, c in (("x", _PROBED), ("y", 1)))
    w = numpy_helper.from_array(np.ones((1, _PROBED, 1, 1), np.float32), "w")
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "one", [x], [y], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with scratch() as folder:
        at = folder / "optimized.onnx"
        session(model.SerializeToString(), threads=1, save_optimized=at)
        return max(int(t.dims[0]) for t in onnx.load(str(at)).graph.initializer)
