"""What `diff` says of two files, where the change was made by hand, or is known from the plan."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from fixture_data import fixture, heldout
from handmade.core import model, weight
from numpy.typing import NDArray

import onnxshot
from onnxshot.api.diff import Diff
from onnxshot.planning.plan import STATIC

Array = NDArray[np.float32]

W, V = weight(8, 4, 3, 3), weight(6, 8)
TEXT = """g (float[1, 4, 8, 8] x) => (float[1, 6] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w)  r = Relu(a)  p = GlobalAveragePool(r)
    f = Flatten(p)  y = Gemm<transB = 1>(f, v)
}"""


def saved(path: Path, text: str = TEXT, **constants: NDArray[np.generic]) -> Path:
    onnx.save(model(text, {"w": W, "v": V} | constants), str(path))
    return path


def told(tmp_path: Path, text: str = TEXT, **constants: NDArray[np.generic]) -> Diff:
    """The difference between the float model and one with another text or other constants."""
    return onnxshot.diff(saved(tmp_path / "a.onnx"), saved(tmp_path / "b.onnx", text, **constants))


def test_nothing_differs(tmp_path: Path) -> None:
    found = told(tmp_path)
    assert (found.layers, found.activations, found.only_before, found.only_after) == ((), (), (), ())
    assert (found.unchanged, found.changed, found.contract, found.notes) == (5, {}, "", ())


def test_weights_that_became_zero_and_that_are_zero_no_more(tmp_path: Path) -> None:
    before, after = W.copy(), W.copy()
    before[0, 0, 0, :2], after[1, :, 0, 0] = 0, 0
    saved(tmp_path / "a.onnx", w=before), saved(tmp_path / "b.onnx", w=after)
    (row,) = onnxshot.diff(tmp_path / "a.onnx", tmp_path / "b.onnx").layers
    assert (row.op, row.changes, row.zeros_made, row.zeros_lost) == ("Conv", ("mask", "values"), 4, 2)
    assert (row.sparsity_before, row.sparsity_after) == (2 / W.size, 4 / W.size)
    noise = float(((before - after).astype(np.float64) ** 2).sum())
    assert row.sqnr_db == pytest.approx(10 * np.log10((before.astype(np.float64) ** 2).sum() / noise))


def test_channels_that_were_cut(tmp_path: Path) -> None:
    found = told(tmp_path, w=W[:5].copy(), v=V[:, :5].copy())
    rows = {row.op: row for row in found.layers}
    assert found.changed == {"shape": 2}
    assert (rows["Conv"].shape_before, rows["Conv"].shape_after) == ((8, 4, 3, 3), (5, 4, 3, 3))
    assert (rows["Gemm"].shape_before, rows["Gemm"].shape_after) == ((6, 8), (6, 5))
    assert rows["Conv"].sqnr_db is None


QUANTIZED = """g (float[1, 4, 8, 8] x) => (float[1, 6] y) {
    q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  wd = DequantizeLinear<axis = 0>(w, ws, wz)
    a = Conv<pads = [1, 1, 1, 1]>(d, wd)  r = Relu(a)  p = GlobalAveragePool(r)  f = Flatten(p)
    y = Gemm<transB = 1>(f, v)
}"""
SCALES = (np.abs(W).reshape(8, -1).max(axis=1) / 127).astype(np.float32)


def pairs(
    step: float = 0.02, zero: int = 128, scales: Array = SCALES, unsigned: bool = True
) -> dict[str, NDArray[np.generic]]:
    """The constants of QUANTIZED."""
    kind = np.uint8 if unsigned else np.int8
    integers = np.clip(np.rint(W / scales.reshape(-1, 1, 1, 1)), -128, 127).astype(np.int8)
    return {
        "w": integers, "s": np.asarray(step, np.float32), "z": np.asarray(zero, kind), "ws": scales,
        "wz": np.zeros(8, np.int8),
    }  # fmt: skip


def test_float_against_quantized(tmp_path: Path) -> None:
    found = told(tmp_path, QUANTIZED, **pairs())
    (row,) = found.layers
    assert (row.before, row.after, row.changes) == ("float32", "static uint8 x int8", ("type", "values"))
    integers = np.rint(W / SCALES.reshape(-1, 1, 1, 1))
    noise = ((W - integers * SCALES.reshape(-1, 1, 1, 1)).astype(np.float64) ** 2).sum()
    assert row.sqnr_db == pytest.approx(10 * np.log10((W.astype(np.float64) ** 2).sum() / noise), abs=1e-3)
    assert row.sparsity_after == np.count_nonzero(integers == 0) / W.size
    assert (found.quantized_before, found.quantized_after) == (0, 1)


def test_scales_and_zero_points(tmp_path: Path) -> None:
    moved = SCALES.copy()
    moved[3] *= 2
    saved(tmp_path / "a.onnx", QUANTIZED, **pairs())
    saved(tmp_path / "b.onnx", QUANTIZED, **pairs(step=0.03, zero=120, scales=moved))
    found = onnxshot.diff(tmp_path / "a.onnx", tmp_path / "b.onnx")
    (row,), (pair,) = found.layers, found.activations
    assert row.changes == ("scale", "values")
    assert (row.scale_ratio, row.zero_shift) == (2.0, 0)
    assert (pair.tensor, pair.scale_ratio, pair.zero_shift) == ("x", pytest.approx(1.5), 8)


def test_the_same_integers_under_another_type_are_no_shift(tmp_path: Path) -> None:
    saved(tmp_path / "a.onnx", QUANTIZED, **pairs())
    saved(tmp_path / "b.onnx", QUANTIZED, **pairs(zero=0, unsigned=False))
    (pair,) = onnxshot.diff(tmp_path / "a.onnx", tmp_path / "b.onnx").activations
    assert (pair.before, pair.after, pair.scale_ratio, pair.zero_shift) == ("uint8", "int8", 1.0, 0)


def test_nodes_of_one_file_and_another_contract(tmp_path: Path) -> None:
    text = TEXT.replace("r = Relu(a)", "s = Sigmoid(a) r = Mul(a, s)").replace("float[1, 6] y", "float[N, 6] y")
    found = told(tmp_path, text)
    assert [n.op for n in found.only_before] == ["Relu"]
    assert {n.op for n in found.only_after} == {"Sigmoid", "Mul"}
    assert "y" in found.contract


def test_pairs_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    text = QUANTIZED.replace("DequantizeLinear(q, s, z)", "DequantizeLinear(q, s2, z)")
    found = told(tmp_path, text, s2=np.asarray(0.5, np.float32), **pairs())
    assert any("different scales" in note for note in found.notes)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnxshot.Result, Path]:
    path = tmp_path_factory.mktemp("diff") / "q.onnx"
    settings = onnxshot.Settings(bench_seconds=0.01)
    result = onnxshot.quantize(
        fixture("digits_resnet"), heldout("digits_resnet")[0][:16], output=path, effort="fast", settings=settings
    )
    return result, path


def test_a_quantized_fixture_is_what_its_plan_says(resnet: tuple[onnxshot.Result, Path]) -> None:
    result, path = resnet
    found = onnxshot.diff(fixture("digits_resnet"), path, heldout("digits_resnet")[0][16:24])
    weighted = {n.node for n in result.plan.nodes if n.how == STATIC and n.has_weight}
    assert {row.node for row in found.layers if "values" in row.changes} == weighted
    assert all(row.after == "static uint8 x int8" for row in found.layers if row.node in weighted)
    assert found.quantized_after == len(result.plan.tensors)
    assert (found.only_before, found.only_after, found.contract) == ((), (), "")
    assert found.samples == 8
    assert found.sqnr_db is not None
    assert found.sqnr_db == pytest.approx(
        onnxshot.compare(fixture("digits_resnet"), path, heldout("digits_resnet")[0][16:24]).sqnr_db
    )
    assert list(found.worst) == sorted(found.worst, key=lambda row: (row.sqnr_db, row.tensor))
    assert found.bytes_after == path.stat().st_size


def test_the_same_quantization_in_another_format(resnet: tuple[onnxshot.Result, Path], tmp_path: Path) -> None:
    settings = onnxshot.Settings(bench_seconds=0.01)
    calib = heldout("digits_resnet")[0][:16]
    onnxshot.quantize(
        fixture("digits_resnet"), calib, output=tmp_path / "o.onnx", effort="fast", format="qoperator",
        settings=settings,
    )  # fmt: skip
    found = onnxshot.diff(resnet[1], tmp_path / "o.onnx")
    assert (found.layers, found.activations) == ((), ())
    assert {n.op for n in found.only_before} == {"Relu"}


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("licence_lstm", "dynamic", {"LSTM": "dynamic uint8 x int8", "Gather": "weights int8", "Gemm": "weights int8"}),
        ("licence_encoder", "weights", {"MatMul": "weights int8", "Gather": "weights int8", "Gemm": "weights int8"}),
    ],
)
def test_forms_without_pairs(name: str, mode: str, expected: dict[str, str], tmp_path: Path) -> None:
    settings = onnxshot.Settings(verify=False)
    onnxshot.quantize(fixture(name), output=tmp_path / "q.onnx", mode=mode, format="qdq", settings=settings)
    found = onnxshot.diff(fixture(name), tmp_path / "q.onnx")
    assert {row.op: row.after for row in found.layers} == expected
    assert all(row.sqnr_db is not None and row.sqnr_db > 35 for row in found.layers)
    assert (found.only_before, found.only_after) == ((), ())


def test_dynamic_quantization_by_onnxruntime(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    k, b = weight(16, 12), np.arange(12, dtype=np.float32)
    text = "g (float[N, 16] x) => (float[N, 12] y) { m = MatMul(x, k)  y = Add(m, b) }"
    onnx.save(model(text, {"k": k, "b": b}), str(tmp_path / "a.onnx"))
    quantize_dynamic(tmp_path / "a.onnx", tmp_path / "b.onnx", weight_type=QuantType.QInt8)
    found = onnxshot.diff(tmp_path / "a.onnx", tmp_path / "b.onnx")
    (row,) = found.layers
    assert (row.op, row.after, row.changes) == ("MatMul", "dynamic uint8 x int8", ("type", "values"))
    step = np.abs(k).max() / 127
    assert row.sqnr_db == pytest.approx(10 * np.log10((k**2).sum() / (k.size * step**2 / 12)), abs=1.5)
    assert (found.only_before, found.only_after) == ((), ())


def test_pruned_against_float(tmp_path: Path) -> None:
    source = fixture("digits_resnet")
    onnxshot.prune(source, sparsity=0.5, scope="layer", output=tmp_path / "p.onnx")
    found = onnxshot.diff(source, tmp_path / "p.onnx")
    assert set(found.changed) == {"mask", "values"}
    assert all(row.sparsity_after == pytest.approx(0.5, abs=0.01) for row in found.layers)
    assert all(row.zeros_made and not row.zeros_lost for row in found.layers)
