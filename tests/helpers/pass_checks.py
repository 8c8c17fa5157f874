"""Run one pass, and compare its result with the model that it was given."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from fixture_data import session
from handmade.core import Feed
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from onnxshot.graph import Model, Node, Tensor, edit, shape_inference
from onnxshot.graph.load import load_model
from onnxshot.passes.base import Change, Pass

TOLERANCE = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-9}


def with_outputs(proto: ModelProto, names: Iterable[str]) -> bytes:
    """The serialized model with these tensors as its outputs, each once."""
    other = ModelProto()
    other.CopyFrom(proto)
    del other.graph.output[:]
    other.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(names))
    return bytes(other.SerializeToString())


def outputs(proto: onnx.ModelProto, feed: Feed, names: Sequence[str] = ()) -> list[NDArray[Any]]:
    """Outputs of the model in ONNX Runtime, or tensors inside it by name."""
    runner = session(with_outputs(proto, names) if names else proto.SerializeToString())
    result: list[NDArray[Any]] = runner.run(list(names) or None, feed)
    return result


def loaded(proto: onnx.ModelProto) -> Model:
    """The model with the shapes known, as passes get it."""
    model = load_model(proto)
    shape_inference.infer(model)
    return model


def rewritten(proto: onnx.ModelProto, step: Pass, *feeds: Feed) -> tuple[Model, Change]:
    """The model after the pass, whose contract and outputs were checked against the model before it."""
    model = loaded(proto)
    change = step.run(model)
    check(proto, model, *feeds)
    return model, change


def check(proto: onnx.ModelProto, model: Model, *feeds: Feed, rescales: bool = False) -> None:
    """Assert that the rewritten model is valid, keeps the contract and gives the same outputs.

    So do all tensors whose names are in both models, but for a pass that rescales channels.
    """
    edit.toposort(model)
    after = model.to_proto()
    onnx.checker.check_model(after, full_check=True)
    stored = {t.name for t in proto.graph.initializer}
    inputs = [i for i in proto.graph.input if i.name not in stored]
    assert [i for i in after.graph.input if i.name not in stored] == inputs
    assert list(after.graph.output) == list(proto.graph.output)
    assert list(after.metadata_props) == list(proto.metadata_props)
    assert after.doc_string == proto.doc_string
    assert after.graph.doc_string == proto.graph.doc_string
    for feed in feeds:
        for expected, found in zip(outputs(proto, feed), outputs(after, feed), strict=True):
            _same(expected, found)
        if rescales:
            continue
        names = shared(proto, after)
        for name, expected, found in zip(names, outputs(proto, feed, names), outputs(after, feed, names), strict=True):
            _same(expected, found, f"tensor {name!r} holds other values under its name")


def shared(*protos: onnx.ModelProto) -> list[str]:
    """Names of the tensors that nodes of all of these models make."""
    made = [[name for node in proto.graph.node for name in node.output if name] for proto in protos]
    return [name for name in made[0] if all(name in other for other in made[1:])]


def _same(expected: Any, found: Any, why: str = "") -> None:
    if not isinstance(expected, np.ndarray):
        return  # a sequence
    assert found.dtype == expected.dtype, why
    if expected.dtype.name in TOLERANCE:
        tolerance = TOLERANCE[expected.dtype.name]
        scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale, err_msg=why)
    else:
        np.testing.assert_array_equal(found, expected, err_msg=why)


def ops(model: Model) -> Counter[str]:
    """How many nodes of each operator there are, subgraphs included."""
    return Counter(node.op for _, node in model.walk())


def the(model: Model, op: str) -> Node:
    """The one node of this operator."""
    (node,) = (n for _, n in model.walk() if n.op == op)
    return node


def tensor(model: Model, name: str) -> Tensor:
    """A tensor by name."""
    return model.tensors()[name]


def reasons(change: Change) -> list[str]:
    """Why nodes were left as they were."""
    return [skip.reason for skip in change.skips]
