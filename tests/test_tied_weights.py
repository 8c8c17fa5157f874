"""A weight that is read in several ways is stored once, whatever is done to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from handmade.core import model as parsed
from onnx import TensorProto, helper

import onnxshot

V, D = 3000, 48


def _table(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(V, D)).astype("f4")


def _ids() -> list[dict[str, np.ndarray]]:
    r = np.random.default_rng(1)
    return [{"ids": r.integers(0, V, (1, 5 + i % 4))} for i in range(12)]


HEADS = {
    "transpose": ("t = Transpose<perm = [1, 0]>(e) y = MatMul(h, t)", {}),
    "identity and transpose": ("i = Identity(e) t = Transpose<perm = [1, 0]>(i) y = MatMul(h, t)", {}),
    "gemm": ("f = Reshape(h, flat) y = Gemm<transB = 1>(f, e)", {"flat": np.array([-1, D])}),
    "stored twice": ("y = MatMul(h, lm)", {"lm": np.ascontiguousarray(_table().T)}),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_table_that_makes_the_scores_is_stored_once(head: str, tmp_path: Path) -> None:
    """PAINS 75: doubled; ONNX Runtime turns it when it loads the file, and fuses the product all the same."""
    body, stored = HEADS[head]
    rank = "n, " if head == "gemm" else "b, s, "
    text = f"g (int64[b, s] ids) => (float[{rank}{V}] y) {{ x = Gather(e, ids) h = Tanh(x) {body} }}"
    given = parsed(text, {"e": _table(), **stored})
    report = onnxshot.quantize(given, _ids(), output=tmp_path / "q.onnx", effort="fast").report
    made = onnx.load(tmp_path / "q.onnx")
    tables = [i for i in made.graph.initializer if np.prod(i.dims) == V * D]
    assert [i.data_type for i in tables] == [TensorProto.INT8]
    assert (tmp_path / "q.onnx").stat().st_size < 0.36 * V * D * 4
    assert report.sqnr_db > 30 and report.int8_macs_share == pytest.approx(1.0)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    ort.InferenceSession(str(tmp_path / "q.onnx"), options)
    ran = {n.op_type for n in onnx.load(tmp_path / "run.onnx").graph.node}
    assert "Transpose" not in ran and not {"MatMul", "Gemm"} & ran


def _encoder(shared: bool) -> onnx.ModelProto:
    """Six layers of an ALBERT: products of every layer read the same weights, behind norms of their own."""
    r = np.random.default_rng(2)
    names = {"wq": (64, 64), "wo": (64, 64), "wu": (64, 256), "wd": (256, 64)}
    stored: dict[str, Any] = {n: (r.normal(size=s) / np.sqrt(s[0])).astype("f4") for n, s in names.items()}
    loud = np.where(np.arange(64) % 16 == 3, 12, 1).astype("f4")
    lines, last = [], "x"
    for i in range(6):
        stored |= {f"g{i}": loud * (1 + 0.1 * i), f"b{i}": np.zeros(64, "f4")}
        w = {n: n if shared else f"{n}{i}" for n in names}
        stored |= {} if shared else {f"{n}{i}": stored[n] * np.float32(1 + 0.01 * i) for n in names}
        lines.append(f"""
            n{i} = LayerNormalization<axis = -1>({last}, g{i}, b{i})
            q{i} = MatMul(n{i}, {w["wq"]}) a{i} = Tanh(q{i}) o{i} = MatMul(a{i}, {w["wo"]}) r{i} = Add(o{i}, {last})
            m{i} = LayerNormalization<axis = -1>(r{i}, g{i}, b{i})
            u{i} = MatMul(m{i}, {w["wu"]}) v{i} = Gelu(u{i}) d{i} = MatMul(v{i}, {w["wd"]}) y{i} = Add(d{i}, r{i})""")
        last = f"y{i}"
    text = f"g (float[b, s, 64] x) => (float[b, s, 64] y) {{ {' '.join(lines)} y = Identity({last}) }}"
    if not shared:
        stored = {n: v for n, v in stored.items() if n not in names}
    return parsed(text, stored, opset=20)


@pytest.mark.parametrize("options", [{}, {"effort": "fast"}, {"smooth": False}, {"smooth": True}])
def test_layers_that_share_their_weights_go_on_sharing_them(options: dict[str, Any], tmp_path: Path) -> None:
    """19.4 MB became 61.5: a copy for every input that was smoothed."""
    r = np.random.default_rng(5)
    samples = [{"x": r.normal(size=(1, 7 + i % 3, 64)).astype("f4")} for i in range(24)]
    given = _encoder(True)
    report = onnxshot.quantize(given, samples, output=tmp_path / "q.onnx", **options).report
    made = onnx.load(tmp_path / "q.onnx")
    matrices = [i for i in made.graph.initializer if np.prod(i.dims) >= 64 * 64]
    assert len(matrices) == 4 and {i.data_type for i in matrices} == {TensorProto.INT8}
    assert (tmp_path / "q.onnx").stat().st_size < given.ByteSize() * 0.55
    assert report.sqnr_db > 15


def test_a_head_over_several_levels_has_one_weight_with_room_for_every_bias(tmp_path: Path) -> None:
    """A scale that fits the bias of one level alone would be another weight for each."""
    r = np.random.default_rng(0)
    nodes, stored, outs = [], {}, []
    stored["w"] = (r.normal(size=(24, 16, 3, 3)) * np.geomspace(1e-6, 0.1, 24)[:, None, None, None]).astype("f4")
    for i in range(3):
        stored[f"s{i}"] = (r.normal(size=(16, 8, 3, 3)) / 8).astype("f4")
        stored[f"b{i}"] = r.normal(size=24).astype("f4") * 40
        nodes.append(f"a{i} = Conv<pads = [1, 1, 1, 1]>(x{i}, s{i}) c{i} = Relu(a{i})")
        nodes.append(f"h{i} = Conv<pads = [1, 1, 1, 1]>(c{i}, w, b{i}) y{i} = Relu(h{i})")
        outs.append(f"float[1, 24, {8 << i}, {8 << i}] y{i}")
    ins = ", ".join(f"float[1, 8, {8 << i}, {8 << i}] x{i}" for i in range(3))
    given = parsed(f"g ({ins}) => ({', '.join(outs)}) {{ {' '.join(nodes)} }}", stored)
    samples = [
        {f"x{i}": r.normal(size=(1, 8, 8 << i, 8 << i)).astype("f4") * (1 + 3 * i) for i in range(3)} for _ in range(12)
    ]
    report = onnxshot.quantize(given, samples, output=tmp_path / "q.onnx", effort="fast").report
    made = onnx.load(tmp_path / "q.onnx")
    assert len([i for i in made.graph.initializer if list(i.dims) == [24, 16, 3, 3]]) == 1
    assert report.int8_macs_share > 0.99 and report.sqnr_db > 25


def test_a_tied_table_in_subgraph_or_output_is_left_alone() -> None:
    """A matrix that the model gives out keeps its name; nothing is tied to it."""
    e = _table()
    text = f"g (int64[b, s] ids) => (float[b, s, {V}] y, float[{V}, {D}] e) {{ x = Gather(e, ids) y = MatMul(x, lm) }}"
    graph = parsed(text.replace(f", float[{V}, {D}] e", ""), {"e": e, "lm": np.ascontiguousarray(e.T)})
    graph.graph.output.append(helper.make_tensor_value_info("e", TensorProto.FLOAT, [V, D]))
    made = onnxshot.quantize(graph, _ids(), effort="fast").model.to_proto()
    stored = {i.name: i for i in made.graph.initializer}
    assert stored["e"].data_type == TensorProto.FLOAT
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored["e"]), e)
