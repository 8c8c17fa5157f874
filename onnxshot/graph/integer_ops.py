"""ONNX operators on integers: what each computes in floats, and where its operands, scales and zero points stand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Form:
    """Where an integer operator has what.

    Attributes:
        op: its float form.
        data: slots of the operands, each followed by its scale and its zero point; None where all from slot 2 on are.
        result: slot of the scale of the result, followed by its zero point.
        bias: slot of the int32 bias, whose scale is the product of those of the operands.
    """

    op: str
    data: tuple[int, ...] | None
    result: int
    bias: int | None = None
FORMS = {  # QLinearConv-10 and QLinearMatMul-10; the others as ONNX Runtime's contrib operators have them
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
