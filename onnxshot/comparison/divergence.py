"""Kullback-Leibler divergence of the distributions that two models give, in nats, in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BLOCK = 1 << 20  # scores: 8 MB in float64
_LEAST = 1.2e-38  # the smallest normal float32: a softmax in float32 stores less likely classes as 0


def row_blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of consecutive rows that hold about 2**20 values each, and one row at least."""
    step = max(1, _BLOCK // max(width, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def log_softmax(scores: NDArray[Any]) -> Floats:
    """Logarithms of the softmax of each row. A row without a finite maximum becomes NaN.

    Args:
        scores: [rows, classes] logits, or logarithms of probabilities.
    """
    found = scores.astype(np.float64)
    with np.errstate(all="ignore"):
        found -= found.max(-1, keepdims=True)
        found -= np.log(np.exp(found).sum(-1, keepdims=True))
    return found


def log_probabilities(rows: NDArray[Any], *, soft: bool) -> Floats:
    """Logarithms of the distribution of each row.

    Args:
        rows: [rows, classes] values.
        soft: The rows are probabilities; else logits, or logarithms of probabilities.
    """
    return log_softmax(np.log(np.maximum(rows.astype(np.float64), _LEAST)) if soft else rows)


def divergences(wanted: Floats, got: Floats) -> Floats:
    """The Kullback-Leibler divergence of each row: sum of p * (ln p - ln q), in nats.

    Args:
        wanted: [rows, classes] logarithms of the float model's probabilities p.
        got: The same of the candidate's q.

    Returns:
        [rows] nats, 0 or more up to rounding; NaN where a row is not finite.
    """
    share = np.exp(wanted)
    with np.errstate(all="ignore"):
        # A class that the float model excludes adds nothing; one that only the candidate excludes counts as rare.
        apart = np.where(share > 0.0, wanted - np.maximum(got, np.log(_LEAST)), 0.0)
    found: Floats = np.einsum("ij,ij->i", share, np.where(np.isnan(got), np.nan, apart))
    return found
