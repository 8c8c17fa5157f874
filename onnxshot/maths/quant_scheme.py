"""What a quantized tensor is made of: the type, the granularity, the scheme, and the params. Values only."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class NotFinite(ValueError):
    """An array holds NaN or infinity, so no range exists; the caller adds the tensor and the sample."""


@dataclass(frozen=True, slots=True)
class QuantType:
    """A storage type of quantized values: qmin..qmax are the values it may take, storage_name the numpy dtype.

    4-bit values are held one per byte; packing belongs to the file writer.
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
        """The numpy dtype; float8 and 4 bits come from ml_dtypes, which is imported only then."""
        if self.floating or self.bits == 4:
            import ml_dtypes

            dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, self.storage_name))
            return dtype
        return np.dtype(self.storage_name)


UINT8 = QuantType("uint8", 8, False, 0, 255, "uint8")
INT8 = QuantType("int8", 8, True, -128, 127, "int8")
INT7 = QuantType("int7", 7, True, -64, 63, "int8")  # pairs of u8 * s7 products fit int16: safe for vpmaddubsw
UINT16 = QuantType("uint16", 16, False, 0, 65535, "uint16")
INT16 = QuantType("int16", 16, True, -32768, 32767, "int16")
UINT4 = QuantType("uint4", 4, False, 0, 15, "uint4")
INT4 = QuantType("int4", 4, True, -8, 7, "int4")
INT32 = QuantType("int32", 32, True, -(2**31), 2**31 - 1, "int32")
FLOAT8E4M3FN = QuantType("float8e4m3fn", 8, True, -448, 448, "float8_e4m3fn", floating=True)


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale, shape ()."""


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
    """How a tensor is quantized: type, symmetric or not, and who shares a scale."""

    dtype: QuantType
    symmetric: bool = False
    granularity: Granularity = PerTensor()

    @property
    def midpoint(self) -> int:
        """The zero point of symmetric quantization: 0 for signed types, 2**(bits - 1) for unsigned ones."""
        return 0 if self.dtype.signed else 1 << (self.dtype.bits - 1)

    @property
    def limits(self) -> tuple[int, int]:
        """(smallest, largest) quantized value used.

        Symmetric integer schemes give up the lowest code (int8: -127..127, uint8: 1..255), so that -x and x cost the
        same and int8 * int8 pairs never meet (-128) * (-128). QuantizeLinear itself saturates one code lower. Blocks
        keep it: they are multiplied as floats, and of 4 bits it is a sixteenth of all codes.
        """
        if not self.symmetric or self.dtype.floating or isinstance(self.granularity, PerBlock):
            return self.dtype.qmin, self.dtype.qmax
        half = self.dtype.qmax - self.midpoint
        return self.midpoint - half, self.midpoint + half

    @property
    def is_symmetric(self) -> bool:
        """True where the zero point is fixed at the midpoint; float types always are."""
        return self.symmetric or self.dtype.floating


@dataclass(frozen=True, slots=True, eq=False)
class QuantParams:
    """Scale (float32) and zero point (storage dtype) of one tensor, same shape; see the layouts above."""

    scheme: QuantScheme
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
