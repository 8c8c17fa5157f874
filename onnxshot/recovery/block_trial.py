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
from onnxshot.maths.block_rounding import Spread, round_blocks, shrinkage_for, spread_of
from onnxshot.maths.block_scales import fit_blocks
from onnxshot.maths.quant_scheme import NotFinite, QuantParams, QuantScheme
from onnxshot.recovery.block_products import Product
from onnxshot.recovery.block_rows import Inputs

Floats = NDArray[np.float32]

_MOMENT_BYTES = 48  # that rounding takes for each of K * K second moments, and
_MOMENTS_SHARE = 2  # the share of the budget that it may take; inputs of products with more are rounded in parts
_TRIED_OUTPUTS = 128  # outputs of a product that ways to round it are compared on
_SLAB = 32 << 20  # bytes of a weight in float32 that are rounded at a time
_SHRINKAGES = (1.0, 2.5)  # of the moments towards their diagonal, as multiples of what the number of rows suggests
_MOST_SHRUNK = 0.6  # unless the number of rows suggests more


@dataclass(frozen=True, slots=True)
class Choice:
    """How a product is rounded.

    Attributes:
        shrinkage: of its second moments towards their diagonal, 0 to 1; None if it is rounded without data.
        db: SQNR of its outputs in dB on rows that were not learned from, given the inputs of the quantized network.
        plain_db: the same if it were rounded without data.
    """

    shrinkage: float | None
    db: float = math.nan
    plain_db: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there were rows to decide."""
        return not math.isnan(self.db)


@dataclass(frozen=True, slots=True)
class Scales:
    """How scales are stored.

    Attributes:
        dtype: float32, float16 or bfloat16.
        signed: whether they may be negative where the scheme is symmetric.
    """

    dtype: DTypeLike = np.float32
    signed: bool = False

    def fitted(self, weight: Floats, scheme: QuantScheme) -> BlockCodes:
        """Round a weight [N, K] without data."""
        params = fit_blocks(weight, scheme, None, self.dtype, signed_scales=self.signed)
        return BlockCodes.of(quantize(weight, params), params)

    def rounded(self, weight: Floats, spread: Spread, scheme: QuantScheme) -> tuple[NDArray[Any], QuantParams]:
        """Round a weight [N, K] with data."""
        return round_blocks(weight, spread, scheme, None, self.dtype, signed_scales=self.signed)


class Trial:
    """The ways to round products that read the same inputs.

    Memory: the second moments of all inputs, or of a part of them where those take more than their share of the budget.

    Args:
        got: inputs in the quantized network.
        wanted: inputs in the float network.
        corrects: whether biases are corrected, so that products with one need not keep the mean of their outputs.
    """

    def __init__(self, got: Inputs, wanted: Inputs, *, corrects: bool = True) -> None:
        self._got, self._wanted, self._corrects = got, wanted, corrects
        columns, size = got.product.inputs, got.product.size
        afford = math.isqrt(memory.budget() // (_MOMENTS_SHARE * _MOMENT_BYTES))
        whole = -(-columns // size)  # blocks
        self.parts = min(-(-columns // max(afford, 1)), whole)
        starts = [int(blocks[0]) * size for blocks in np.array_split(np.arange(whole), self.parts)]
        self._slices = [slice(a, b) for a, b in zip(starts, [*starts[1:], columns], strict=True)]
        self._moments: dict[bool, NDArray[np.float64]] = {}
        self._spreads: dict[tuple[bool, int, float], Spread] = {}
        self._shrinkages: dict[bool, float] = {}
        self._rows = got.count()
        self._checks = wanted.checks(), got.checks()

    @cached_property
    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means of the inputs of each sample [S, K], in the float network and in the quantized one."""
        return self._wanted.means(), self._got.means()

    def missing(self, table: NDArray[Any], floats: Floats) -> NDArray[np.float64]:
        """What the mean output lacks [N], given the weight [N, K] in both networks; less of what may be an accident."""
        wanted, got = self.means
        return shrunk_mean(wanted @ table.T.astype(np.float64) - got @ floats.T.astype(np.float64))

    def choose(self, product: Product, table: NDArray[Any], scales: Scales) -> Choice:
        """Find the best way to round a product, on some of its outputs.

        The shrinkage is chosen once for products with a bias, and once for those without.

        Args:
            product: the product.
            table: its weight [N, K].
            scales: how scales are stored.
        """
        if not len(self._checks[0]):
            return Choice(None)
        at = np.linspace(0, len(table) - 1, min(_TRIED_OUTPUTS, len(table))).astype(np.int64)
        some = np.ascontiguousarray(table[at], np.float32)
        centred = self._centred(product)
        try:
            plain = self._db(some, scales.fitted(some, product.scheme).floats(), centred=centred)
            known = self._shrinkages.get(centred)
            tried = {
                share: self._db(some, self._tried(product, some, share, scales), centred=centred)
                for share in (self._suggested if known is None else (known,))
            }
        except (NotFinite, np.linalg.LinAlgError):  # the caller's own error names the weight
            return Choice(None)
        best = max(tried, key=lambda share: tried[share])
        self._shrinkages.setdefault(centred, best)
        return Choice(best, tried[best], plain) if tried[best] > plain else Choice(None, plain, plain)

    @property
    def _suggested(self) -> list[float]:
        columns = self._slices[0].stop
        usual = shrinkage_for(columns, self._rows)
        return [min(usual * by, max(usual, _MOST_SHRUNK)) for by in _SHRINKAGES]

    def rounded(self, product: Product, table: NDArray[Any], shrinkage: float, scales: Scales) -> Iterator[BlockCodes]:
        """Yield the integers of a weight [N, K], some rows at a time."""
        if self.parts == 1:
            spread = self._spread(slice(0, product.inputs), product, shrinkage)
            for rows in slabs(table.shape):
                part = np.ascontiguousarray(table[rows], np.float32)
                yield BlockCodes.of(*scales.rounded(part, spread, product.scheme))
            return
        found = []
        for columns in self._slices:
            spread = self._spread(columns, product, shrinkage)
            part = np.ascontiguousarray(table[:, columns], np.float32)
            found.append(scales.rounded(part, spread, product.scheme))
        codes = np.concatenate([codes for codes, _ in found], axis=1)
        scale, zero = (np.concatenate([getattr(p, n) for _, p in found], axis=1) for n in ("scale", "zero_point"))
        yield BlockCodes.of(codes, QuantParams(product.scheme, scale, zero))

    def _tried(self, product: Product, some: Floats, shrinkage: float, scales: Scales) -> Floats:
        return BlockCodes.joined(self.rounded(product, some, shrinkage, scales)).floats()

    def _centred(self, product: Product) -> bool:
        return self._corrects and bool(product.bias)

    def _spread(self, columns: slice, product: Product, shrinkage: float) -> Spread:
        centred = self._centred(product)
        if self.parts > 1:
            return spread_of(self._of(columns, centred=centred), product.size, shrinkage=shrinkage)
        key = (centred, product.size, shrinkage)
        if key not in self._spreads:
            if centred not in self._moments:
                self._moments[centred] = self._of(columns, centred=centred)
            self._spreads[key] = spread_of(self._moments[centred], product.size, shrinkage=shrinkage)
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


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of the rows of a matrix with some bytes each."""
    step = max(1, _SLAB // (4 * max(shape[1], 1)))
    yield from (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))
