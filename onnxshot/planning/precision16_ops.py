"""What is known of floats of 16 bits, and of each operator that may compute in them: one table row per op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto


@dataclass(frozen=True, slots=True)
class HalfType:
    """A float type of 16 bits.

    Attributes:
        name: what `--precision` calls it.
        elem_type: the ONNX element type.
        storage_name: the numpy dtype; that of bf16 comes from ml_dtypes.
        largest: absolute values up to this one are taken to fit, with some room for what calibration has not seen; None
            where all of float32 fits.
        smallest: below it values lose bits, and at last become 0; None where that is so of float32 only.
        least_db: SQNR in dB that rounding must leave: by rule it leaves 9 more, for one value at worst 3 more.
        integers: integers up to this one are exact.
        opset: the first one whose products take the type.
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
    """How an operator computes in 16 bits.

    Attributes:
        float_slots: inputs that stay float32: positions and factors that more than a rounding hangs on.
        gain: the largest value inside is at most so many times the largest input.
        sums: it sums as many values of its input as its output has fewer.
        divisor: the input that it divides by, which must not round to 0.
        product: worth the casts around it.
    """

    float_slots: tuple[int, ...] = ()
    gain: float = 1.0
    sums: bool = False
    divisor: int | None = None
    product: bool = False


_PLAIN, _PRODUCT, _SUM = HalfOp(), HalfOp(product=True), HalfOp(sums=True)

HALF_OPS: Mapping[str, HalfOp] = {
    # Products are summed in float32 by every runtime here; what they give was seen by calibration.
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

_NORMALIZES = "it sums squares, which overflow or vanish in 16 bits"
_EXPONENTIAL = "it computes an exponential, which overflows in 16 bits"
_ORDERS = "rounded values are in another order"
_COMPARES = "rounded values compare otherwise"
_ROUNDS = "of large values 16 bits hold no fractions"
_ANGLE = "an angle rounded to 16 bits is another one"

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
    **dict.fromkeys(("If", "Loop", "Scan"), "a branch or a loop, whose inside is not calibrated"),
}  # fmt: skip
"""Why some operators stay float32; others that are in neither table are not known to be safe."""

ANY_TYPE = frozenset({"Cast", "Shape", "Size"})
"""Operators that read a tensor of any type, and give what does not depend on it."""

SQUARES = frozenset({"Pow", "ReduceL2", "ReduceSumSquare"})
"""Operators that square; so does a Mul of a tensor with itself."""
SUMS_SQUARES = frozenset({"Add", "GlobalAveragePool", "ReduceMean", "ReduceSum"})
"""Operators that make a sum of squares, whose root is a norm."""
