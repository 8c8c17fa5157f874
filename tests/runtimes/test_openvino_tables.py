"""Weights in blocks in OpenVINO: integers in the IR, in the compiled model, and the outputs that they stand for."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade import Case
from handmade.core import feeds, model, weight
from ml_dtypes import int4, uint4
from onnx.reference import ReferenceEvaluator
from planned_models import quantized

from onnxshot.errors import ModelError
from onnxshot.graph.load import load_model
from onnxshot.runtimes.base import EmitOptions, Emitted
from onnxshot.runtimes.openvino_runtime import OpenVino

openvino = pytest.importorskip("openvino")

OPENVINO = OpenVino()
TABLE = "g (int64[2, T] ids) => (float[2, T, 96] y) { y = Gather(table, ids) }"
TIED = """g (int64[2, T] ids) => (float[2, T, 500] scores) {
    x = Gather(table, ids)
    turned = Transpose<perm = [1, 0]>(table)
    scores = MatMul(x, turned)
}"""
ROWS, COLUMNS = 500, 96


def ids() -> dict[str, Any]:
    return {"ids": np.random.default_rng(3).integers(0, ROWS, (2, 7))}


def emitted(case: Case, folder: Path, **options: Any) -> tuple[onnx.ModelProto, Path, Emitted]:
    _, made = quantized(case, target="openvino", mode="weights", **options)
    onnx.save(made, folder / "source.onnx")
    found = OPENVINO.emit(folder / "source.onnx", folder, "out", EmitOptions())
    return made, folder / found.files[0], found


def integers(ir: Path) -> Counter[str]:
    """Number of values by the type of integer constants in the compiled model."""
    compiled = openvino.Core().compile_model(str(ir), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: Counter[str] = Counter()
    for op in compiled.get_runtime_model().get_ordered_ops():
        if op.get_rt_info()["layerType"].astype(str) == "Const":
            found[op.get_element_type().get_type_name()] += int(np.prod(op.output(0).shape))
    return found


def db(wanted: Any, got: Any) -> float:
    return float(10 * np.log10((wanted**2).sum() / ((got - wanted) ** 2).sum()))


KINDS = [(4, False, "i4"), (4, True, "u4"), (8, False, "i8"), (8, True, "u8")]


@pytest.mark.parametrize("block", [32, "channel"])
@pytest.mark.parametrize(("bits", "asymmetric", "kind"), KINDS)
def test_a_table_stays_integers(bits: int, asymmetric: bool, kind: str, block: int | str, tmp_path: Path) -> None:
    case = Case(model(TABLE, {"table": weight(ROWS, COLUMNS)}), [ids()])
    made, ir, found = emitted(case, tmp_path, bits=bits, asymmetric=asymmetric, block=block)
    assert (tmp_path / "out.bin").stat().st_size < ROWS * COLUMNS * (bits + 1.5) / 8
    assert integers(ir)[kind] >= ROWS * COLUMNS
    assert integers(ir)["f32"] < ROWS * COLUMNS / 8
    wanted = ReferenceEvaluator(made).run(None, ids())[0]
    np.testing.assert_array_equal(OPENVINO.load(ir, threads=1).run(ids())["y"], wanted)
    assert "1 of 1 weights that are quantized alone stay integers when the IR is compiled" in found.notes


@pytest.mark.parametrize(("bits", "asymmetric", "kind"), KINDS)
def test_a_tied_table_is_in_the_ir_once(bits: int, asymmetric: bool, kind: str, tmp_path: Path) -> None:
    case = Case(model(TIED, {"table": weight(ROWS, COLUMNS)}), [ids()])
    made, ir, found = emitted(case, tmp_path, bits=bits, asymmetric=asymmetric, block=32)
    assert (tmp_path / "out.bin").stat().st_size < ROWS * COLUMNS * (bits + 1.5) / 8
    assert integers(ir)[kind] >= ROWS * COLUMNS
    assert integers(ir)["f32"] < ROWS * COLUMNS / 4
    wanted = ReferenceEvaluator(made).run(None, ids())[0]
    assert db(wanted, OPENVINO.load(ir, threads=1).run(ids())["scores"]) > 35, "int8 activations"
    assert "2 of 2 weights that are quantized alone stay integers when the IR is compiled" in found.notes


@pytest.mark.parametrize("block", [32, 64, "channel"])
@pytest.mark.parametrize(("bits", "asymmetric", "kind"), KINDS)
@pytest.mark.parametrize("text", ["y = MatMul(x, w)", "y = Gemm(x, w, b)", "y = Gemm<transB = 1>(x, v, b)"])
def test_products_keep_integers(
    text: str, bits: int, asymmetric: bool, kind: str, block: int | str, tmp_path: Path
) -> None:
    constants = {"w": weight(128, 40), "v": weight(40, 128), "b": weight(40)}
    case = Case(model(f"g (float[N, 128] x) => (float[N, 40] y) {{ {text} }}", constants), feeds(3, x=(5, 128)))
    made, ir, found = emitted(case, tmp_path, bits=bits, asymmetric=asymmetric, block=block)
    assert integers(ir)[kind] >= 128 * 40
    wanted = ReferenceEvaluator(made).run(None, case.feeds[0])[0]
    assert db(wanted, OPENVINO.load(ir, threads=1).run(case.feeds[0])["y"]) > 30, "int8 activations"
    assert found.executed is not None
    assert [n.stored for n in found.executed.nodes] == [f"int{bits}"]


def test_a_float16_model(tmp_path: Path) -> None:
    text = "g (float16[N, 128] x) => (float16[N, 40] y) { y = MatMul(x, w) }"
    given = {"x": feeds(1, x=(5, 128))[0]["x"].astype(np.float16)}
    case = Case(model(text, {"w": weight(128, 40).astype(np.float16)}), [given])
    made, ir, _ = emitted(case, tmp_path, bits=4, block=32)
    assert integers(ir)["i4"] == 128 * 40
    wanted = ReferenceEvaluator(made).run(None, given)[0]
    assert db(wanted.astype(np.float32), OPENVINO.load(ir, threads=1).run(given)["y"].astype(np.float32)) > 30


def in_blocks(kind: Any, inputs: int, size: int, *, zeros: bool) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    few = (-(-inputs // size), 40)
    constants = {"w": rng.integers(0, 8, (inputs, 40)).astype(kind), "s": rng.random(few).astype(np.float32)}
    text = f"""g (float[N, {inputs}] x) => (float[N, 40] y) {{
        d = DequantizeLinear<axis = 0, block_size = {size}>(w, s{", z" if zeros else ""})
        y = MatMul(x, d)
    }}"""
    constants |= {"z": rng.integers(1, 8, few).astype(kind)} if zeros else {}
    return model(text, constants, opset=21, ir=10)


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (in_blocks(int4, 64, 32, zeros=False), ""),
        (in_blocks(uint4, 64, 32, zeros=True), ""),
        (in_blocks(np.int8, 64, 64, zeros=False), ""),
        (in_blocks(int4, 64, 16, zeros=False), "blocks of 16"),
        (in_blocks(int4, 64, 32, zeros=True), "signed integers with a zero point"),
        (in_blocks(np.int8, 64, 32, zeros=True), "signed integers with a zero point"),
        (in_blocks(int4, 50, 32, zeros=False), "do not divide"),
    ],
)  # fmt: skip
def test_blocks_that_are_refused_or_slow(proto: onnx.ModelProto, words: str, tmp_path: Path) -> None:
    found = OPENVINO.preflight(load_model(proto))
    assert [words in finding.reason for finding in found] == [True] * bool(words)
    onnx.save(proto, tmp_path / "m.onnx")
    if found and found[0].refused:
        with pytest.raises(ModelError):
            OPENVINO.load(tmp_path / "m.onnx", threads=1)
        return
    x = feeds(1, x=(5, proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value))[0]
    wanted = ReferenceEvaluator(proto).run(None, x)[0]
    exact = db(wanted, OPENVINO.load(tmp_path / "m.onnx", threads=1).run(x)["y"])
    assert (exact > 90) == bool(words), "int8 activations leave 40 to 60 dB, floats more than 90"
