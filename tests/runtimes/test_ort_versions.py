"""The first ONNX Runtime that runs a file as quantized: for each form, in reports, and as text."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from handmade.core import model, vector, weight
from onnx import TensorProto, helper, numpy_helper
from planned_models import quantized, small

import onnxshot
from onnxshot.graph.load import load_model
from onnxshot.runtimes.ort_versions import FORMS, Requirement, VersionNeeds, needs

Q = {"s": np.float32(0.02), "z": np.uint8(128), "ws": np.full(8, 0.01, np.float32), "wz": np.zeros(8, np.int8)}
HEAD = """g (float[4, 8] x) => (float[4, 8] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    wd = DequantizeLinear<axis = 1>(w, ws, wz)
"""
STORED = {"w": np.ones((8, 8), np.int8), "b": vector(8), "bq": np.ones(8, np.int32), "bs": np.full(8, 2e-4, np.float32)}
ALONE = """g (float[4, 8] x) => (float[4, 8] y) {
    d = DequantizeLinear<axis = 1>(w, ws, wz)
    y = MatMul(x, d)
}"""


def wants(text: str, constants: dict[str, Any], **options: Any) -> VersionNeeds:
    used = {name: value for name, value in constants.items() if any(c in text for c in (f"{name},", f"{name})"))}
    return needs(load_model(model(text, used, **options)))


def contrib(op: str, bits: int) -> VersionNeeds:
    """A model of one contrib operator; only its attributes matter."""
    node = helper.make_node(op, ["x", "w", "s"], ["y"], domain="com.microsoft", bits=bits)
    io = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    stored = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in "ws"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "g", io[:1], io[1:], stored)
    return needs(load_model(helper.make_model(graph, opset_imports=opsets, ir_version=8)))


@pytest.mark.parametrize(
    ("text", "fused"),
    [
        (HEAD + "y = Gemm(d, wd, b)\n}", "1.23"),
        (HEAD + "bd = DequantizeLinear<axis = 0>(bq, bs)\ny = Gemm(d, wd, bd)\n}", "1.18"),
        (HEAD + "y = Gemm(d, wd)\n}", "1.18"),
        (HEAD + "y = MatMul(d, wd)\n}", "1.18"),
        (ALONE, "1.25"),
        (ALONE.replace("y = MatMul(x, d)", "y = Gemm(x, d, b)"), "1.25"),
        (ALONE.replace("y = MatMul(x, d)", "y = Add(x, d)").replace("float[4, 8]", "float[8, 8]"), "1.18"),
        ("g (float[4, 8] x) => (float[4, 8] y) { y = MatMul(x, f) }", "1.18"),
    ],
)
def test_forms_of_pairs(text: str, fused: str) -> None:
    found = wants(text, Q | STORED | {"f": weight(8, 8)}, opset=13, ir=7)
    assert (found.loads_from, found.fused_from) == ("1.18", fused)
    assert sum(r.nodes for r in found.rests_on) == (fused != "1.18")


def test_four_bits_and_blocks_do_not_load_before_their_operators() -> None:
    text = ALONE.replace("<axis = 1>(w, ws, wz)", "<axis = 0, block_size = 4>(w, ws)")
    constants = {"w": np.ones((8, 8), ml_dtypes.int4), "ws": np.ones((2, 8), np.float32)}
    found = wants(text, constants, opset=21, ir=10)
    assert (found.loads_from, found.fused_from) == ("1.19", "1.19")
    eight = wants(text, constants | {"w": np.ones((8, 8), np.int8)}, opset=21, ir=10)
    assert (eight.loads_from, eight.fused_from) == ("1.19", "1.25")
    assert [r.since for r in eight.rests_on] == ["1.25", "1.19"]


@pytest.mark.parametrize(
    ("op", "bits", "since"),
    [
        ("MatMulNBits", 8, "1.22"), ("MatMulNBits", 2, "1.24"),
        ("GatherBlockQuantized", 4, "1.20"), ("GatherBlockQuantized", 8, "1.23"),
    ],
)  # fmt: skip
def test_contrib_operators(op: str, bits: int, since: str) -> None:
    found = contrib(op, bits)
    assert (found.loads_from, found.fused_from) == (since, since)


def test_four_bits_load_in_all_and_multiply_rows_by_integers_from_1_19_on() -> None:
    found = contrib("MatMulNBits", 4)
    assert (found.loads_from, found.fused_from) == ("1.18", "1.19")


@pytest.mark.parametrize(("size", "since"), [(256, "1.19"), (512, "1.27"), (1024, "1.27")])
def test_large_blocks_are_wrong_before_1_27(size: int, since: str) -> None:
    text = f"""g (float[2, 2048] x) => (float[2, 4] y) {{
        y = com.microsoft.MatMulNBits<K = 2048, N = 4, bits = 4, block_size = {size}>(x, w, s)
    }}"""
    held = {"w": np.ones((4, 2048 // size, size // 2), np.uint8), "s": np.ones((4, 2048 // size), np.float32)}
    found = needs(load_model(model(text, held, imports=', "com.microsoft": 1')))
    assert (found.loads_from, found.fused_from) == ("1.18", since)


@pytest.mark.parametrize(
    ("opset", "ir", "since"), [(21, 10, "1.18"), (22, 10, "1.21"), (23, 10, "1.23"), (21, 11, "1.23")]
)
def test_opset_and_format(opset: int, ir: int, since: str) -> None:
    assert wants("g (float[4] x) => (float[4] y) { y = Relu(x) }", {}, opset=opset, ir=ir).loads_from == since


@pytest.mark.parametrize(("kind", "since"), [(ml_dtypes.uint4, "1.20"), (np.uint8, "1.23")])
def test_a_table_of_four_bits_in_bytes_needs_a_newer_version(kind: Any, since: str) -> None:
    text = """g (int64[3] i) => (float[3, d] y) {
        y = com.microsoft.GatherBlockQuantized<bits = 4, block_size = 16, quantize_axis = 1>(w, i, s)
    }"""
    held = {"w": np.ones((5, 32), kind), "s": np.ones((5, 2), np.float32)}
    found = needs(load_model(model(text, held, opset=21, ir=10, imports=', "com.microsoft": 1')))
    assert (found.loads_from, found.fused_from) == (since, since)


@pytest.mark.parametrize(
    ("mode", "ends", "since"), [("linear", True, "1.32"), ("nearest", True, "1.18"), ("linear", False, "1.18")]
)
def test_a_linear_resize_in_int8_is_rounded_by_a_newer_version(mode: str, ends: bool, since: str) -> None:
    text = f"""g (float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) {{
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        {"r" if ends else "y"} = Resize<mode = "{mode}">(d, , k)
        {"p = QuantizeLinear(r, s, z) y = DequantizeLinear(p, s, z)" if ends else ""}
    }}"""
    found = needs(load_model(model(text, {"s": Q["s"], "z": Q["z"], "k": np.array([1, 1, 2, 2], np.float32)})))
    assert (found.loads_from, found.fused_from) == ("1.18", since)


def test_deform_conv_needs_a_newer_version() -> None:
    text = "g (float[1, 2, 4, 4] x, float[1, 2, 4, 4] o) => (float[1, 2, 4, 4] y) { y = DeformConv(x, w, o) }"
    assert needs(load_model(model(text, {"w": weight(2, 2, 1, 1)}, opset=19, ir=9))).loads_from == "1.26"


def test_every_form_is_in_the_docs() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "targets.md").read_text()
    for form in FORMS:
        assert f"| {form.name} | {form.since[0]}.{form.since[1]} |" in text


def test_the_report_of_what_onnxshot_writes() -> None:
    text = """g (float[n, 4, 8, 8] x) => (float[n, 8, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, v, b)
        r = Relu(a)
        y = Conv(r, u, b)
    }"""
    constants = {"v": weight(8, 4, 3, 3), "u": weight(8, 8, 1, 1, seed=1), "b": vector(8)}
    case = small(text, constants, x=(2, 4, 8, 8))
    result, _ = quantized(case)
    assert result.report.onnxruntime == VersionNeeds("1.18", "1.18")
    assert json.loads(result.report.to_json())["onnxruntime"] == {
        "loads_from": "1.18", "fused_from": "1.18", "rests_on": [],
    }  # fmt: skip
    assert "from 1.18 on, the oldest version tried" in VersionNeeds("1.18", "1.18").to_text()
    portable, _ = quantized(case, target="portable")
    assert portable.report.onnxruntime is not None
    assert portable.report.onnxruntime.fused_from == "1.23"
    assert portable.report.onnxruntime.rests_on == (Requirement("int8 layers with a float bias", "1.23", 2, False),)
    assert "from 1.23 on: int8 layers with a float bias (2)" in portable.report.onnxruntime.to_text()
    elsewhere, _ = quantized(case, target="tensorrt")
    assert elsewhere.report.onnxruntime is None


def test_weights_alone_rest_on_a_newer_version() -> None:
    case = small("g (float[4, 64] x) => (float[4, 64] y) { y = MatMul(x, w) }", {"w": weight(64, 64)}, x=(4, 64))
    result, made = quantized(case, mode="weights", portable_ops=True)
    assert result.report.onnxruntime is not None
    assert result.report.onnxruntime.fused_from == "1.25"
    assert onnxshot.inspect(made).onnxruntime == result.report.onnxruntime
    assert "ONNX Runtime runs it as written from 1.25 on: 8-bit weights alone (1)" in onnxshot.inspect(made).to_text()
    dynamic, _ = quantized(case, mode="dynamic")
    assert dynamic.report.onnxruntime == VersionNeeds("1.18", "1.18")


@pytest.mark.parametrize(("bits", "block", "since"), [(4, 32, "1.19"), (4, "channel", "1.26"), (8, 32, "1.25")])
def test_blocks_in_standard_form_rest_on_a_newer_version(bits: int, block: int | str, since: str) -> None:
    case = small("g (float[4, 64] x) => (float[4, 64] y) { y = MatMul(x, w) }", {"w": weight(64, 64)}, x=(4, 64))
    result, _ = quantized(case, mode="weights", bits=bits, block=block, format="qdq")
    assert result.report.onnxruntime is not None
    assert result.report.onnxruntime.fused_from == since


def test_a_file_of_another_tool(tmp_path: Path) -> None:
    proto = model(HEAD + "y = Gemm(d, wd, b)\n}", Q | {k: STORED[k] for k in "wb"}, opset=13, ir=7)
    onnx.save(proto, tmp_path / "given.onnx")
    assert onnxshot.inspect(tmp_path / "given.onnx").onnxruntime.fused_from == "1.23"
    report = onnxshot.emit(tmp_path / "given.onnx", to="onnx", output=tmp_path / "out.onnx")
    assert report.onnxruntime == VersionNeeds("1.18", "1.18"), "its bias is int32 now"


def test_of_what_an_onnxruntime_wrote_for_itself_no_version_is_told(tmp_path: Path) -> None:
    text = """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
        b = com.microsoft.nchwc.ReorderInput(x) c = com.microsoft.nchwc.Conv(b, w)
        y = com.microsoft.nchwc.ReorderOutput<channels = 16>(c)
    }"""
    found = wants(text, {"w": weight(16, 16, 1, 1)})
    assert (found.loads_from, found.fused_from) == ("unknown", "unknown")
    assert [r.nodes for r in found.rests_on] == [3]
    assert "com.microsoft.nchwc" in found.to_text()
    assert "1.18" not in found.to_text()
    fused = """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
        {{ y = com.microsoft.FusedConv<activation = "{}">(x, w) }}"""
    stored = {"w": weight(4, 3, 1, 1)}
    assert wants(fused.format("HardSwish"), stored).fused_from == "unknown"
    assert wants(fused.format("Relu"), stored).fused_from == "1.18"


BF16_TEXT = '<ir_version: 10, opset_import: ["": 22]> g (bfloat16[2,2] x) => (bfloat16[2,2] y) {{ {} }}'


@pytest.mark.parametrize(
    ("body", "runs"),
    [
        ("h = Transpose(x) y = Concat<axis=0>(h, h)", True),
        ("f = Cast<to=1>(x) h = MatMul(f, f) y = Cast<to=16>(h)", True),
        ("h = MatMul(x, x) y = Transpose(h)", False), ("h = Transpose(x) i = Identity(h) y = Relu(i)", False),
        ("f = Cast<to=1>(x) g = Cast<to=16>(f) h = Add(g, g) y = Transpose(h)", False),
    ],
)  # fmt: skip
def test_versions_are_told_of_bfloat16_only_where_this_one_loads_it(body: str, runs: bool, tmp_path: Path) -> None:
    import onnxruntime

    made = onnx.parser.parse_model(BF16_TEXT.format(body))
    if "Concat" in body:
        made.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(made.SerializeToString(), options)
        loads = True
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        loads = False
    assert loads == runs
    onnx.save(made, str(tmp_path / "m.onnx"))
    report = onnxshot.emit(tmp_path / "m.onnx", to="onnx", output=tmp_path / "e.onnx")
    assert (report.onnxruntime is not None) == loads
    assert any("computes in bfloat16, which no ONNX Runtime" in note for note in report.notes) == (not loads)
    assert (onnxshot.inspect(tmp_path / "m.onnx").onnxruntime is not None) == loads
