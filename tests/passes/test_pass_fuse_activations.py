import numpy as np
import pytest
from handmade.core import feeds, model
from pass_checks import loaded, ops, rewritten

from onnxshot.passes.fuse_activations import FuseActivations

C = {"three": 3.0, "zero": 0.0, "six": 6.0, "sixth": 1 / 6, "seven": 7.0}
SWISH = {
    "div last": "m = Mul(x, b) y = Div(m, six)",
    "mul by sixth last": "m = Mul(b, x) y = Mul(m, sixth)",
    "div first": "d = Div(b, six) y = Mul(x, d)",
    "mul by sixth first": "d = Mul(sixth, b) y = Mul(d, x)",
    "x divided": "d = Div(x, six) y = Mul(d, b)",
}


def graph(nodes: str, opset: int, add: str = "Add(x, three)") -> tuple[str, dict[str, np.ndarray]]:
    clip = "Clip<min = 0.0, max = 6.0>(a)" if opset < 11 else "Clip(a, zero, six)"
    text = f"g (float[n, 8] x0) => (float[n, 8] y) {{ x = Neg(x0) a = {add} b = {clip} {nodes} }}"
    return text, {k: np.array(v, np.float32) for k, v in C.items() if k in text}


@pytest.mark.parametrize("opset", [9, 12, 14, 17])
@pytest.mark.parametrize("order", SWISH)
def test_hard_swish(order: str, opset: int) -> None:
    text, constants = graph(SWISH[order], opset)
    feed = {"x0": np.linspace(-8, 8, 40, dtype=np.float32).reshape(5, 8)}
    after, change = rewritten(model(text, constants, opset=opset), FuseActivations(), feed)
    assert change.edits >= 1
    if opset >= 14:
        assert ops(after) == {"Neg": 1, "HardSwish": 1}
    else:
        assert ops(after) == {"Neg": 1, "HardSigmoid": 1, "Mul": 1}


@pytest.mark.parametrize("opset", [9, 12, 17])
def test_hard_sigmoid(opset: int) -> None:
    text, constants = graph("y = Div(b, six)", opset, "Add(three, x)")
    after, change = rewritten(model(text, constants, opset=opset), FuseActivations(), *feeds(1, x0=(3, 8)))
    assert (change.edits, ops(after)) == (1, {"Neg": 1, "HardSigmoid": 1})


@pytest.mark.parametrize(
    "nodes", ["y = Div(b, seven)", "y = Div(six, b)", "m = Mul(b, b) y = Div(m, six)", "m = Mul(x0, b) y = Div(m, six)"]
)
def test_other_patterns_stay(nodes: str) -> None:
    text, constants = graph(nodes, 12)
    before = ops(loaded(model(text, constants)))
    after, change = rewritten(model(text, constants), FuseActivations(), {"x0": np.full((1, 8), -1, np.float32)})
    assert (change.edits, ops(after)) == (0, before)


def test_an_intermediate_that_is_read_elsewhere_stays() -> None:
    text, constants = graph("d = Div(b, six) m = Mul(x, d) y = Add(m, b)", 17)
    _, change = rewritten(model(text, constants), FuseActivations(), *feeds(1, x0=(3, 8)))
    assert change.edits == 0


def test_clip_of_other_limits_stays() -> None:
    text, constants = graph("y = Div(b, six)", 17)
    text = text.replace("Clip(a, zero, six)", "Clip(a, zero, three)")
    _, change = rewritten(model(text, constants), FuseActivations())
    assert change.edits == 0
