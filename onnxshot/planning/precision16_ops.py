"""float16 and bfloat16, and a table of the operators that may compute in them, one row per operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto


@dataclass(frozen=True, slots=True)
class HalfType:
    """A 16-bit float type.

    Attributes:
        name: its name in `--precision`: "fp16" or "bf16".
        elem_type: ONNX element type (TensorProto.FLOAT16 or BFLOAT16).
        storage_name: name of the numpy dtype; bfloat16 comes from ml_dtypes.
        largest: largest absolute value that a node may reach, below the type's limit to leave room for values that
            calibration has not seen; None if the type has the range of float32.
        smallest: smallest normal number; smaller values lose bits or become 0. None if that of float32 applies.
        least_db: least SQNR in dB that rounding a constant must leave. Rounding usually leaves 9 dB more, for a single
            value at worst 3 dB more.
        integers: largest n such that all integers from 0 to n are exact.
        opset: first ONNX opset whose MatMul and Conv accept the type.
    """

    name: str
    elem_type: int
    storage_name: str
    largest: float | None
    smallest: float | None
    least_db: float
    integers: int
    opset: int

    @property
    def storage(self) -> np.dtype[Any]:
        """The numpy dtype."""
        if self.name == "bf16":
            import ml_dtypes

            dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return dtype
        return np.dtype(self.storage_name)


FP16 = HalfType("fp16", TensorProto.FLOAT16, "float16", 60_000.0, 2.0**-14, 63.0, 2048, 1)
BF16 = HalfType("bf16", TensorProto.BFLOAT16, "bfloat16", None, None, 45.0, 256, 22)  # Conv takes it from opset 22 on
HALVES = {kind.name: kind for kind in (FP16, BF16)}


@dataclass(frozen=True, slots=True)
class HalfOp:
    """How an operator computes in a 16-bit float type.

    Attributes:
        float_slots: indices of inputs that stay float32: positions and scale factors, for which rounding matters.
        gain: upper limit of the largest intermediate value, relative to the largest input value.
        sums: whether it sums input values: (input size / output size) of them per output value.
        divisor: index of the input that it divides by, which must not round to 0; None without one.
        product: whether it multiplies matrices, so that it is worth the Casts around it.
    """

    float_slots: tuple[int, ...] = ()
    gain: float = 1.0
    sums: bool = False
    divisor: int | None = None
    product: bool = False


_PLAIN, _PRODUCT, _SUM = HalfOp(), HalfOp(product=True), HalfOp(sums=True)

HALF_OPS: Mapping[str, HalfOp] = {
    # All runtimes here accumulate products in float32. Calibration observes the results.
    **dict.fromkeys(("Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"), _PRODUCT),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceL1", "ReduceMean", "ReduceSum"), _SUM),
    **dict.fromkeys(
        (
            "Abs", "Add", "Cast", "Celu", "Clip", "Compress", "Concat", "DepthToSpace", "Elu", "Erf", "Expand",
            "Flatten", "Gather", "GatherElements", "GatherND", "GlobalMaxPool", "HardSigmoid", "Identity", "LeakyRelu",
            "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape",
            "ReverseSequence", "ScatterElements", "ScatterND", "Selu", "Sigmoid", "Slice", "Softsign", "SpaceToDepth",
            "Split", "Sqrt", "Squeeze", "Sub", "Swish", "Tanh", "ThresholdedRelu", "Tile", "Transpose", "Trilu",
            "Unsqueeze", "Where",
        ),
        _PLAIN,
    ),
    "Div": HalfOp(divisor=1),
    "Dropout": HalfOp(float_slots=(1,)),
    "Gelu": HalfOp(gain=2.0),  # x * (1 + erf(x / sqrt 2))
    "HardSwish": HalfOp(gain=6.0),  # x * min(max(x + 3, 0), 6)
    "Reciprocal": HalfOp(divisor=0),
    "Resize": HalfOp(float_slots=(1, 2)),
    "Upsample": HalfOp(float_slots=(1,)),
}  # fmt: skip

_NORMALIZES = "it sums squares, which overflow or underflow in 16 bits"
_EXPONENTIAL = "it computes an exponential, which overflows in 16 bits"
_ORDERS = "rounding to 16 bits may change the order of values"
_COMPARES = "rounding to 16 bits may change the result of a comparison"
_ROUNDS = "16 bits hold no fractions of large values"
_ANGLE = "16 bits are too few for angles and positions"

FLOAT_OPS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LRN", "LayerNormalization",
            "LpNormalization", "MeanVarianceNormalization", "RMSNormalization", "LpPool", "GlobalLpPool", "ReduceProd",
        ),
        _NORMALIZES,
    ),
    **dict.fromkeys(
        (
            "Attention", "Cosh", "Exp", "LogSoftmax", "Log", "Mish", "ReduceLogSum", "ReduceLogSumExp", "Sinh",
            "Softmax", "Softplus",
        ),
        _EXPONENTIAL,
    ),
    **dict.fromkeys(("ArgMax", "ArgMin", "Hardmax", "NonMaxSuppression", "TopK", "Unique"), _ORDERS),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "NonZero", "Sign"), _COMPARES),
    **dict.fromkeys(("Ceil", "CumSum", "Floor", "Mod", "Range", "Round"), _ROUNDS),
    **dict.fromkeys(("Acos", "Asin", "Atan", "Cos", "GridSample", "RoiAlign", "RotaryEmbedding", "Sin", "Tan"), _ANGLE),
    **dict.fromkeys(("If", "Loop", "Scan"), "it has a subgraph, where activations are not calibrated"),
}  # fmt: skip
"""Operator -> skip reason, for operators that stay float32. Operators in neither table stay float32 as well."""

ANY_TYPE = frozenset({"Cast", "Shape", "Size"})
"""Operators that read a tensor of any type, and whose result type does not depend on it."""

SQUARES = frozenset({"Pow", "ReduceL2", "ReduceSumSquare"})
"""Operators that square their input, as a Mul of a tensor with itself does."""
SUMS_SQUARES = frozenset({"Add", "GlobalAveragePool", "ReduceMean", "ReduceSum"})
"""Operators that sum squares on the way to a norm (the square root of the sum)."""
