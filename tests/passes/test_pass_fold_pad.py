"""A Pad in front of what pads by itself."""

from typing import Any

import numpy as np
import pytest
from handmade.core import feeds, model, weight
from pass_checks import ops, rewritten, the

from onnxshot.passes.fold_pad import FoldPad

LOWEST = np.float32(-np.inf)


def pads(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("Conv<strides = [2, 2]>(p, w)", None),
        ("Conv<pads = [1, 0, 2, 1], dilations = [2, 1]>(p, w)", np.float32(0)),
        ('Conv<auto_pad = "VALID">(p, w)', None),
        ("MaxPool<kernel_shape = [3, 3], strides = [2, 2]>(p)", LOWEST),
        ("MaxPool<kernel_shape = [2, 2]>(p)", np.float32(np.finfo(np.float32).min)),
        ("AveragePool<kernel_shape = [3, 3]>(p)", None),
        ("AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(p)", None),
    ],
)
def test_pad_is_folded(line: str, value: Any) -> None:
    extra = "" if value is None else ", z"
    text = f"g (float[n, 4, 9, 8] x) => (float[n, c, u, v] y) {{ p = Pad(x, a{extra}) y = {line} }}"
    held = {"a": pads(0, 0, 0, 1, 0, 0, 1, 1)} | ({} if value is None else {"z": value})
    held |= {"w": weight(3, 4, 2, 3)} if "Conv" in line else {}
    after, change = rewritten(model(text, held), FoldPad(), *feeds(2, x=(2, 4, 9, 8)))
    assert change.edits == 1
    assert ops(after)["Pad"] == 0


def test_zero_padding_of_a_tensor_that_is_never_negative_folds_into_maxpool() -> None:
    text = """g (float[n, 4, 9, 8] x) => (float[n, 4, u, v] y) {
        r = Relu(x)
        p = Pad<mode = "constant">(r, a)
        y = MaxPool<kernel_shape = [2, 2]>(p)
    }"""
    after, change = rewritten(model(text, {"a": pads(0, 0, 1, 0, 0, 0, 1, 0)}), FoldPad(), *feeds(2, x=(2, 4, 9, 8)))
    assert change.edits == 1
    assert the(after, "MaxPool").attrs["pads"] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("line", "padded", "value"),
    [
        ("MaxPool<kernel_shape = [2, 2]>(p)", (0, 0, 1, 0, 0, 0, 1, 0), 0.0),  # x may be negative: 0 would win
        ("MaxPool<kernel_shape = [2, 2]>(p)", (0, 0, 2, 0, 0, 0, 1, 0), float("-inf")),  # a window of padding alone
        ("Conv(p, w)", (0, 0, 1, 0, 0, 0, 1, 0), 1.0),
        ("Conv(p, w)", (0, 0, 1, 0, 0, 0, -1, 0), 0.0),
        ("AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(p)", (0, 0, 1, 0, 0, 0, 1, 0), 0.0),
        ("AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(p)", (0, 0, 1, 0, 0, 0, 1, 0), 0.0),
        ("Relu(p)", (0, 0, 1, 0, 0, 0, 1, 0), 0.0),
    ],
)
def test_pad_stays(line: str, padded: tuple[int, ...], value: float) -> None:
    text = f"g (float[n, 4, 9, 8] x) => (float[n, c, u, v] y) {{ p = Pad(x, a, z) y = {line} }}"
    held = {"a": pads(*padded), "z": np.float32(value)} | ({"w": weight(3, 4, 2, 3)} if "Conv" in line else {})
    after, change = rewritten(model(text, held), FoldPad(), *feeds(1, x=(2, 4, 9, 8)))
    assert change.edits == 0
    assert ops(after)["Pad"] == 1


def test_a_pad_with_another_reader_stays() -> None:
    text = """g (float[n, 4, 9, 8] x) => (float[n, 4, u, v] p, float[n, 3, s, t] y) {
        p = Pad(x, a)
        y = Conv(p, w)
    }"""
    held = {"a": pads(0, 0, 1, 1, 0, 0, 1, 1), "w": weight(3, 4, 3, 3)}
    _, change = rewritten(model(text, held), FoldPad(), *feeds(1, x=(2, 4, 9, 8)))
    assert change.edits == 0
