"""Layers seen as products of matrices."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxshot.execution.layer_rows import MatrixForm, product


@pytest.mark.parametrize(("groups", "outputs", "inputs"), [(1, 5, 7), (3, 4, 2), (6, 1, 9), (1, 1, 3)])
def test_a_product_multiplies_every_group(groups: int, outputs: int, inputs: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(groups, 11, inputs)).astype(np.float32)
    table = rng.normal(size=(groups, outputs, inputs)).astype(np.float32)
    wanted = np.concatenate([x[g] @ table[g].T for g in range(groups)], axis=1)
    np.testing.assert_allclose(product(x, table), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"pads": [1, 0, 2, 1]},
        {"strides": [2, 3], "pads": [1, 1, 1, 1]},
        {"dilations": [2, 1], "strides": [1, 2]},
        {"auto_pad": "VALID"},
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
        {"auto_pad": "SAME_LOWER", "dilations": [2, 2]},
    ],
)
def test_output_sizes_of_a_conv_are_those_of_onnx(attrs: dict[str, Any]) -> None:
    x, w = np.zeros((1, 2, 13, 12), np.float32), np.zeros((4, 2, 3, 2), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attrs)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xwy"]
    graph = helper.make_graph([node], "g", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (y,) = ReferenceEvaluator(model).run(None, {"x": x, "w": w})
    form = MatrixForm("Conv", {a.name: helper.get_attribute_value(a) for a in node.attribute})
    assert form.output_sizes(x.shape, w.shape[2:]) == y.shape[2:]
    assert MatrixForm("Gemm", {}).output_sizes((3, 4), ()) == ()
