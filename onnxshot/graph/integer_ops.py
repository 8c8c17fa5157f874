"""Operators on quantized tensors: the float operator of each, and the slots of its operands, scales and zero points."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Form:
    """The input slots of an integer operator.

    Attributes:
        op: its float operator.
        data: slots of the operands, each followed by its scale and zero point; None where operands begin at slot 2.
        result: slot of the output's scale, followed by its zero point.
        bias: slot of the int32 bias, whose scale is the product of the operands' scales; None without a bias.
    """

    op: str
    data: tuple[int, ...] | None
    result: int
    bias: int | None = None


FORMS = {  # QLinearConv-10 and QLinearMatMul-10; the others are ONNX Runtime's contrib operators
    "QLinearConv": Form("Conv", (0, 3), 6, bias=8),
    "QLinearMatMul": Form("MatMul", (0, 3), 6),
    "QGemm": Form("Gemm", (0, 3), 7, bias=6),
    "QLinearAdd": Form("Add", (0, 3), 6),
    "QLinearMul": Form("Mul", (0, 3), 6),
    "QLinearConcat": Form("Concat", None, 0),
    "QLinearLeakyRelu": Form("LeakyRelu", (0,), 3),
    "QLinearSigmoid": Form("Sigmoid", (0,), 3),
    "QLinearSoftmax": Form("Softmax", (0,), 3),
    "QLinearAveragePool": Form("AveragePool", (0,), 3),
    "QLinearGlobalAveragePool": Form("GlobalAveragePool", (0,), 3),
}
