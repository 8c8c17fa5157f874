"""Ways to round a product's weight, and which of them gives the best outputs on rows that nothing was learned from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from onnxshot import memory
from onnxshot.maths.affine import quantize
from onnxshot.maths.bias_correction import shrunk_mean
from onnxshot.maths.block_codes import BlockCodes
from onnxshot.maths.block_rounding import Spread, round_blocks, spread_of
from onnxshot.maths.block_scales import fit_blocks
from onnxshot.maths.quant_scheme import NotFinite, QuantParams
from onnxshot.recovery.block_products import Product
from onnxshot.recovery.block_rows import Inputs

Floats = NDArray[np.float32]

_MOMENT_BYTES = 48  # that rounding takes for each of K * K second moments, and
_MOMENTS_SHARE = 2  # the share of the budget that it may take; inputs of products with more are rounded in parts
_TRIED_OUTPUTS = 128  # outputs of a product that ways to round it are compared on
_SLAB = 32 << 20  # bytes of a weight in float32 that are rounded at a time
_DAMPINGS = (0.0, 0.1, 1.0)  # shares of the mean second moment: the more, the less is learned from few or like rows


@dataclass(frozen=True, slots=True)
class Choice:
    """How a product is rounded.

    Attributes:
        damping: what is added to its second moments, as a share of their mean; None if it is rounded without data.
        db: SQNR of its outputs in dB on rows that were not learned from, given the inputs of the quantized network.
        plain_db: the same if it were rounded without data.
    """

    damping: float | None
    db: float = math.nan
    plain_db: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there were rows to decide."""
        return not math.isnan(self.db)


class Trial:
    """The ways to round products that read the same inputs.

    Memory: the second moments of all inputs, or of a part of them where those take more than their share of the budget.

    Args:
        got: inputs in the quantized network.
        wanted: inputs in the float network.
    """

    def __init__(self, got: Inputs, wanted: Inputs) -> None:
        self._got, self._wanted = got, wanted
        columns, size = got.product.inputs, got.product.size
        afford = math.isqrt(memory.budget() // (_MOMENTS_SHARE * _MOMENT_BYTES))
        whole = -(-columns // size)  # blocks
        self.parts = min(-(-columns // max(afford, 1)), whole)
        starts = [int(blocks[0]) * size for blocks in np.array_split(np.arange(whole), self.parts)]
        self._slices = [slice(a, b) for a, b in zip(starts, [*starts[1:], columns], strict=True)]
        self._moments: dict[bool, NDArray[np.float64]] = {}
        self._spreads: dict[tuple[bool, int, float], Spread] = {}
        self._damping: dict[bool, float | None] = {}
        self._checks = wanted.checks(), got.checks()

    @cached_property
    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means of the inputs of each sample [S, K], in the float network and in the quantized one."""
        return self._wanted.means(), self._got.means()

    def missing(self, table: NDArray[Any], floats: Floats) -> NDArray[np.float64]:
        """What the mean output lacks [N], given the weight [N, K] in both networks; less of what may be an accident."""
        wanted, got = self.means
        return shrunk_mean(wanted @ table.T.astype(np.float64) - got @ floats.T.astype(np.float64))

    def choose(self, product: Product, table: NDArray[Any], scale_type: DTypeLike) -> Choice:
        """Find the best way to round a product, on some of its outputs.

        The damping is chosen once for products with a bias, and once for those without.

        Args:
            product: the product.
            table: its weight [N, K].
            scale_type: the type that scales are stored in.
        """
        if not len(self._checks[0]):
            return Choice(None)
        at = np.linspace(0, len(table) - 1, min(_TRIED_OUTPUTS, len(table))).astype(np.int64)
        some = np.ascontiguousarray(table[at], np.float32)
        centred = bool(product.bias)
        try:
            params = fit_blocks(some, product.scheme, None, scale_type)
            plain = self._db(some, dequantized(some, params), centred=centred)
            known = self._damping.get(centred)
            tried = {
                damping: self._db(some, self._tried(product, some, damping, scale_type), centred=centred)
                for damping in (_DAMPINGS if known is None else (known,))
            }
        except (NotFinite, np.linalg.LinAlgError):  # the caller's own error names the weight
            return Choice(None)
        best = max(tried, key=lambda damping: tried[damping])
        self._damping.setdefault(centred, best)
        return Choice(best, tried[best], plain) if tried[best] > plain else Choice(None, plain, plain)

    def rounded(
        self, product: Product, table: NDArray[Any], damping: float, scale_type: DTypeLike
    ) -> Iterator[BlockCodes]:
        """Yield the integers of a weight [N, K], some rows at a time."""
        if self.parts == 1:
            spread = self._spread(slice(0, product.inputs), product, damping)
            for rows in slabs(table.shape):
                part = np.ascontiguousarray(table[rows], np.float32)
                yield BlockCodes.of(*round_blocks(part, spread, product.scheme, None, scale_type))
            return
        found = []
        for columns in self._slices:
            spread = self._spread(columns, product, damping)
            part = np.ascontiguousarray(table[:, columns], np.float32)
            found.append(round_blocks(part, spread, product.scheme, None, scale_type))
        codes = np.concatenate([codes for codes, _ in found], axis=1)
        scale, zero = (np.concatenate([getattr(p, n) for _, p in found], axis=1) for n in ("scale", "zero_point"))
        yield BlockCodes.of(codes, QuantParams(product.scheme, scale, zero))

    def _tried(self, product: Product, some: Floats, damping: float, scale_type: DTypeLike) -> Floats:
        return BlockCodes.joined(self.rounded(product, some, damping, scale_type)).floats()

    def _spread(self, columns: slice, product: Product, damping: float) -> Spread:
        centred = bool(product.bias)
        if self.parts > 1:
            return spread_of(_damped(self._of(columns, centred=centred), damping), product.size)
        key = (centred, product.size, damping)
        if key not in self._spreads:
            if centred not in self._moments:
                self._moments[centred] = self._of(columns, centred=centred)
            self._spreads[key] = spread_of(_damped(self._moments[centred], damping), product.size)
        return self._spreads[key]

    def _of(self, columns: slice, *, centred: bool) -> NDArray[np.float64]:
        return self._got.moments(columns, self.means[1].mean(axis=0) if centred else None)

    def _db(self, table: Floats, floats: Floats, *, centred: bool) -> float:
        """SQNR of the outputs in dB, given the weight [N, K] in the quantized network."""
        wanted = self._checks[0] @ table.T
        left = wanted - self._checks[1] @ floats.T
        if centred:
            left -= self.missing(table, floats).astype(np.float32)
        error, signal = (float(np.square(values, dtype=np.float64).sum()) for values in (left, wanted))
        return 10 * math.log10(max(signal, 1e-30) / max(error, 1e-30))


def dequantized(weight: Floats, params: QuantParams) -> Floats:
    """What a weight [N, K] becomes if it is rounded to nearest."""
    return BlockCodes.of(quantize(weight, params), params).floats()


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of the rows of a matrix with some bytes each."""
    step = max(1, _SLAB // (4 * max(shape[1], 1)))
    yield from (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def _damped(moments: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    """Moments with more on their diagonal."""
    if not damping:
        return moments
    found = moments.copy()
    found[np.diag_indices(len(found))] += damping * float(moments.diagonal().mean())
    return found
