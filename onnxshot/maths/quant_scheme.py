"""How a tensor is quantized, as values: its type, granularity and scheme, and its scale and zero point."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class NotFinite(ValueError):
    """An array holds NaN or infinity, so it has no range. The caller adds the names of the tensor and the sample."""


@dataclass(frozen=True, slots=True)
class QuantType:
    """A type of quantized values. In memory, 4-bit values take one byte each; `int4_packing` packs them for files.

    Attributes:
        name: as recipes and reports write it.
        bits: bits per value.
        signed: whether the type has negative values.
        qmin, qmax: smallest and largest value.
        storage_name: name of the numpy or ml_dtypes dtype.
        floating: whether it is a float type (float8), which has no zero point.
    """

    name: str
    bits: int
    signed: bool
    qmin: int
    qmax: int
    storage_name: str
    floating: bool = False

    @property
    def storage(self) -> np.dtype[Any]:
        """The numpy dtype. ml_dtypes, which has the float8 and 4-bit ones, is imported only when it is needed."""
        if self.floating or self.bits == 4:
            import ml_dtypes

            dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, self.storage_name))
            return dtype
        return np.dtype(self.storage_name)


UINT8 = QuantType("uint8", 8, False, 0, 255, "uint8")
INT8 = QuantType("int8", 8, True, -128, 127, "int8")
INT7 = QuantType("int7", 7, True, -64, 63, "int8")  # sums of two uint8 * int7 products fit int16 (vpmaddubsw)
UINT16 = QuantType("uint16", 16, False, 0, 65535, "uint16")
INT16 = QuantType("int16", 16, True, -32768, 32767, "int16")
UINT4 = QuantType("uint4", 4, False, 0, 15, "uint4")
INT4 = QuantType("int4", 4, True, -8, 7, "int4")
INT32 = QuantType("int32", 32, True, -(2**31), 2**31 - 1, "int32")
FLOAT8E4M3FN = QuantType("float8e4m3fn", 8, True, -448, 448, "float8_e4m3fn", floating=True)


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the tensor, shape ()."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale per index of ``axis``, shape [C]; ``axis`` may be negative."""

    axis: int


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One scale per ``size`` consecutive values along ``axis``; the last block may be shorter."""

    axis: int
    size: int


Granularity = PerTensor | PerChannel | PerBlock


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """How a tensor is quantized.

    Attributes:
        dtype: the quantized type.
        symmetric: whether the zero point is fixed at the midpoint of the type.
        granularity: which values share a scale: PerTensor, PerChannel or PerBlock.

    Example:
        >>> QuantScheme(INT8, symmetric=True, granularity=PerChannel(0)).limits
        (-127, 127)
    """

    dtype: QuantType
    symmetric: bool = False
    granularity: Granularity = PerTensor()

    @property
    def midpoint(self) -> int:
        """The zero point of symmetric quantization: 0 for signed types, 2**(bits - 1) for unsigned ones."""
        return 0 if self.dtype.signed else 1 << (self.dtype.bits - 1)

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest quantized value that is used.

        Symmetric integer schemes do not use the lowest value (int8: -127..127, uint8: 1..255), so that x and -x have
        the same error and the product (-128) * (-128) cannot occur. QuantizeLinear itself saturates at the lowest
        value. Blockwise schemes use it: their values are multiplied as floats, and it is one of only 16 values of int4.
        """
        if not self.symmetric or self.dtype.floating or isinstance(self.granularity, PerBlock):
            return self.dtype.qmin, self.dtype.qmax
        half = self.dtype.qmax - self.midpoint
        return self.midpoint - half, self.midpoint + half

    @property
    def is_symmetric(self) -> bool:
        """Whether the zero point is fixed at the midpoint; always true for float types."""
        return self.symmetric or self.dtype.floating


@dataclass(frozen=True, slots=True, eq=False)
class QuantParams:
    """Scale and zero point of a tensor.

    Attributes:
        scheme: how the tensor is quantized.
        scale: float32: () per tensor, [C] per channel, or one per block, as the module `affine` describes.
        zero_point: of the storage dtype and the shape of the scale.
    """

    scheme: QuantScheme
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
