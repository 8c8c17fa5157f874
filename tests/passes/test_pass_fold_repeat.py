"""Rows and columns that are repeated by widening, spreading and flattening."""

import numpy as np
import onnx
import pytest
from handmade.core import feeds, model
from handmade.nhwc import Nhwc
from pass_checks import check, ops, rewritten, the

from onnxshot.graph import edit
from onnxshot.graph.load import load_model
from onnxshot.passes.fold_repeat import FoldRepeat
from onnxshot.passes.normalize import normalize


def repeated(axis: int, spread: str, counts: list[int], target: list[int], opset: int = 17) -> onnx.ModelProto:
    dims = ", ".join(map(str, target[1:]))
    text = f"""g (float[n, 3, 4, 5] x) => (float[n, {dims}] y) {{
        a = Unsqueeze(x, axes)
        b = {spread}(a, counts)
        y = Reshape(b, target)
    }}"""
    held = {"axes": np.array([axis + 1]), "counts": np.array(counts), "target": np.array(target)}
    return model(text, held, opset=opset)


@pytest.mark.parametrize(
    ("axis", "spread", "counts", "target"),
    [
        (2, "Expand", [1, 1, 1, 2, 1], [-1, 3, 8, 5]),
        (2, "Expand", [1, 3, 4, 3, 5], [0, 3, 12, 5]),
        (3, "Tile", [1, 1, 1, 1, 2], [-1, 3, 4, 10]),
        (1, "Tile", [1, 1, 2, 1, 1], [0, 6, 4, 5]),
    ],
)
def test_a_repetition_becomes_a_resize(axis: int, spread: str, counts: list[int], target: list[int]) -> None:
    proto = repeated(axis, spread, counts, target)
    after, change = rewritten(proto, FoldRepeat(), *feeds(2, x=(2, 3, 4, 5)))
    assert change.edits == 1
    assert ops(after) == {"Resize": 1}


@pytest.mark.parametrize(
    ("axis", "spread", "counts", "target"),
    [
        (2, "Expand", [1, 1, 1, 2, 1], [-1, 3, 4, 10]),  # the copies lie side by side in width: in another order
        (2, "Tile", [1, 1, 2, 2, 1], [-1, 3, 16, 5]),  # height is repeated as a whole too
        (2, "Expand", [1, 1, 1, 2, 1], [-1, 6, 4, 5]),
        (2, "Expand", [1, 1, 1, 1, 1], [-1, 3, 4, 5]),
    ],
)
def test_repetitions_in_another_order_stay(axis: int, spread: str, counts: list[int], target: list[int]) -> None:
    after, change = rewritten(repeated(axis, spread, counts, target), FoldRepeat(), *feeds(2, x=(2, 3, 4, 5)))
    assert change.edits == 0
    assert ops(after)["Resize"] == 0


def test_nothing_is_folded_below_opset_11() -> None:
    text = """g (float[n, 3, 4, 5] x) => (float[n, 3, 8, 5] y) {
        a = Unsqueeze<axes = [3]>(x)
        b = Expand(a, counts)
        y = Reshape(b, target)
    }"""
    held = {"counts": np.array([1, 1, 1, 2, 1]), "target": np.array([-1, 3, 8, 5])}
    _, change = rewritten(model(text, held, opset=10), FoldRepeat(), *feeds(1, x=(1, 3, 4, 5)))
    assert change.edits == 0


def test_upsampling_with_channels_last_is_one_resize_with_channels_first() -> None:
    g = Nhwc(3, 8)
    g.add("Relu", g.conv(4))
    g.add("Expand", g.add("Unsqueeze", g.now, g.hold([2])), g.hold([1, 8, 2, 8, 4]))
    g.add("Reshape", g.now, g.hold([-1, 16, 8, 4]))
    g.add("Tile", g.add("Unsqueeze", g.now, g.hold([3])), g.hold([1, 1, 1, 3, 1]))
    g.add("Reshape", g.now, g.hold([-1, 16, 24, 4]))
    g.conv(3)
    proto = g.model(f"float[n, 16, 24, 3] {g.now}")
    after = load_model(proto)
    normalize(after)
    check(proto, after, *feeds(2, x=(2, 8, 8, 3)), rescales=True)
    assert ops(after) == {"Transpose": 2, "Conv": 2, "Relu": 1, "Resize": 1}
    scales = edit.constant_input(the(after, "Resize"), 2)
    assert scales is not None
    assert scales.tolist() == [1, 1, 2, 3]
