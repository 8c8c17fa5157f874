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
from onnxshot.graph.load import load_model
from onnxshot.rewriting.undo_quantization import to_float

V, D = 3000, 48
UNSEARCHED = onnxshot.Settings(search_seconds=0.0)  # on a busy machine, a search may take what is faster there


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
    settings = onnxshot.Settings(search_seconds=0)
    result = onnxshot.quantize(given, samples, output=tmp_path / "q.onnx", look=False, settings=settings, **options)
    report = result.report
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
    report = onnxshot.quantize(given, samples, output=tmp_path / "q.onnx", effort="fast", settings=UNSEARCHED).report
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


_SHARED = """g (float[b, 16, 12, 12] x, float[b, 64] v) => (float[b, 16, 12, 12] y, float[b, 64] z) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w) c = Relu(a) d = Conv<pads = [2, 2, 2, 2], dilations = [2, 2]>(c, w) y = Relu(d)
    h = MatMul(v, m) i = Tanh(h) j = MatMul(i, m) k = Tanh(j) l = MatMul(k, m) z = Tanh(l)
}"""


def _shared() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """A Conv at two dilations and a product that is repeated three times."""
    r = np.random.default_rng(3)
    stored = {"w": (r.normal(size=(16, 16, 3, 3)) / 12).astype("f4"), "m": (r.normal(size=(64, 64)) / 6).astype("f4")}
    shapes = {"x": (1, 16, 12, 12), "v": (1, 64)}
    samples = [{n: r.normal(size=s).astype("f4") for n, s in shapes.items()} for _ in range(8)]
    return parsed(_SHARED, stored), samples


def _quantized(form: str, given: onnx.ModelProto, samples: list[dict[str, np.ndarray]], place: Path) -> Path:
    """The model in 8 bits: our own file, or one of ONNX Runtime's quantizers."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    onnx.save(given, place / "float.onnx")
    if form in ("static", "dynamic"):
        onnxshot.quantize(given, samples, mode=form, output=place / "q.onnx", effort="fast")
    elif form == "ORT dynamic":
        quantize_dynamic(place / "float.onnx", place / "q.onnx", weight_type=QuantType.QUInt8)
    else:
        shape = QuantFormat[form.removeprefix("ORT ")]
        quantize_static(place / "float.onnx", place / "q.onnx", Reader(), quant_format=shape)
    return place / "q.onnx"


@pytest.mark.parametrize("how", ["requantize", "complete"])
@pytest.mark.parametrize("form", ["static", "dynamic", "ORT QDQ", "ORT QOperator", "ORT dynamic"])
def test_integers_that_several_nodes_read_come_back_as_one_weight(form: str, how: str, tmp_path: Path) -> None:
    """A Conv at two strides: 18 kB became 48."""
    given, samples = _shared()
    place = _quantized(form, given, samples, tmp_path)
    options = onnxshot.Settings(requantize=how == "requantize")
    asked = {"complete": True} if how == "complete" else {}
    onnxshot.quantize(
        place, samples, mode="static", output=tmp_path / "r.onnx", effort="fast", settings=options, **asked
    )
    made = onnx.load(tmp_path / "r.onnx")
    for size in (16 * 16 * 9, 64 * 64):
        assert [i.data_type in (TensorProto.INT8, TensorProto.UINT8) for i in made.graph.initializer
                if np.prod(i.dims) == size] == [True]  # fmt: skip
    before = ort.InferenceSession(tmp_path / "float.onnx").run(None, samples[0])
    for wanted, found in zip(before, ort.InferenceSession(tmp_path / "r.onnx").run(None, samples[0]), strict=True):
        assert 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()) > 20


def test_equal_integers_with_other_scales_come_back_as_weights_of_their_own() -> None:
    """What a weight is made of is more than its integers; each output is held against numpy."""
    r = np.random.default_rng(4)
    q, x = r.integers(-127, 128, (64, 64)).astype("i1"), r.normal(size=(2, 64)).astype("f4")
    steps = {"s": np.float32(0.01), "t": np.float32(0.03), "c": np.linspace(0.01, 0.02, 64, dtype="f4")}
    text = """g (float[2, 64] x) => (float[2, 64] a, float[2, 64] b, float[2, 64] c0, float[2, 64] c1, float[2, 64] d) {
        ws = DequantizeLinear(q, s, z) wt = DequantizeLinear(q, t, z) wu = DequantizeLinear(q, s, z)
        w0 = DequantizeLinear<axis = 0>(q, c, zs) w1 = DequantizeLinear<axis = 1>(q, c, zs)
        a = MatMul(x, ws) b = MatMul(x, wt) c0 = MatMul(x, w0) c1 = MatMul(x, w1) d = MatMul(x, wu)
    }"""
    given = parsed(text, {"q": q, **steps, "z": np.int8(3), "zs": np.zeros(64, "i1")})
    model = load_model(given)
    to_float(model, complete=False, requantize=True)
    made = model.to_proto()
    assert sum(np.prod(i.dims) == 64 * 64 for i in made.graph.initializer) == 4
    real, c = q.astype("f4"), steps["c"]
    wanted = [(real - 3) * steps["s"], (real - 3) * steps["t"], real * c[:, None], real * c, (real - 3) * steps["s"]]
    found = ort.InferenceSession(made.SerializeToString()).run(None, {"x": x})
    for weight, got in zip(wanted, found, strict=True):
        np.testing.assert_allclose(got, x @ weight, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("per_channel", [False, True])
def test_one_matrix_along_both_of_its_axes_is_stored_once_where_one_scale_serves_both(per_channel: bool) -> None:
    """With a scale for each output channel, Gemm(transB) and MatMul of one matrix have other integers each."""
    r = np.random.default_rng(0)
    body = "h = Gemm<transB = 1>(x, w) a = Relu(h) b = MatMul(a, w) y = Relu(b)"
    w = (r.normal(size=(256, 64)) / 8).astype("f4")
    given = parsed(f"g (float[n, 64] x) => (float[n, 64] y) {{ {body} }}", {"w": w})
    samples = [{"x": r.normal(size=(4, 64)).astype("f4")} for _ in range(6)]
    made = onnxshot.quantize(given, samples, effort="fast", per_channel=per_channel).model.to_proto()
    matrices = [i.data_type for i in made.graph.initializer if np.prod(i.dims) == 256 * 64]
    assert matrices == [TensorProto.INT8] * (2 if per_channel else 1)
