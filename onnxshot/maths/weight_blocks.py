"""Scales of a weight that is read in blocks of rows, so that it is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths.affine import CLIP_RATIOS, clipped_range, params_from_range, params_of_weight, squared_error
from onnxshot.maths.quant_scheme import PerBlock, PerChannel, PerTensor, QuantParams, QuantScheme

Blocks = Callable[[], Iterator[tuple[int, NDArray[Any]]]]
"""Gives the blocks of a weight from its first row on, as (number of the first row, rows); may be called again."""


def rows_of_scale(scheme: QuantScheme, rank: int) -> int:
    """Number of rows whose multiples blocks must begin at: the block size, where scales are per block of rows."""
    granularity = scheme.granularity
    return granularity.size if isinstance(granularity, PerBlock) and range(rank)[granularity.axis] == 0 else 1


def params_of_blocks(blocks: Blocks, rank: int, scheme: QuantScheme, *, method: str = "minmax") -> QuantParams:
    """Compute what `affine.weight_params` computes, from blocks of rows.

    Args:
        blocks: the weight, float, at least one block. Blocks begin at multiples of `rows_of_scale`.
        rank: number of axes of the weight.
        scheme: type, symmetry and granularity.
        method: "minmax" or "mse".

    Raises:
        NotFinite: the weight holds NaN or infinity.
    """
    if _are_apart(scheme, rank):
        found = [clipped_range(block, scheme, method) for _, block in blocks()]
        low, high = (np.concatenate(parts, axis=0) for parts in zip(*found, strict=True))
        return params_of_weight(low, high, scheme)
    found = [clipped_range(block, scheme, "minmax") for _, block in blocks()]
    low, high = reduce(np.minimum, [part[0] for part in found]), reduce(np.maximum, [part[1] for part in found])
    if method == "mse":
        candidates = [params_from_range(low * ratio, high * ratio, scheme) for ratio in CLIP_RATIOS]
        errors = np.zeros((len(candidates), *low.shape))
        for _, block in blocks():
            for i, params in enumerate(candidates):
                errors[i] += squared_error(block, params)
        ratio = np.array(CLIP_RATIOS)[np.argmin(errors, axis=0)]  # of equal errors, that of the one that clips least
        low, high = low * ratio, high * ratio
    return params_of_weight(low, high, scheme)


def params_of_rows(params: QuantParams, rank: int, start: int, stop: int) -> QuantParams:
    """The scales and zero points of rows `start` to `stop`; `start` is a multiple of `rows_of_scale`."""
    if not _are_apart(params.scheme, rank):
        return params
    size = rows_of_scale(params.scheme, rank)
    where = slice(start // size, -(-stop // size))
    return replace(params, scale=params.scale[where], zero_point=params.zero_point[where])


def _are_apart(scheme: QuantScheme, rank: int) -> bool:
    """Whether no scale belongs to two rows, or to two blocks of rows."""
    granularity = scheme.granularity
    if isinstance(granularity, PerTensor):
        return False
    return isinstance(granularity, PerBlock) or (
        isinstance(granularity, PerChannel) and range(rank)[granularity.axis] == 0
    )
