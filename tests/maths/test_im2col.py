"""Patches times the weight equal the convolution, for all attributes of Conv."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxshot.maths.im2col import patches

Floats = NDArray[np.float32]


def reference(x: Floats, w: Floats, strides: list[int], dilations: list[int], pads: list[int], group: int) -> Floats:
    """Conv of one sample x [C, *in] with w [O, C / group, *kernel], by onnx's own evaluator: [O, *out]."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=strides, dilations=dilations, pads=pads, group=group)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xwy"]
    graph = helper.make_graph([node], "g", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (y,) = ReferenceEvaluator(model).run(None, {"x": x[None], "w": w})
    found: Floats = y[0]
    return found


def by_patches(
    x: Floats, w: Floats, strides: list[int], dilations: list[int], pads: list[int], group: int, at: NDArray[np.int64],
    sizes: tuple[int, ...],
) -> Floats:  # fmt: skip
    """The same at flat positions: [O, P]."""
    rank = x.ndim - 1
    taken = patches(
        x, at, sizes, kernel=w.shape[2:], strides=strides, dilations=dilations, begin=pads[:rank], fill=0.0
    )
    assert taken.shape == (len(at), x.shape[0], int(np.prod(w.shape[2:])))
    grouped = taken.reshape(len(at), group, -1)
    table = w.reshape(group, w.shape[0] // group, -1)
    found: Floats = np.einsum("pgk,gok->gop", grouped, table).reshape(w.shape[0], len(at))
    return found


def check(
    shape: tuple[int, ...], kernel: tuple[int, ...], strides: list[int], dilations: list[int], pads: list[int],
    group: int = 1, seed: int = 0,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    w = rng.standard_normal((2 * group, shape[0] // group, *kernel)).astype(np.float32)
    wanted = reference(x, w, strides, dilations, pads, group)
    sizes = wanted.shape[1:]
    at = rng.permutation(int(np.prod(sizes))).astype(np.int64)  # in any order
    found = by_patches(x, w, strides, dilations, pads, group, at, sizes)
    np.testing.assert_allclose(found, wanted.reshape(len(w), -1)[:, at], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "dilations", "pads", "group"),
    [
        ((3, 11), (3,), [1], [1], [0, 0], 1),
        ((3, 11), (3,), [2], [2], [3, 1], 1),
        ((3, 7, 9), (3, 3), [1, 1], [1, 1], [1, 1, 1, 1], 1),
        ((3, 7, 9), (3, 2), [2, 3], [1, 2], [0, 2, 3, 1], 1),
        ((4, 6, 5), (3, 3), [1, 1], [1, 1], [1, 1, 1, 1], 4),
        ((6, 6, 5), (1, 1), [2, 2], [1, 1], [0, 0, 0, 0], 2),
        ((2, 4, 5, 6), (2, 3, 1), [1, 2, 1], [2, 1, 1], [1, 0, 0, 0, 2, 1], 2),
    ],
)
def test_patches_times_the_weight_are_the_convolution(
    shape: tuple[int, ...], kernel: tuple[int, ...], strides: list[int], dilations: list[int], pads: list[int],
    group: int,
) -> None:  # fmt: skip
    check(shape, kernel, strides, dilations, pads, group)


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_patches_of_random_convolutions(rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = tuple(rng.integers(1, 4, rank).tolist())
    strides, dilations = rng.integers(1, 4, rank).tolist(), rng.integers(1, 3, rank).tolist()
    pads = rng.integers(0, 4, 2 * rank).tolist()
    least = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    group = int(rng.integers(1, 4))
    shape = (group * int(rng.integers(1, 3)), *(n + int(rng.integers(0, 4)) for n in least))
    check(shape, kernel, strides, dilations, pads, group, seed)


def test_selected_positions_are_rows_of_all_positions() -> None:
    x = np.arange(2 * 5 * 6, dtype=np.float32).reshape(2, 5, 6)
    how = {"kernel": (3, 3), "strides": (1, 1), "dilations": (1, 1), "begin": (1, 1), "fill": 0.0}
    every = patches(x, np.arange(30), (5, 6), **how)
    np.testing.assert_array_equal(patches(x, np.asarray([7, 0, 29, 7]), (5, 6), **how), every[[7, 0, 29, 7]])


def test_padding_is_the_zero_point_and_the_dtype_is_kept() -> None:
    x = np.full((2, 3, 3), 9, np.uint8)
    corner = patches(
        x, np.asarray([0]), (3, 3), kernel=(3, 3), strides=(1, 1), dilations=(1, 1), begin=(1, 1),
        fill=np.asarray(128, np.uint8),
    )  # fmt: skip
    assert corner.dtype == np.uint8
    assert corner.reshape(2, 3, 3).tolist() == [[[128, 128, 128], [128, 9, 9], [128, 9, 9]]] * 2
