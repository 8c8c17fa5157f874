"""The integers of a weight in blocks, packed, with scales and zero points."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths.affine import dequantize
from onnxshot.maths.int4_packing import unpack_bits
from onnxshot.maths.quant_scheme import QuantParams


@dataclass(frozen=True, eq=False, slots=True)
class BlockCodes:
    """A weight as unsigned integers of 4 or 8 bits, seen as a matrix of N outputs and K inputs.

    Attributes:
        packed: the integers as bytes [N, n]: those of 4 bits two to a byte, the first in the low half.
        params: scales and zero points [N, ceil(K / size)].
        inputs: K.

    Example:
        >>> from onnxshot.maths.affine import UINT4, PerBlock, QuantScheme
        >>> scheme = QuantScheme(UINT4, symmetric=True, granularity=PerBlock(1, 16))
        >>> params = QuantParams(scheme, np.full((1, 1), 0.5, np.float32), np.full((1, 1), 8, np.uint8))
        >>> BlockCodes.of(np.array([[9, 0, 15]], np.uint8), params).floats().tolist()
        [[0.5, -4.0, 3.5]]
    """

    packed: NDArray[np.uint8]
    params: QuantParams
    inputs: int

    @classmethod
    def of(cls, codes: NDArray[Any], params: QuantParams) -> BlockCodes:
        """Pack integers [N, K]."""
        whole: NDArray[Any] = codes.astype(np.uint8)
        inputs = codes.shape[1]
        if params.scheme.dtype.bits == 4:
            whole = np.pad(whole, ((0, 0), (0, inputs % 2)))
            whole = whole[:, 0::2] | (whole[:, 1::2] << 4)
        params = replace(params, zero_point=np.asarray(params.zero_point).astype(np.uint8))
        return cls(whole, params, inputs)

    @classmethod
    def joined(cls, parts: Iterable[BlockCodes]) -> BlockCodes:
        """Outputs that were made one after another, as one weight."""
        made = list(parts)
        scale, zero = (np.concatenate([getattr(m.params, n) for m in made]) for n in ("scale", "zero_point"))
        packed = np.concatenate([m.packed for m in made])
        return cls(packed, QuantParams(made[0].params.scheme, scale, zero), made[0].inputs)

    def codes(self) -> NDArray[np.uint8]:
        """The integers [N, K], one a byte."""
        return unpack_bits(self.packed, self.params.scheme.dtype.bits)[:, : self.inputs]

    def floats(self) -> NDArray[np.float32]:
        """What the integers stand for [N, K]."""
        return dequantize(self.codes(), self.params)

    def read(self) -> tuple[NDArray[np.uint8], QuantParams]:
        """The integers [N, K], one a byte, with scales and zero points."""
        return self.codes(), self.params

    def rows(self, part: slice) -> BlockCodes:
        """Some of the outputs."""
        params = replace(self.params, scale=self.params.scale[part], zero_point=self.params.zero_point[part])
        return replace(self, packed=self.packed[part], params=params)

    def kept(self, keep: Callable[[NDArray[Any]], NDArray[Any]]) -> BlockCodes:
        """A copy whose arrays `keep` has put elsewhere."""
        params = replace(self.params, scale=keep(self.params.scale), zero_point=keep(self.params.zero_point))
        return replace(self, packed=keep(self.packed), params=params)
