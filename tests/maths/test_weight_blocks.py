"""Scales from blocks of rows equal those of the whole weight."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxshot.maths.affine import (
    INT4,
    INT8,
    UINT8,
    PerBlock,
    PerChannel,
    PerTensor,
    QuantScheme,
    quantize,
    weight_params,
)
from onnxshot.maths.quant_scheme import Granularity, NotFinite
from onnxshot.maths.weight_blocks import Blocks, params_of_blocks, params_of_rows, rows_of_scale


def weight() -> NDArray[np.float32]:
    w = np.random.default_rng(0).normal(size=(50, 24)).astype(np.float32)
    w[7], w[:, 3], w[16:32, 5] = 0.0, 0.0, 0.0
    return w


def in_blocks(w: NDArray[Any], step: int) -> Blocks:
    def blocks() -> Iterator[tuple[int, NDArray[Any]]]:
        for start in range(0, len(w), step):
            yield start, w[start : start + step]

    return blocks


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerChannel(0), PerChannel(1), PerChannel(-1), PerBlock(0, 16), PerBlock(1, 8)]
)
def test_params_and_integers_are_those_of_the_whole_weight(granularity: Granularity, method: str) -> None:
    w = weight()
    for dtype, symmetric in ((INT8, True), (UINT8, False), (INT4, True)):
        scheme = QuantScheme(dtype, symmetric, granularity)
        whole = weight_params(w, scheme, method=method)
        step = 16 if isinstance(granularity, PerBlock) else 7
        assert step % rows_of_scale(scheme, 2) == 0
        found = params_of_blocks(in_blocks(w, step), 2, scheme, method=method)
        np.testing.assert_array_equal(found.scale, whole.scale)
        np.testing.assert_array_equal(found.zero_point, whole.zero_point)
        parts = [quantize(b, params_of_rows(found, 2, at, at + len(b))) for at, b in in_blocks(w, step)()]
        np.testing.assert_array_equal(np.concatenate(parts).astype(int), quantize(w, whole).astype(int))


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1)])
def test_infinity_in_any_block_is_refused(granularity: Granularity) -> None:
    w = weight()
    w[40, 2] = np.inf
    with pytest.raises(NotFinite):
        params_of_blocks(in_blocks(w, 16), 2, QuantScheme(INT8, True, granularity), method="mse")
