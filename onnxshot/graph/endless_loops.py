"""Refuse models with a Loop that never ends, which would hang a runtime."""

from __future__ import annotations

from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from onnxshot.errors import ModelError
from onnxshot.graph.local_functions import all_nodes

MOST_TRIPS = 1 << 31
"""Largest trip count of a Loop whose condition never becomes false; more would take years for the shortest body."""


def check_loops(proto: ModelProto) -> None:
    """Refuse a Loop that runs more than MOST_TRIPS times for any data.

    A Loop whose condition may end it is accepted; exporters give such loops 2**63 - 1 trips.

    Raises:
        ModelError: with the name of the Loop.
    """
    stored = {t.name: t for t in proto.graph.initializer if not t.external_data and len(t.dims) < 2}
    for node in all_nodes(proto.graph.node):
        if node.op_type != "Loop" or not node.input:
            continue
        trips = numpy_helper.to_array(stored[node.input[0]]).reshape(-1) if node.input[0] in stored else None
        if (trips is None and node.input[0]) or (trips is not None and (not trips.size or trips[0] <= MOST_TRIPS)):
            continue
        starts = node.input[1] if len(node.input) > 1 else ""
        if starts and (starts not in stored or not numpy_helper.to_array(stored[starts]).all()):
            continue
        body = next((a.g for a in node.attribute if a.name == "body"), None)
        if body is not None and _never_ends(body):
            name = node.name or next(iter(node.output), "")
            times = "without end" if trips is None else f"{trips[0]} times"
            what = f"node {name!r} (Loop) runs {times}, and its condition never becomes false"
            raise ModelError(what, "export the model again")


def _never_ends(body: GraphProto) -> bool:
    """Whether the condition that the body returns is the one it was passed, or a constant that is true."""
    if len(body.input) < 2 or not body.output:
        return False
    name, makers = body.output[0].name, {o: n for n in body.node for o in n.output}
    for _ in range(len(body.node) + 1):
        maker = makers.get(name)
        if maker is None:
            return name == body.input[1].name or any(
                t.name == name and bool(numpy_helper.to_array(t).all()) for t in body.initializer
            )
        if maker.op_type != "Identity":
            return maker.op_type == "Constant" and _is_true(maker)
        name = maker.input[0]
    return False


def _is_true(constant: NodeProto) -> bool:
    return any(a.name == "value" and bool(numpy_helper.to_array(a.t).all()) for a in constant.attribute)
