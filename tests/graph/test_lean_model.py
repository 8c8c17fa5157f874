"""A lean model holds no large weights, shares them with its copies, and becomes the same model again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxshot.errors import ModelError
from onnxshot.graph.lean_model import INLINE, LeanModel
from onnxshot.graph.load import load_model

SIZE = 64  # a weight of 64 x 64 floats is above INLINE


def _model(rng: np.random.Generator) -> onnx.ModelProto:
    weight = rng.standard_normal((SIZE, SIZE)).astype(np.float32)
    bias = rng.standard_normal(SIZE).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIZE])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIZE])]
    stored = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def proto() -> onnx.ModelProto:
    return _model(np.random.default_rng(0))


@pytest.fixture(params=["proto", "bytes", "path", "external", "graph"])
def lean(request: pytest.FixtureRequest, proto: onnx.ModelProto, tmp_path) -> LeanModel:
    path = tmp_path / "model.onnx"
    if request.param == "external":
        copy = onnx.load_from_string(proto.SerializeToString())
        onnx.save(copy, str(path), save_as_external_data=True, size_threshold=0)
    elif request.param == "path":
        onnx.save(proto, str(path))
    source = {"proto": proto, "bytes": proto.SerializeToString(), "graph": load_model(proto)}.get(request.param, path)
    return LeanModel.of(source)


def test_large_weights_are_not_in_the_proto(lean: LeanModel, proto: onnx.ModelProto) -> None:
    assert list(lean.weights) == ["w"]
    assert [t.name for t in lean.proto.graph.initializer] == ["b"]
    assert lean.weight_bytes == 4 * SIZE * SIZE > INLINE
    for tensor in proto.graph.initializer:
        np.testing.assert_array_equal(lean.array(tensor.name), numpy_helper.to_array(tensor))


def test_the_whole_model_comes_back(lean: LeanModel, proto: onnx.ModelProto) -> None:
    whole = lean.to_proto()
    onnx.checker.check_model(whole)
    feed = {"x": np.random.default_rng(1).standard_normal((3, SIZE)).astype(np.float32)}
    found, wanted = (ReferenceEvaluator(model).run(None, feed)[0] for model in (whole, proto))
    np.testing.assert_array_equal(found, wanted)


def test_copies_share_weights_and_leave_the_first_alone(lean: LeanModel) -> None:
    before = lean.proto.SerializeToString(deterministic=True)
    shown = lean.exposing(["m"])
    assert [o.name for o in shown.proto.graph.output] == ["y", "m"]
    assert [o.name for o in lean.with_outputs(["m"]).proto.graph.output] == ["m"]
    assert shown.weights is lean.weights
    other = lean.replaced({"w": np.zeros((SIZE, SIZE), np.float32), "b": np.ones(SIZE, np.float32)})
    assert not other.array("w").any()
    assert (other.array("b") == 1).all()
    assert lean.array("w").any()
    assert lean.proto.SerializeToString(deterministic=True) == before


def test_a_missing_file_and_damaged_bytes_are_errors(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx cannot be read"):
        LeanModel.of(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="cannot be read"):
        LeanModel.of(b"\x08\xff\xff\xff")
