"""Nodes that OpenVINO runs in int8, computes wrongly or refuses: preflight lists them, and OpenVINO confirms it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from handmade import HANDMADE, Case
from handmade.core import Feed, feeds, model, vector, weight
from handmade.products import activations, conv, grid, integers, matmul, residuals
from planned_models import run, small

from onnxshot.errors import ModelError, TargetError
from onnxshot.graph.load import load_model
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.runtimes.base import EmitOptions
from onnxshot.runtimes.executed import Execution
from onnxshot.runtimes.openvino_runtime import OpenVino

pytest.importorskip("openvino")

OPENVINO = OpenVino()
U8, U8_RELU, S8, S8_SHIFTED = ("uint8", 128), ("uint8", 0), ("int8", 0), ("int8", 5)


def executed(proto: onnx.ModelProto, folder: Path) -> Execution:
    path = folder / "m.onnx"
    onnx.save(proto, path)
    return OPENVINO.executed(path, load_model(proto))


def agreement(case: Case, folder: Path) -> float:
    """SQNR in dB of OpenVINO, with ONNX Runtime without optimizations as the reference."""
    path, total = folder / "m.onnx", SqnrSum()
    onnx.save(case.model, path)
    loaded = OPENVINO.load(path, threads=1)
    for feed in case.feeds:
        for wanted, got in zip(run(case.model, feed, optimize=False), loaded.run(feed).values(), strict=True):
            total.add(wanted, got)
    return total.db


INT8: dict[str, Callable[[], Case]] = {
    "uint8 input, int8 weight per channel": lambda: conv(),
    "one scale for the weight": lambda: conv(axis=None),
    "uint8 input with zero point 0": lambda: conv(U8_RELU),
    "int8 input": lambda: conv(S8),
    "int32 bias": lambda: conv(bias="int32"),
    "no bias": lambda: conv(bias="none"),
    "weight rounded at run time": lambda: conv(rounded=True),
    "Q on the output": lambda: conv(output=True),
    "Relu, no Q on the output": lambda: conv(relu=True),
    "Relu, Q on the output": lambda: conv(U8_RELU, relu=True, output=True),
    "opset 13": lambda: conv(opset=13),
    "opset 19": lambda: conv(opset=19),
    "depthwise": lambda: conv(group=16),
    "grouped": lambda: conv(group=4),
    "ConvTranspose, int8 input": lambda: conv(S8, axis=1, op="ConvTranspose"),
    "ConvTranspose, zero point 0": lambda: conv(U8_RELU, axis=1, op="ConvTranspose"),
    "MatMul": lambda: matmul(),
    "MatMul, one scale": lambda: matmul(axis=None),
    "MatMul, int8 input": lambda: matmul(S8),
    "MatMul, int8 input with a zero point": lambda: matmul(S8_SHIFTED),
    "MatMul, three axes": lambda: matmul(rank=3),
    "MatMul, Q on the output": lambda: matmul(output=True),
    "Gemm": lambda: matmul(op="Gemm"),
    "int8 activation x activation": lambda: activations(*S8),
}
FLOAT: dict[str, tuple[Callable[[], Case], str]] = {
    "uint8 weight": (lambda: conv(w=U8), "its weight is uint8"),
    "uint8 weight, one scale": (lambda: conv(w=U8, axis=None), "its weight is uint8"),
    "int8 weight with a zero point": (lambda: conv(w=("int8", 3)), "zero point of its weight"),
    "int8 weight with a zero point, one scale": (lambda: conv(w=("int8", 3), axis=None), "zero point of its weight"),
    "int16 weight": (lambda: conv(w=("int16", 0)), "16-bit"),
    "scales along the inputs": (lambda: conv(axis=1), "along axis 1"),
    "ConvTranspose, zero point": (lambda: conv(axis=1, op="ConvTranspose"), "zero point of its input"),
    "ConvTranspose, axis 0": (lambda: conv(S8, axis=0, op="ConvTranspose"), "along axis 0"),
    "uint16 input": (lambda: conv(("uint16", 1 << 15)), "16-bit"),
    "int16 input": (lambda: conv(("int16", 0)), "16-bit"),
    "MatMul, uint16 input": (lambda: matmul(("uint16", 1 << 15)), "16-bit"),
    "MatMul, uint8 weight": (lambda: matmul(w=U8), "its weight is uint8"),
    "MatMul, int8 weight with a zero point": (lambda: matmul(w=("int8", 3)), "zero point of its weight"),
    "MatMul, scales along the inputs": (lambda: matmul(axis=0), "along axis 0"),
    "Gemm, uint8 weight": (lambda: matmul(w=U8, op="Gemm"), "its weight is uint8"),
    "uint8 activation x activation": (lambda: activations(*U8), "product of activations"),
}  # fmt: skip


@pytest.mark.parametrize("name", INT8)
def test_runs_in_int8_and_preflight_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    case = INT8[name]()
    ran = executed(case.model, tmp_path)
    assert [(n.name, n.precision, n.asked) for n in ran.nodes] == [("product", "int8", True)]
    assert (ran.share, ran.honoured, ran.float_between) == (1.0, 1.0, ())
    assert OPENVINO.preflight(load_model(case.model)) == []
    assert agreement(case, tmp_path) > 40  # a value that falls between two integers may go to either


@pytest.mark.parametrize("group", [1, 16])
def test_a_conv_of_int8_with_a_zero_point_runs_in_float_where_there_is_amx(group: int, tmp_path: Path) -> None:
    cpu = Path("/proc/cpuinfo")
    has_amx = cpu.exists() and "amx_int8" in cpu.read_text()
    case = conv(S8_SHIFTED, group=group)
    ran = executed(case.model, tmp_path)
    assert [(n.precision, n.asked) for n in ran.nodes] == [("float" if has_amx else "int8", True)]
    (told,) = OPENVINO.preflight(load_model(case.model))  # wherever the file was made, it may run elsewhere
    assert told.node == "product"
    assert "float on CPUs with AMX" in told.reason


@pytest.mark.parametrize("name", FLOAT)
def test_runs_in_float_and_preflight_says_so(name: str, tmp_path: Path) -> None:
    build, why = FLOAT[name]
    case = build()
    ran = executed(case.model, tmp_path)
    assert [(n.name, n.precision, n.asked) for n in ran.nodes] == [("product", "float", True)]
    assert (ran.share, ran.honoured, ran.float_between) == (0.0, 0.0, (f"{case_op(case)} product",))
    told = OPENVINO.preflight(load_model(case.model))
    assert [skip.node for skip in told] == ["product"]
    assert why in told[0].reason


def case_op(case: Case) -> str:
    return next(n.op_type for n in case.model.graph.node if n.name == "product")


@pytest.mark.parametrize(("kind", "zero"), [("uint16", 1 << 15), ("int16", 0)])
def test_16_bit_activations_are_computed_wrongly_without_an_error(kind: str, zero: int, tmp_path: Path) -> None:
    assert agreement(residuals("uint8", 128), tmp_path) > 40
    wrong = residuals(kind, zero)
    assert agreement(wrong, tmp_path) < 40, "65536 steps are good for 80 dB and more"
    told = OPENVINO.preflight(load_model(wrong.model))
    assert {"product0", "product1", "product2"} <= {skip.node for skip in told}
    assert all("16-bit" in skip.reason for skip in told)


def qlinear_conv(axis: int | None) -> Case:
    text = """g (float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y) {
        xq = QuantizeLinear(x, x_scale, x_zero)
        [product] yq = QLinearConv<pads = [1, 1, 1, 1]>(xq, x_scale, x_zero, w, w_scale, w_zero, x_scale, x_zero)
        y = DequantizeLinear(yq, x_scale, x_zero)
    }"""
    return small(text, integers(weight(16, 16, 3, 3), "int8", axis, 0) | grid(*U8), x=(2, 16, 8, 8))


def test_qlinearconv_is_right_with_one_scale_and_wrong_with_one_per_channel(tmp_path: Path) -> None:
    right, wrong = qlinear_conv(None), qlinear_conv(0)
    assert agreement(right, tmp_path) > 40
    assert OPENVINO.preflight(load_model(right.model)) == []
    assert agreement(wrong, tmp_path) < 20
    told = OPENVINO.preflight(load_model(wrong.model))
    assert [(skip.node, skip.reason) for skip in told] == [
        ("product", "OpenVINO computes it wrongly with a scale per channel")
    ]


def qlinear_matmul(axis: int | None) -> Case:
    text = """g (float[n, 64] x) => (float[n, 48] y) {
        xq = QuantizeLinear(x, x_scale, x_zero)
        [product] yq = QLinearMatMul(xq, x_scale, x_zero, w, w_scale, w_zero, x_scale, x_zero)
        y = DequantizeLinear(yq, x_scale, x_zero)
    }"""
    return small(text, integers(weight(64, 48, channel_axis=1), "int8", axis, 0) | grid(*U8), x=(5, 64))


def qgemm() -> Case:
    text = """g (float[n, 64] x) => (float[n, 48] y) {
        xq = QuantizeLinear(x, x_scale, x_zero)
        [product] yq = com.microsoft.QGemm(xq, x_scale, x_zero, w, w_scale, w_zero, , x_scale, x_zero)
        y = DequantizeLinear(yq, x_scale, x_zero)
    }"""
    constants = integers(weight(64, 48, channel_axis=1), "int8", 1, 0) | grid(*U8)
    return Case(model(text, constants, imports=', "com.microsoft": 1'), feeds(2, x=(5, 64)))


@pytest.mark.parametrize("build", [lambda: qlinear_matmul(1), qgemm])
def test_unreadable_nodes_are_named_by_preflight_and_by_the_error(build: Callable[[], Case], tmp_path: Path) -> None:
    case, path = build(), tmp_path / "m.onnx"
    onnx.save(case.model, path)
    told = OPENVINO.preflight(load_model(case.model))
    assert [skip.node for skip in told] == ["product"]
    assert "cannot read" in told[0].reason
    with pytest.raises(TargetError, match=r"OpenVINO refuses 'product' .*target=.openvino.") as error:
        OPENVINO.emit(path, tmp_path, "m", EmitOptions())
    assert error.value.exit_code == 6
    op = next(n.op_type for n in case.model.graph.node if n.name == "product")
    with pytest.raises(ModelError, match=f"OpenVINO cannot read .*{op}"):
        OPENVINO.load(path, threads=1)


def test_qlinearmatmul_is_read_with_one_scale(tmp_path: Path) -> None:
    case = qlinear_matmul(None)
    assert OPENVINO.preflight(load_model(case.model)) == []
    assert agreement(case, tmp_path) > 40


@pytest.mark.parametrize("name", ["already_dynamic", "conv_integer"])
def test_nodes_that_are_split_into_float_ops_are_named(name: str, tmp_path: Path) -> None:
    text = """g (float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y) {
        xq = QuantizeLinear(x, x_scale, x_zero)
        [product] yi = ConvInteger<pads = [1, 1, 1, 1]>(xq, w, x_zero)
        y = Cast<to = 1>(yi)
    }"""
    constants: Feed = grid(*U8) | {"w": integers(weight(16, 16, 3, 3), "int8", None, 0)["w"]}
    case = HANDMADE[name]() if name in HANDMADE else small(text, constants, x=(1, 16, 8, 8))
    ran = executed(case.model, tmp_path)
    assert [n.precision for n in ran.nodes] == ["float"]
    told = {skip.op for skip in OPENVINO.preflight(load_model(case.model))}
    assert told == ({"DynamicQuantizeLinear", "MatMulInteger"} if name in HANDMADE else {"ConvInteger"})


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_recurrent_ops_do_not_compile_with_input_and_weights_quantized(op: str, gates: int, tmp_path: Path) -> None:
    def build(read: str) -> onnx.ModelProto:
        text = f"""g (float[t, n, 16] x) => (float[t, d, n, 8] y) {{
            xq = QuantizeLinear(x, x_scale, x_zero)
            xd = DequantizeLinear(xq, x_scale, x_zero)
            wd = DequantizeLinear(w, w_scale, w_zero)
            [product] y = {op}<hidden_size = 8>({read}, wd, r)
        }}"""
        constants = integers(weight(1, 8 * gates, 16), "int8", None, 0) | grid(*U8) | {"r": weight(1, 8 * gates, 8)}
        return model(text, constants)

    path = tmp_path / "m.onnx"
    onnx.save(build("xd"), path)
    with pytest.raises(ModelError, match="does not load in OpenVINO"):
        OPENVINO.load(path, threads=1)
    assert [skip.node for skip in OPENVINO.preflight(load_model(build("xd")))] == ["product"]
    onnx.save(build("x"), path)
    OPENVINO.load(path, threads=1)
    assert OPENVINO.preflight(load_model(build("x"))) == []


def test_preflight_ignores_float_nodes_and_weight_only_quantization(tmp_path: Path) -> None:
    text = """g (float[n, 64] x) => (float[n, 48] y) {
        wd = DequantizeLinear<axis = 1>(w, w_scale, w_zero)
        [product] m = MatMul(x, wd)
        y = Add(m, b)
    }"""
    case = small(text, integers(weight(64, 48, channel_axis=1), "int8", 1, 0) | {"b": vector(48)}, x=(5, 64))
    ran = executed(case.model, tmp_path)
    assert [(n.precision, n.asked) for n in ran.nodes] == [("float", False)]
    assert (ran.share, ran.honoured) == (0.0, 1.0)
    assert OPENVINO.preflight(load_model(case.model)) == []
    assert np.isfinite(agreement(case, tmp_path))
