"""Output error of each node when its constants are rounded to 16 bits, measured for all nodes in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxshot.calibration.readers import Sample
from onnxshot.graph import Constant, Model, Node, weights
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.planning.precision16_ops import HALF_OPS, HalfType
from onnxshot.planning.precision16_plan import half_slots
from onnxshot.runtimes.ort_runtime import Runner

_MARK = "onnxshot_half_"


def rounding_db(
    model: Model, names: set[str], kind: HalfType, samples: Sequence[Sample], *, threads: int
) -> Mapping[str, float]:
    """Measure the SQNR of products whose constants are rounded to 16 bits, with unchanged inputs.

    Rounding to fp16 usually leaves about 70 dB. It leaves much less where large products cancel, as in a depthwise
    kernel on a channel that hardly varies. Every node is duplicated, so a run takes twice the work.

    Args:
        model: The float32 model.
        names: Nodes to measure.
        kind: The 16-bit type.
        samples: Samples to run.
        threads: Threads of ONNX Runtime.

    Returns:
        SQNR in dB by node name.

    Raises:
        ModelError: The model does not run.
    """
    nodes = {n.name: n for n in model.graph.nodes if n.name in names and _rounds(model, n)}
    if not nodes:
        return {}
    rounded: dict[str, Constant] = {}
    sums: dict[str, tuple[str, str]] = {}  # name of a node -> names of the energies of its output and its error

    def change(proto: ModelProto) -> None:
        given = list(proto.graph.node)
        del proto.graph.node[:]
        for node in given:
            proto.graph.node.append(node)
            if node.name in nodes:  # beside the node, so that both are in one part of a large model
                sums[node.name] = _add_twin(proto.graph, node, nodes[node.name], model, kind, rounded)
        del proto.graph.output[:]
        wanted = [name for pair in sums.values() for name in pair]
        proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted)

    lean = LeanModel.of(model).edited(change)
    runner = Runner(replace(lean, weights={**lean.weights, **rounded}), threads=threads)
    totals = {name: SqnrSum() for name in sums}
    for outputs in runner.run_all([sample.feed for sample in samples], 1):
        for name, (signal, noise) in sums.items():
            totals[name].join(SqnrSum(float(outputs[signal]), float(outputs[noise])))
    return {name: total.db for name, total in totals.items()}


def _rounds(model: Model, node: Node) -> bool:
    """Whether the node is a product with a constant operand."""
    return HALF_OPS[node.op].product and any(isinstance(node.inputs[i], Constant) for i in half_slots(model, node))


def _rounded(constant: Constant, kind: HalfType) -> NDArray[np.float32]:
    return np.asarray(weights.read(constant)).astype(kind.storage).astype(np.float32)


def _add_twin(
    graph: GraphProto, proto: NodeProto, node: Node, model: Model, kind: HalfType, rounded: dict[str, Constant]
) -> tuple[str, str]:
    """Add a copy of the node with rounded constants; return the names of the energies of its output and its error.

    The rounded constants are added to `rounded`. They are computed when they are read.
    """
    twin = NodeProto()
    twin.CopyFrom(proto)
    twin.name = base = f"{_MARK}{node.name}"
    for slot in half_slots(model, node):
        constant = node.inputs[slot]
        if isinstance(constant, Constant):
            twin.input[slot] = name = f"{base}/{slot}"
            values = weights.ComputedValues(
                tuple(constant.shape), np.dtype(np.float32), partial(_rounded, constant, kind)
            )
            rounded[name] = Constant(name, values)
    twin.output[:] = [f"{base}/out" if i == 0 else "" for i in range(len(twin.output))]
    signal, noise = f"{base}/signal", f"{base}/noise"
    graph.node.extend(
        (
            twin,
            helper.make_node("Sub", [proto.output[0], twin.output[0]], [f"{base}/error"]),
            helper.make_node("ReduceSumSquare", [proto.output[0]], [signal], keepdims=0),
            helper.make_node("ReduceSumSquare", [f"{base}/error"], [noise], keepdims=0),
        )
    )
    return signal, noise
