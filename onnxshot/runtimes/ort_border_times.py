"""Measure what a change between float and int8 costs on this machine, and how much a profile adds to each kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.interleaved_timing import time_interleaved
from onnxshot.runtimes.ort_kernels import Kernel, kernels_of
from onnxshot.runtimes.ort_session import SessionRunner

_CHAIN = 48  # nodes of the chain that shows what a profile adds
_PICTURE = (1, 32, 32, 32)
_ROUNDS = 24


@dataclass(frozen=True, slots=True)
class Border:
    """Microseconds of a change between float and int8.

    Attributes:
        fixed: of each tensor.
        each: of each of its values.
        each_of_pictures: of each value [N, C, H, W]: Convs in float and in int8 want their channels in another order.
        profiled: how much more a kernel takes in a profile.
    """

    fixed: float
    each: float
    each_of_pictures: float
    profiled: float


def border_times(threads: int) -> Border:
    """Measure them, in some 20 ms of CPU time."""
    profiled = _profiled(threads)
    pictures = _kernels(_changes(), {"x": np.ones(_PICTURE, np.float32), "q": np.ones(_PICTURE, np.uint8)}, threads)
    count = int(np.prod(_PICTURE))

    def taken(*ops: str) -> float:
        return sum(max(k.microseconds - profiled, 0.0) for k in pictures if k.op in ops)

    change = taken("QuantizeLinear", "DequantizeLinear") / 2  # one of the two
    # The layouts of float Convs and of int8 Convs: one change of each.
    layout = taken("ReorderInput", "ReorderOutput") / 2 + taken("Transpose")
    fixed = min(profiled, 0.5)
    return Border(fixed, change / count, (change + layout) / count, profiled)


def _profiled(threads: int) -> float:
    nodes = [helper.make_node(("Neg", "Abs")[i % 2], [f"t{i}"], [f"t{i + 1}"]) for i in range(_CHAIN)]
    shapes: dict[str, Sequence[int]] = {"t0": (16,), f"t{_CHAIN}": (16,)}
    chain = _model(nodes, shapes, ["t0"], [f"t{_CHAIN}"])
    short = _model(nodes[:2], {"t0": (16,), "t2": (16,)}, ["t0"], ["t2"])
    feed = {"t0": np.ones(16, np.float32)}
    runs = [SessionRunner(model.to_proto().SerializeToString(), threads=threads).run for model in (chain, short)]
    times = 1e3 * np.array(time_interleaved(runs, [feed], 3 * _ROUNDS, 1.0)).min(axis=0)
    alone = float(times[0] - times[1]) / (_CHAIN - 2)
    return max(fmean(k.microseconds for k in _kernels(chain, feed, threads)) - alone, 0.0)


def _changes() -> LeanModel:
    """A picture that is quantized, one that is dequantized, one whose integers are turned, and a Conv by itself."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["b"]),
        helper.make_node("Transpose", ["q"], ["c"], perm=[0, 2, 3, 1]),
        helper.make_node("Conv", ["x", "w"], ["d"]),
    ]
    n, c, h, w = _PICTURE
    weights: dict[str, NDArray[np.generic]] = {
        "s": np.array(0.02, np.float32), "z": np.array(3, np.uint8), "w": np.ones((c, c, 1, 1), np.float32),
    }  # fmt: skip
    shapes = {"x": _PICTURE, "q": _PICTURE, "a": _PICTURE, "b": _PICTURE, "c": (n, h, w, c), "d": _PICTURE}
    return _model(nodes, shapes, ["x", "q"], ["a", "b", "c", "d"], weights)


def _kernels(model: LeanModel, feed: Mapping[str, NDArray[np.generic]], threads: int) -> list[Kernel]:
    return kernels_of([model], feed, threads=threads, rounds=(_ROUNDS, _ROUNDS), seconds=1.0)[0]


def _model(
    nodes: Sequence[NodeProto], shapes: Mapping[str, Sequence[int]], inputs: Sequence[str], outputs: Sequence[str],
    weights: Mapping[str, NDArray[np.generic]] | None = None,
) -> LeanModel:  # fmt: skip
    def info(name: str) -> ValueInfoProto:
        kind = TensorProto.UINT8 if name in ("q", "a", "c") else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, list(shapes[name]))

    stored = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "borders", list(map(info, inputs)), list(map(info, outputs)), stored)
    return LeanModel.of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
