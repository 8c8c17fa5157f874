"""Weights in blocks in OpenVINO: integers in the IR, in the compiled model, and the outputs that they stand for."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade import Case
from handmade.core import feeds, model, weight
from onnx.reference import ReferenceEvaluator
from planned_models import quantized

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
