import numpy as np
import pytest
from handmade.core import feeds, model, weight
from pass_checks import ops, rewritten, the

from onnxshot.passes.move_shapes import MoveShapes
from onnxshot.passes.normalize import normalize


def conv(body: str, outs: str = "float[n, 4, h, w] y, int64[k] s"):
    text = f"g (float[n, 3, h, w] x) => ({outs}) {{ c = Conv<pads = [1, 1, 1, 1]>(x, k) {body} }}"
    constants = {"k": weight(4, 3, 3, 3), "zero": np.float32(0), "row": np.ones(4, np.float32), "one": np.ones(1, "f4")}
    return model(text, constants, opset=17)


@pytest.mark.parametrize(
    ("body", "read"),
    [
        ("y = Relu(c) s = Shape(c)", "y"),
        ("y = Relu(c) s = Shape<start = 2>(c)", "y"),
        ("a = Relu(c) y = Clip(a, zero) s = Shape(c)", "y"),
        ("y = BatchNormalization(c, row, row, row, row) s = Shape(c)", "y"),
        ("y = Add(c, zero) s = Shape(c)", "y"),
        ("y = Add(c, one) s = Shape(c)", "y"),
        ("a = Sigmoid(c) y = Mul(c, a) s = Shape(a)", "c"),
        ("a = Sigmoid(c) t = Cast<to = 11>(a) s = Shape(t) y = Mul(c, a)", "c"),
        ("a = Relu(c) y = MaxPool<kernel_shape = [1, 1]>(a) s = Shape(c)", "a"),
    ],
)
def test_what_is_read_is_what_stays(body: str, read: str) -> None:
    proto = conv(body, outs="float[n, 4, h, w] y, int64[i] s")
    after, change = rewritten(proto, MoveShapes(), *feeds(2, x=(2, 3, 5, 7)))
    assert change.edits == 1
    assert the(after, "Shape").inputs[0].name == read
    assert MoveShapes().run(after).edits == 0


@pytest.mark.parametrize(
    "body",
    [
        "y = MaxPool<kernel_shape = [3, 3]>(c) s = Shape(c)",  # another shape
        "y = Relu(c) q = Relu(x) s = Shape(y)",  # read where it settles
        "y = Identity(c) b = Softmax(c) d = Neg(b) s = Shape(c)",  # two readers
        "s = Shape(c) t = Size(c) f = Cast<to = 1>(t) y = Clip(c, zero, f)",  # it is computed from the size
    ],
)
def test_others_stay(body: str) -> None:
    proto = conv(body, outs="float[n, 4, h2, w2] y, int64[i] s")
    assert rewritten(proto, MoveShapes(), *feeds(1, x=(1, 3, 5, 7)))[1].edits == 0


def test_a_vector_that_broadcasts_makes_another_shape() -> None:
    text = "g (float[n, 1] x) => (int64[i] s, float[n, 4] y) { a = Relu(x) y = Add(a, row) s = Shape(y) }"
    proto = model(text, {"row": np.ones(4, np.float32)})
    assert rewritten(proto, MoveShapes(), *feeds(1, x=(2, 1)))[1].edits == 0


def test_a_conv_keeps_its_activation_although_its_size_is_asked_for() -> None:
    """The BatchNormalization is folded too: the Shape between had stopped both."""
    body = "b = BatchNormalization(c, row, row, row, row) y = Relu(b) s = Shape(c)"
    from pass_checks import loaded

    ready = loaded(conv(body))
    normalize(ready)
    assert ops(ready) == {"Conv": 1, "Relu": 1, "Shape": 1}
    assert the(ready, "Shape").inputs[0] is the(ready, "Relu").outputs[0]
