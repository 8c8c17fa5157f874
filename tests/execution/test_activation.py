"""The activation after a layer, compared with onnx's reference evaluator, and cases without one."""

import numpy as np
import onnx
import pytest
from handmade.core import model
from onnx.reference import ReferenceEvaluator

from onnxshot.execution.activation import Activations, no_activation

CONSTANTS = {
    "zero": np.array(0, np.float32), "six": np.array([6], np.float32), "half": np.array([[[0.5]]], np.float32),
    "one": np.array(1, np.float32), "root": np.array(np.sqrt(2), np.float32), "beta": np.array(1.702, np.float32),
    "channel": np.array([1, 2, 3], np.float32),
}  # fmt: skip
KINDS = {
    "relu": "y = Relu(a)",
    "clip": "y = Clip(a, zero, six)",
    "one limit": "y = Clip(a, , six)",
    "leaky": "y = LeakyRelu<alpha = 0.2>(a)",
    "hard swish": "s = HardSigmoid<alpha = 0.16666667>(a) y = Mul(a, s)",
    "silu": "s = Sigmoid(a) y = Mul(s, a)",
    "quick gelu": "b = Mul(a, beta) s = Sigmoid(b) y = Mul(a, s)",
    "gelu": "b = Div(a, root) e = Erf(b) f = Add(e, one) g = Mul(a, f) y = Mul(g, half)",
    "mish": "s = Softplus(a) t = Tanh(s) y = Mul(a, t)",
}


def activations(text: str) -> Activations:
    return Activations(model(f"g (float[2, 3] x) => (float[2, 3] out) {{ {text} }}", CONSTANTS))


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_operators_compute(kind: str) -> None:
    whole = model(f"g (float[2, 3] a) => (float[2, 3] y) {{ {KINDS[kind]} }}", CONSTANTS)
    activation = activations(f"a = Neg(x) {KINDS[kind]} out = Softmax(y)").after("a")
    x = (4 * np.random.default_rng(0).standard_normal((2, 3))).astype(np.float32)
    (expected,) = ReferenceEvaluator(whole).run(None, {"a": x})
    found = activation(x)
    assert found.shape == x.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.reshape(expected, x.shape), rtol=1e-5, atol=1e-6)
    more = np.linspace(-8, 8, 30, dtype=np.float32).reshape(6, 5)
    np.testing.assert_array_equal(activation(more).reshape(-1), activation(more.reshape(-1, 1)).reshape(-1))


def test_the_limits_of_an_old_clip_are_attributes() -> None:
    text = '<ir_version: 8, opset_import: ["" : 9]> g (float[2, 3] x) => (float[2, 3] out) { a = Neg(x) y = Clip<min = -1.0, max = 2.0>(a) out = Softmax(y) }'  # noqa: E501
    activation = Activations(onnx.parser.parse_model(text)).after("a")
    np.testing.assert_array_equal(activation(np.asarray([-3, 0.5, 7], np.float32)), [-1, 0.5, 2])


@pytest.mark.parametrize(
    ("why", "text"),
    [
        ("read unchanged", "a = Neg(x) out = Softmax(a)"),
        ("read unchanged by one reader", "a = Neg(x) r = Relu(a) out = MatMul(a, r)"),
        ("two different things are read", "a = Neg(x) r = Relu(a) s = Sigmoid(a) out = MatMul(r, s)"),
        ("mixed with another tensor", "a = Neg(x) out = Add(a, x)"),
        ("scaled by channel", "a = Neg(x) b = Mul(a, channel) out = Softmax(b)"),
        ("a limit that is computed", "a = Neg(x) m = ReduceMax<keepdims = 0>(x) b = Clip(a, , m) out = Softmax(b)"),
    ],
)
def test_no_activation(why: str, text: str) -> None:
    assert activations(text).after("a") is no_activation, why


def test_an_output_of_the_model_has_no_activation() -> None:
    both = model("g (float[2, 3] x) => (float[2, 3] a, float[2, 3] out) { a = Neg(x) out = Relu(a) }", CONSTANTS)
    assert Activations(both).after("a") is no_activation
    one = model("g (float[2, 3] x) => (float[2, 3] out) { a = Neg(x) out = Relu(a) }", CONSTANTS)
    np.testing.assert_array_equal(Activations(one).after("a")(np.asarray([-1, 1], np.float32)), [0, 1])


def test_it_ends_where_the_readers_differ() -> None:
    """After the Relu the readers differ: the scaling that one of them applies is not part of the activation."""
    activation = activations("a = Neg(x) r = Relu(a) s = Mul(r, half) out = MatMul(r, s)").after("a")
    np.testing.assert_array_equal(activation(np.asarray([-2, 2], np.float32)), [0, 2])
    gate = activations("a = Neg(x) s = HardSigmoid(a) out = Mul(s, x)").after("a")
    np.testing.assert_allclose(gate(np.asarray([0, 1], np.float32)), [0.5, 0.7], rtol=1e-6)
