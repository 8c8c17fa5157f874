"""A tensor [1] where a scalar is wanted: it runs while it is computed and is refused once it is constant."""

import numpy as np
import pytest
from fixture_data import session
from handmade.core import model
from pass_checks import loaded, ops, outputs, rewritten

from onnxshot.graph.load import load_model
from onnxshot.passes.normalize import normalize
from onnxshot.passes.scalar_inputs import ScalarInputs


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("Range(zero, one_d, step)", np.array([5])),
        ("Range(one_d, five, step)", np.array([2])),
        ("HannWindow(one_d)", np.array([6])),
        ("DFT(x, one_d, axis)", np.array([4])),
        ("STFT(x, step, , one_d)", np.array([4])),
    ],
)
def test_a_constant_of_one_element_loads(line: str, given: np.ndarray) -> None:
    """What the runtime takes as an input of the model, it must take as a constant too."""
    out = "int64[k] y" if "Range" in line else "float[a] y" if "Hann" in line else "float[a, b, c, d] y"
    out = {"DFT": "float[a, b, c] y"}.get(line.split("(")[0], out)
    text = f"g (int64[1] one_d) => ({out}) {{ y = {line} }}"
    held = {"zero": np.array(0), "five": np.array(5), "step": np.array(1), "axis": np.array(1)}
    held["x"] = np.arange(8, dtype=np.float32).reshape(1, 8, 1)
    held = {name: value for name, value in held.items() if name in line}
    free = text.replace("int64[1] one_d", "int64[n] one_d")
    expected = outputs(model(free, held, opset=20, ir=9), {"one_d": given})
    constant = model(text.replace("int64[1] one_d", "float[1] unused"), held | {"one_d": given}, opset=20, ir=9)
    fixed = loaded(constant)
    assert ScalarInputs().run(fixed).edits == 1
    for a, b in zip(expected, outputs(fixed.to_proto(), {"unused": np.zeros(1, np.float32)}), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_a_branch_gives_is_made_a_scalar() -> None:
    """ONNX Runtime takes an If with a constant condition apart when it loads, and then sees the [1]."""
    text = """g (int64[2] size, float[n] x) => (int64[k] y) {
        high, low = If(always) <
            then_branch = t () => (int64[1] a, int64[1] b) { a, c = Split<axis = 0, num_outputs = 2>(size)
                                                             b = Identity(one) },
            else_branch = e () => (int64[1] d, int64[1] f) { d, f = Split<axis = 0, num_outputs = 2>(size) } >
        y = Range(zero, low, step)
    }"""
    held = {"zero": np.array(0), "one": np.array([1]), "step": np.array(1), "always": np.array(True)}
    proto = model(text, held, opset=20, ir=9)
    after = load_model(proto)
    normalize(after)
    (found,) = session(after.to_proto().SerializeToString()).run(
        None, {"size": np.array([3, 4]), "x": np.ones(1, np.float32)}
    )
    assert found.tolist() == [0]


def test_a_scalar_stays_a_scalar() -> None:
    text = "g (int64 n) => (int64[k] y) { y = Range(zero, n, step) }"
    proto = model(text, {"zero": np.array(0), "step": np.array(1)})
    after, change = rewritten(proto, ScalarInputs(), {"n": np.array(4)})
    assert change.edits == 0
    assert ops(after) == {"Range": 1}


def test_a_shape_of_no_dimensions_is_a_vector() -> None:
    text = "g (float[1] x) => (float[k] y) { y = Expand(x, four) }"
    after = loaded(model(text, {"four": np.array(4)}))
    assert ScalarInputs().run(after).edits == 1
    assert outputs(after.to_proto(), {"x": np.ones(1, np.float32)})[0].shape == (4,)
