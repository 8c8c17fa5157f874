"""What folding makes larger is computed again in the file; passes saw its values all the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from handmade.core import model, weight
from onnx import TensorProto
from pass_checks import ops, outputs

import onnxshot
from onnxshot.graph.load import copy_of, load_model
from onnxshot.graph.save import stored_size
from onnxshot.passes.normalize import normalize
from onnxshot.passes.undo_large_folds import UndoLargeFolds, grew

ONE, ZERO, N = np.float32(1), np.float32(0), np.float32(400)
R = "r = Range(zero, n, one) a = Unsqueeze(r, ax1) b = Unsqueeze(r, ax0) l = Less(a, b) m = Where(l, low, zero) "
RANGE = {"zero": ZERO, "n": N, "one": ONE, "ax1": np.array([1]), "ax0": np.array([0]), "low": np.float32(-1e4)}
CASES = {
    "a mask": ("float[400, 400] x", "float[400, 400] y", R + "y = Add(x, m)", RANGE, 0),
    "two readers": (
        "float[400, 400] x", "float[400, 400] y", R + "p = Add(x, m) q = Mul(m, p) y = Add(p, q)", RANGE, 0,
    ),
    "a table of waves": (
        "float[1, 64, 32] x", "float[1, 64, 32] y",
        "r = Range(zero, n, one) t = Unsqueeze(r, ax1) p = MatMul(t, f) c = Cos(p) s = Sin(p) "
        "u = Mul(x, c) y = Add(u, s)",
        {"zero": ZERO, "n": np.float32(64), "one": ONE, "ax1": np.array([1]), "f": weight(1, 32)}, 0,
    ),
    "spread": ("float[512, 64] x", "float[512, 64] y", "e = Expand(v, s) y = Add(x, e)",
               {"v": weight(1, 64), "s": np.array([512, 64])}, 0),
    "filled": (
        "float[512, 64] x", "float[512, 64] y", "e = ConstantOfShape(s) y = Add(x, e)", {"s": np.array([512, 64])}, 0,
    ),
    "scaled bytes": ("float[4, 64] x", "float[4, 32] y", "f = Cast<to = 1>(q) w = Mul(f, s) y = MatMul(x, w)",
                     {"q": np.round(weight(64, 32) * 40).astype(np.int8), "s": np.float32(0.02)}, 0),
    "turned and read": (
        "int64[4] i", "float[4, 64] y", "g = Gather(w, i) t = Transpose<perm = [1, 0]>(w) y = MatMul(g, t)",
        {"w": weight(64, 32)}, 0,
    ),
    # What is no larger stays folded.
    "turned alone": ("float[4, 32] x", "float[4, 64] y", "t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)",
                     {"w": weight(64, 32)}, 1),
    "joined": ("float[4, 32] x", "float[4, 64] y", "w = Concat<axis = 1>(a, b) y = MatMul(x, w)",
               {"a": weight(32, 32), "b": weight(32, 32, seed=1)}, 1),
    "cut out": ("float[4, 32] x", "float[4, 32] y", "w = Slice(a, from, to, ax) y = MatMul(x, w)",
                {"a": weight(640, 32), "from": np.array([0]), "to": np.array([32]), "ax": np.array([0])}, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_no_file_grows_by_folding(name: str) -> None:
    source, result, body, stored, folded = CASES[name]
    given = model(f"g ({source}) => ({result}) {{ {body} }}", stored)
    ready = load_model(given)
    normalize(ready)
    before = ops(ready)
    change = UndoLargeFolds().run(ready)
    made = ready.to_proto()
    onnx.checker.check_model(made, full_check=True)
    assert bool(change.edits) != bool(folded)
    assert (ops(ready) == before) == bool(folded)
    assert sum(i.ByteSize() for i in made.graph.initializer) <= sum(i.ByteSize() for i in given.graph.initializer)
    (port,) = given.graph.input
    shape = [d.dim_value for d in port.type.tensor_type.shape.dim]
    whole = port.type.tensor_type.elem_type == TensorProto.INT64
    x = np.arange(4) if whole else np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for wanted, found in zip(outputs(given, {port.name: x}), outputs(made, {port.name: x}), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert UndoLargeFolds().run(ready).edits == 0, "once is enough"


def test_copies_and_newer_opsets_remember() -> None:
    """A model that was equalized, or whose opset was raised, is another one with the same weights."""
    source, result, body, stored, _ = CASES["a mask"]
    given = model(f"g ({source}) => ({result}) {{ {body} }}", stored)
    ready = load_model(given)
    normalize(ready)
    normalize(ready, opset=19)
    copy = copy_of(ready)
    assert UndoLargeFolds().run(copy).edits == 1
    assert copy.to_proto().ByteSize() < 4000


def test_a_weight_that_would_grow_is_not_pruned() -> None:
    """Integers behind a Cast are a quarter of what zeros in float32 take."""
    _, _, body, stored, _ = CASES["scaled bytes"]
    text = f"g (float[4, 64] x) => (float[4, 16] z) {{ {body} h = Relu(y) z = MatMul(h, v) }}"
    given = model(text, {**stored, "v": weight(32, 16)})
    ready = load_model(given)
    normalize(ready)
    by_name = {c.name: grew(ready, c) for c in ready.constants()}
    assert by_name == {"w": True, "v": False}
    result = onnxshot.prune(given, sparsity=0.5)
    assert [s.reason for s in result.report.skips] == [
        "its weight is stored in fewer bytes, or shared: the file would grow if it were pruned"
    ]
    matrices = [i for i in result.model.to_proto().graph.initializer if len(i.dims) == 2]
    assert {i.data_type: tuple(i.dims) for i in matrices} == {TensorProto.INT8: (64, 32), TensorProto.FLOAT: (32, 16)}


def test_masks_do_not_make_quantized_files_larger(tmp_path: pytest.TempPathFactory) -> None:
    """0.03 MB became 1.06: counted over the whole graph, and in every mode."""
    text = f"""g (float[b, s, 64] x) => (float[b, s, 64] y) {{ {R}
        z = Shape<start = 1, end = 2>(x) h = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(h) p = MatMul(h, t)
        both = Concat<axis = 0>(z, z) c = Slice(m, from, both) d = Add(p, c) k = Softmax<axis = -1>(d)
        o = MatMul(k, h) u = Relu(o) y = MatMul(u, v) }}"""
    given = model(text, {**RANGE, "w": weight(64, 64), "v": weight(64, 64, seed=1), "from": np.array([0, 0])})
    samples = [{"x": np.random.default_rng(i).normal(size=(1, 9 + i % 3, 64)).astype(np.float32)} for i in range(12)]
    for options in ({}, {"effort": "fast"}, {"mode": "dynamic"}, {"mode": "weights"}):
        result = onnxshot.quantize(given, samples, **options)
        assert sum(i.ByteSize() for i in result.model.to_proto().graph.initializer) < 20_000, options
        assert result.report.sqnr_db > 20


def _deep(layers: int, channels: int) -> onnx.ModelProto:
    """A chain of small Convs and Relus."""
    lines, stored, last = [], {}, "x"
    for i in range(layers):
        stored[f"w{i}"] = weight(channels, channels, 1, 1, seed=i)
        lines.append(f"c{i} = Conv({last}, w{i}) r{i} = Relu(c{i})")
        last = f"r{i}"
    port = f"float[1, {channels}, 6, 6]"
    text = f"g ({port} x) => ({port} y) {{ {' '.join(lines)} y = Identity({last}) }}"
    return model(text, stored)


@pytest.mark.parametrize(("layers", "channels", "int8"), [(80, 4, False), (60, 32, True), (6, 4, True)])
def test_layers_whose_pairs_weigh_more_than_they_save_stay_float(layers: int, channels: int, int8: bool) -> None:
    """Hundreds of tiny Convs: 0.39 MB became 1.13. Of few layers, or of larger ones, all are quantized."""
    given = _deep(layers, channels)
    samples = [
        {"x": np.random.default_rng(i).normal(size=(1, channels, 6, 6)).astype(np.float32)} for i in range(12)
    ]
    result = onnxshot.quantize(given, samples, effort="fast", settings=onnxshot.Settings(search_seconds=0))
    convs = {n.how for n in result.plan.nodes if n.op == "Conv"}
    assert convs == {"static" if int8 else "float"}
    if not int8:
        assert stored_size(result.model) <= given.ByteSize() + 20 * len(given.graph.node)
        assert all("more bytes than int8 saves" in n.reason for n in result.plan.nodes if n.op == "Conv")


def test_a_file_that_would_be_larger_is_left_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is that makes it grow; the report says by how much, and the record says what was done."""
    given = _deep(80, 4)
    monkeypatch.setattr("onnxshot.planning.make_plan.too_small", lambda *_: {})
    samples = [{"x": np.random.default_rng(i).normal(size=(1, 4, 6, 6)).astype(np.float32)} for i in range(12)]
    result = onnxshot.quantize(given, samples, effort="fast")
    assert any(note.startswith("nothing was quantized: the file would take") for note in result.report.notes)
    assert result.report.recipe["exclude"] == ["*"] or result.report.recipe["exclude"] == ("*",)
    assert {n.op_type for n in result.model.to_proto().graph.node} == {"Conv", "Relu"}
    assert result.report.sqnr_db > 100
