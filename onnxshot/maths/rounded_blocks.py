"""A weight in blocks: its integers, packed, with scales and zero points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths.affine import dequantize
from onnxshot.maths.quant_scheme import QuantParams


@dataclass(frozen=True, eq=False, slots=True)
class RoundedBlocks:
    """A weight as integers, seen as a matrix of outputs and inputs. Experts lie one below the other.

    Attributes:
        packed: the integers as bytes [N, n]: those of 4 bits two to a byte, the first in the low half.
        params: scales and zero points [N, ceil(K / size)].
        inputs: K.

    Example:
        >>> from onnxshot.maths.affine import INT4, PerBlock, QuantScheme
        >>> scheme = QuantScheme(INT4, symmetric=True, granularity=PerBlock(1, 16))
        >>> params = QuantParams(scheme, np.full((1, 1), 0.5, np.float32), np.zeros((1, 1), np.int8))
        >>> RoundedBlocks.of(np.array([[1, -8, 7]], np.int8), params).floats().tolist()
        [[0.5, -4.0, 3.5]]
    """

    packed: NDArray[np.uint8]
    params: QuantParams
    inputs: int

    @classmethod
    def of(cls, codes: NDArray[Any], params: QuantParams) -> RoundedBlocks:
        """Pack integers [N, K] of the scheme's type."""
        whole = codes.astype(np.int8 if params.scheme.dtype.signed else np.uint8).view(np.uint8)
        return cls(_packed(whole) if params.scheme.dtype.bits == 4 else whole, params, codes.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the integers, scales and zero points in memory."""
        return self.packed.nbytes + self.params.scale.nbytes + self.params.zero_point.nbytes

    def codes(self) -> NDArray[Any]:
        """The integers [N, K], one a byte: int8 or uint8."""
        dtype = self.params.scheme.dtype
        if dtype.bits == 8:
            return self.packed.view(np.int8 if dtype.signed else np.uint8)
        halves = np.stack([self.packed & 15, self.packed >> 4], axis=-1)
        found = halves.reshape(len(self.packed), -1)[:, : self.inputs]
        return (found ^ 8).view(np.int8) - np.int8(8) if dtype.signed else found

    def floats(self) -> NDArray[np.float32]:
        """What the integers stand for [N, K]."""
        return dequantize(self.codes(), self.params)

    def rows(self, part: slice) -> RoundedBlocks:
        """Some of the outputs."""
        params = replace(self.params, scale=self.params.scale[part], zero_point=self.params.zero_point[part])
        return replace(self, packed=self.packed[part], params=params)

    def kept(self, keep: Callable[[NDArray[Any]], NDArray[Any]]) -> RoundedBlocks:
        """A copy whose arrays `keep` has put elsewhere."""
        params = replace(self.params, scale=keep(self.params.scale), zero_point=keep(self.params.zero_point))
        return replace(self, packed=keep(self.packed), params=params)


def _packed(whole: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if whole.shape[1] % 2:
        whole = np.pad(whole, ((0, 0), (0, 1)))
    found: NDArray[np.uint8] = (whole[:, 0::2] & 15) | (whole[:, 1::2] << 4)
    return found
