import numpy as np
import pytest
from handmade.core import feeds, model, weight
from pass_checks import ops, reasons, rewritten

from onnxshot.graph.load import load_model
from onnxshot.passes.castlike_to_cast import CastLikeToCast
from onnxshot.passes.normalize import normalize


@pytest.mark.parametrize("kind", ["float", "int32", "int64", "bool", "double"])
def test_the_type_of_an_input_or_of_a_tensor_is_taken(kind: str) -> None:
    """The second input is a graph's input, and then what a node makes."""
    text = (
        f"g (float[n, 4] x, {kind}[m] like) => ({kind}[n, 4] y, {kind}[n, 4] z)"
        " { y = CastLike(x, like) made = Identity(like) z = CastLike(x, made) }"
    )
    numpy_kind = {"float": np.float32, "double": np.float64, "bool": np.bool_}.get(kind, kind)
    fed = [{**feed, "like": np.ones(2, numpy_kind)} for feed in feeds(2, x=(3, 4))]
    after, change = rewritten(model(text), CastLikeToCast(), *fed)
    assert change.edits == 2
    assert ops(after) == {"Cast": 2, "Identity": 1}


def test_a_constant_says_its_type() -> None:
    text = "g (float[n, 4] x) => (int64[n, 4] y) { y = CastLike(x, like) }"
    after, change = rewritten(model(text, {"like": np.zeros(1, np.int64)}), CastLikeToCast(), *feeds(1, x=(3, 4)))
    assert change.edits == 1
    assert ops(after) == {"Cast": 1}


def test_a_type_that_nobody_states_is_left() -> None:
    """In a branch, names may be used again: types are known by name."""
    text = """
    g (float[n, 4] x, bool c) => (float[n, 4] y) {
        y = If (c) <
            then_branch = a () => (float[n, 4] t) { u = Neg(x) t = CastLike(x, u) },
            else_branch = b () => (float[n, 4] e) { e = Neg(x) }>
    }
    """
    fed = [{**feed, "c": np.array(flag)} for feed in feeds(1, x=(3, 4)) for flag in (True, False)]
    _, change = rewritten(model(text), CastLikeToCast(), *fed)
    assert change.edits == 0
    assert reasons(change) == ["the type of its second input is not known"]


def test_a_conv_whose_bias_is_cast_like_its_input_meets_its_norm() -> None:
    """As torch.export writes a Conv without bias, before its optimizer runs."""
    text = """
    g (float[n, 3, 8, 8] x) => (float[n, 4, 8, 8] y) {
        sizes = Shape<end = 1>(w)
        zero = CastLike(none, x)
        bias = Expand(zero, sizes)
        c = Conv<pads = [1, 1, 1, 1]>(x, w, bias)
        b = BatchNormalization(c, scale, shift, mean, var)
        y = Relu(b)
    }
    """
    values = {
        "w": weight(4, 3, 3, 3), "none": np.array(0, np.float32), "scale": np.full(4, 1.5, np.float32),
        "shift": np.full(4, 0.25, np.float32), "mean": np.full(4, 0.1, np.float32), "var": np.full(4, 2, np.float32),
    }  # fmt: skip
    made = load_model(model(text, values))
    normalize(made)
    assert [node.op for node in made.graph.nodes] == ["Conv", "Relu"]
