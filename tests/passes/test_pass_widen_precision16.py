"""Models of float16 and bfloat16: widened to float32 for CPUs; what callers see keeps its types."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

import onnxshot
from onnxshot.errors import TargetError
from onnxshot.graph.load import load_model
from onnxshot.passes.normalize import normalize
from onnxshot.passes.widen_precision16 import WidenPrecision16

F16, BF16 = TensorProto.FLOAT16, TensorProto.BFLOAT16


def _model(text: str, **stored: np.ndarray) -> onnx.ModelProto:
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in stored.items())
    graphs = [model.graph]
    for graph in graphs:  # the text has no float16 values: those of attributes are put in here
        for attribute in (a for node in graph.node for a in node.attribute):
            graphs += [attribute.g] if attribute.HasField("g") else []
            if attribute.t.data_type == TensorProto.FLOAT:
                half = numpy_helper.to_array(attribute.t).astype("f2")
                attribute.t.CopyFrom(numpy_helper.from_array(half))
    onnx.checker.check_model(model, full_check=True)
    return model


def _run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feed)


def _widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The widened model; it holds no 16-bit floats but in Casts at its inputs and outputs, and has their types."""
    loaded = load_model(model)
    change = WidenPrecision16().run(loaded)
    assert change.edits and not change.skips
    made = loaded.to_proto()
    onnx.checker.check_model(made, full_check=True)
    ports = {p.name for p in (*made.graph.input, *made.graph.output)}
    inferred = onnx.shape_inference.infer_shapes(made).graph.value_info
    assert not [i.name for i in inferred if i.type.tensor_type.elem_type in (F16, BF16) and i.name not in ports]
    assert not [i.name for i in made.graph.initializer if i.data_type in (F16, BF16)]
    for before, after in ((model.graph.input, made.graph.input), (model.graph.output, made.graph.output)):
        assert [(p.name, p.type.tensor_type.elem_type) for p in before] == [
            (p.name, p.type.tensor_type.elem_type) for p in after
        ]
    return made


def _agree(a: np.ndarray, b: np.ndarray, steps: float = 16) -> None:
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a.astype("f4"), b.astype("f4"), rtol=steps * 2.0**-11, atol=steps * 2.0**-11)


HEAD = '<ir_version: 9, opset_import: ["" : 19, "com.microsoft" : 1]>\n'
CASES = {
    "plain": ("agraph (float16[n, 8] x) => (float16[n, 4] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }", {}),
    # Islands, as converters with block lists of operators and keep_io_types leave them.
    "islands": (
        """agraph (float[n, 8] x) => (float[n, 4] y) {
        a = Cast<to: int = 10>(x) h = MatMul(a, w) b = Cast<to: int = 1>(h) s = Softmax<axis: int = -1>(b)
        c = Cast<to: int = 10>(s) m = MatMul(c, v) y = Cast<to: int = 1>(m) }""",
        {},
    ),
    "read output": (
        "agraph (float16[n, 8] x) => (float16[n, 8] h, float16[n, 4] y) { h = MatMul(x, w) y = MatMul(h, v) }", {},
    ),
    "attributes": (
        """agraph (float16[n, 8] x) => (float16[n, 8] y) {
        s = Shape(x) z = ConstantOfShape<value: tensor = float[1] {0.5}>(s) i = EyeLike<dtype: int = 10>(e)
        l = CastLike(n8, x) k = Constant<value: tensor = float[1] {2.0}>()
        p = MatMul(x, i) a = Add(p, z) b = Mul(a, l) y = Mul(b, k) }""",
        {"e": np.zeros((8, 8), "f4"), "n8": np.arange(8)},
    ),
    "slots": (
        """agraph (float16[1, 8] x) => (float16[1, 3] y, int64[1, 3] i, float16[1, 1, 16] u) {
        f = Range(zero, eight, one) r = Cast<to: int = 10>(f) a = Add(x, r) y, i = TopK(a, three)
        q = Unsqueeze(x, ax) u = Resize(q, roi, scales) }""",
        {
            "zero": np.float32(0), "eight": np.float32(8), "one": np.float32(1), "three": np.array([3]),
            "ax": np.array([0]), "scales": np.array([1, 1, 2], "f4"), "roi": np.zeros(0, "f2"),
        },
    ),
    "masks": (
        """agraph (float16[1, 8] x) => (float16[1, 8] y, float16[1, 8] z) {
        a = Add(x, low) y = Softmax<axis: int = -1>(a) b = Add(x, inf) z = Softmax<axis: int = -1>(b) }""",
        {
            "low": np.array([0, -65504, 0, -65504, 0, 0, -65504, 0], "f2"),
            "inf": np.array([0, -np.inf, 0, -np.inf, 0, 0, -np.inf, 0], "f2"),
        },
    ),
    "branch": (
        """agraph (float16[n, 8] x, bool c) => (float16[n, 4] y) {
        y = If (c) <then_branch = t () => (float16[n, 4] a) { a = MatMul(x, v) },
                    else_branch = f () => (float16[n, 4] b) { h = MatMul(x, w) b = MatMul(h, v) }> }""",
        {},
    ),
    "loop": (
        """agraph (float16[2, 8] x) => (float16[2, 8] y, float16[3, 2, 8] all) {
        y, all = Loop (trips, yes, x) <body = b (int64 i, bool c, float16[2, 8] s) =>
            (bool d, float16[2, 8] t, float16[2, 8] o) {
            d = Identity(c) m = MatMul(s, w) t = Tanh(m) k = Constant<value: tensor = float[1] {3.0}>()
            o = Mul(t, k) }> }""",
        {"trips": np.int64(3), "yes": np.bool_(True)},
    ),
    "scan": (
        """agraph (float16[8] s0, float16[5, 8] xs) => (float16[8] y, float16[5, 8] ys) {
        y, ys = Scan <num_scan_inputs: int = 1, body = b (float16[8] s, float16[8] x) => (float16[8] t, float16[8] o) {
            a = Add(s, x) t = MatMul(a, w) o = Identity(t) }> (s0, xs) }""",
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_widened_answers(name: str) -> None:
    """The widened model gives what ONNX Runtime, or the reference evaluator, gives of the float16 one."""
    r = np.random.default_rng(0)
    text, stored = CASES[name]
    every = {"w": r.normal(size=(8, 8)).astype("f2") / 2, "v": r.normal(size=(8, 4)).astype("f2") / 2, **stored}
    model = _model(HEAD + text, **{k: v for k, v in every.items() if k in stored or f"{k})" in text})
    made = _widened(model)
    feed = {}
    for port in model.graph.input:
        kind = helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type)
        shape = [d.dim_value or 3 for d in port.type.tensor_type.shape.dim]
        feed[port.name] = np.array(True) if kind == np.bool_ else r.normal(size=shape).astype(kind)
    try:
        wanted = _run(model, feed)
    except Exception as e:  # ONNX Runtime's errors share no base class
        assert "Could not find an implementation for EyeLike" in str(e)
        wanted = ReferenceEvaluator(model).run(None, feed)
    for given, now in zip(wanted, _run(made, feed), strict=True):
        _agree(given, now)


def test_masks_keep_their_values() -> None:
    """-65504 and -inf are the same numbers in float32."""
    text, stored = CASES["masks"]
    made = _widened(_model(HEAD + text, **stored))
    values = {i.name: numpy_helper.to_array(i) for i in made.graph.initializer}
    for name, mask in stored.items():
        np.testing.assert_array_equal(values[name], mask.astype("f4"))


def test_local_functions_are_widened() -> None:
    """A function that casts to float16 is inlined first: what it says of types would stay as it is."""
    text = """<ir_version: 9, opset_import: ["" : 19, "own" : 1]>
    agraph (float[n, 8] x) => (float[n, 8] y) { y = own.Half(x) }
    <domain: "own", opset_import: ["" : 19]>
    Half (a) => (d) { b = Cast<to: int = 10>(a) c = Exp(b) d = Cast<to: int = 1>(c) }"""
    model = parser.parse_model(text)
    loaded = load_model(model)
    assert WidenPrecision16().run(loaded).edits
    normalize(loaded)
    made = loaded.to_proto()
    assert [n.op_type for n in made.graph.node] == ["Exp"]
    x = np.linspace(-2, 2, 16, dtype="f4").reshape(2, 8)
    np.testing.assert_allclose(_run(made, {"x": x})[0], np.exp(x), rtol=1e-6)


def test_what_only_casts_can_give_is_refused_by_name() -> None:
    """Operators of unknown domains may not know float32; the model stays as it is, and the skip names the node."""
    node = helper.make_node("Odd", ["x"], ["y"], domain="someone.else", name="odd")
    ports = [helper.make_tensor_value_info(n, F16, [4]) for n in "xy"]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("someone.else", 1)]
    model = load_model(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    before = model.to_proto()
    change = WidenPrecision16().run(model)
    assert [s.node for s in change.skips] == ["odd"] and model.to_proto() == before


def _net(dtype: np.dtype, kind: int, seed: int = 0) -> onnx.ModelProto:
    """Conv, Relu, Conv, Add, pool, Gemm with inputs and outputs of the type."""
    r = np.random.default_rng(seed)

    def stored(name: str, *shape: int) -> onnx.TensorProto:
        values = r.normal(size=shape) / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 16)
        return numpy_helper.from_array(values.astype("f2").astype(dtype), name)

    weights = [stored("w1", 32, 8, 3, 3), stored("b1", 32), stored("w2", 32, 32, 3, 3), stored("b2", 32)]
    weights += [stored("w3", 10, 32), stored("b3", 10)]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", pads=[1] * 4),
        helper.make_node("Add", ["c2", "r1"], ["s"], name="add"),
        helper.make_node("Relu", ["s"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="head", transB=1),
    ]
    shapes = {"x": ["n", 8, 12, 12], "y": ["n", 10]}
    ports = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def _samples(dtype: np.dtype, count: int = 16) -> list[dict[str, np.ndarray]]:
    r = np.random.default_rng(7)
    return [{"x": r.normal(size=(1, 8, 12, 12)).astype("f2").astype(dtype)} for _ in range(count)]


def test_a_half_model_is_quantized_as_its_float_twin(tmp_path: Path) -> None:
    """ORT #15341: share, SQNR and size of the float32 twin, held against the file as it was given."""
    full = onnxshot.quantize(_net(np.dtype("f4"), 1), _samples(np.dtype("f4")), output=tmp_path / "full.onnx").report
    half = onnxshot.quantize(_net(np.dtype("f2"), F16), _samples(np.dtype("f2")), output=tmp_path / "half.onnx").report
    assert half.int8_macs_share == pytest.approx(full.int8_macs_share)
    assert half.int8_macs_share > 0.9
    assert half.sqnr_db == pytest.approx(full.sqnr_db, abs=1.5)
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("full", "half")]
    assert sizes[1] < sizes[0] * 1.05
    assert any("computes in float16" in note for note in half.notes)
    written = onnx.load(tmp_path / "half.onnx")
    assert [p.type.tensor_type.elem_type for p in (*written.graph.input, *written.graph.output)] == [F16, F16]
    given, now = (_run(m, _samples(np.dtype("f2"))[0])[0].astype("f4") for m in (_net(np.dtype("f2"), F16), written))
    assert 10 * np.log10((given**2).sum() / ((given - now) ** 2).sum()) > half.sqnr_db - 6


def test_bfloat16_is_held_against_the_widened_form() -> None:
    """ONNX Runtime's CPU kernels lack it: the note says what was compared."""
    import onnxruntime

    model = _net(np.dtype(ml_dtypes.bfloat16), BF16)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented):
        _run(model, {})
    result = onnxshot.quantize(model, _samples(np.dtype(ml_dtypes.bfloat16)))
    assert result.report.int8_macs_share > 0.9 and result.report.sqnr_db > 25
    assert any(note.startswith("compared with the normalized model") for note in result.report.notes)
    twin = onnxshot.inspect(model).plan
    assert {n.how for n in twin.nodes if n.op == "Conv"} == {"static"}


def test_a_pattern_finds_the_layer_of_an_output() -> None:
    """The name of an output is the Cast's now; a user means the layer."""
    plan = onnxshot.inspect(_net(np.dtype("f2"), F16), recipe=onnxshot.Recipe(exclude=("y",))).plan
    assert next(n for n in plan.nodes if n.node == "head").reason == "excluded by 'y'"


def test_weights_outside_and_named_inputs(tmp_path: Path) -> None:
    """Weights of 16 bits in a file beside the model, and one that is listed as an input too."""
    model = _net(np.dtype("f2"), F16)
    model.graph.input.append(helper.make_tensor_value_info("w2", F16, [32, 32, 3, 3]))
    path = tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    report = onnxshot.quantize(path, _samples(np.dtype("f2")), output=tmp_path / "out.onnx").report
    assert report.int8_macs_share > 0.9 and report.sqnr_db > 25


def _kinds(model: onnx.ModelProto) -> set[int]:
    return {i.data_type for i in model.graph.initializer if len(i.dims) and i.data_type != TensorProto.INT64}


def test_tensorrt_gets_pairs_of_float16(tmp_path: Path) -> None:
    """It compiles 16 bits as they are: scales of float16, opset 19, no Cast; --complete keeps them all."""
    model = _net(np.dtype("f2"), F16)
    result = onnxshot.quantize(model, _samples(np.dtype("f2")), output=tmp_path / "q.onnx", target="tensorrt")
    written = onnx.load(tmp_path / "q.onnx")
    onnx.checker.check_model(written, full_check=True)
    found = {n.op_type for n in written.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= found and "Cast" not in found
    assert _kinds(written) == {F16, TensorProto.INT8}
    assert result.report.sqnr_db > 25
    again = onnxshot.quantize(tmp_path / "q.onnx", _samples(np.dtype("f2")), target="tensorrt", complete=True)
    pairs = [sum(n.op_type == "DequantizeLinear" for n in m.graph.node) for m in (written, again.model.to_proto())]
    assert pairs[0] == pairs[1] > 0 and _kinds(again.model.to_proto()) == {F16, TensorProto.INT8}
    assert any("trained scales were kept" in note and not note.startswith("0 ") for note in again.report.notes)
    on_cpu = onnxshot.quantize(tmp_path / "q.onnx", _samples(np.dtype("f2")), complete=True).report
    assert on_cpu.int8_macs_share > 0.9 and on_cpu.sqnr_db > 25


def test_tensorrt_gets_pairs_of_bfloat16() -> None:
    """What ONNX Runtime cannot run is checked in the widened form."""
    model = _net(np.dtype(ml_dtypes.bfloat16), BF16)
    result = onnxshot.quantize(model, _samples(np.dtype(ml_dtypes.bfloat16)), target="tensorrt")
    assert _kinds(result.model.to_proto()) == {BF16, TensorProto.INT8}
    assert result.report.sqnr_db > 25
    assert any("which has no bfloat16, in float32" in note for note in result.report.notes)


@pytest.mark.parametrize("kind", [F16, BF16])
def test_pruned_models_stay_half(tmp_path: Path, kind: int) -> None:
    """Zeros are found in float32; the file computes in 16 bits as before, and is no larger."""
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    given = tmp_path / "net.onnx"
    onnx.save(_net(dtype, kind), given)
    report = onnxshot.prune(given, _samples(dtype), sparsity=0.4, output=tmp_path / "p.onnx").report
    written = onnx.load(tmp_path / "p.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert _kinds(written) == {kind} and not [n for n in written.graph.node if n.op_type == "Cast"]
    assert sum(i.ByteSize() for i in written.graph.initializer) <= sum(
        i.ByteSize() for i in onnx.load(given).graph.initializer
    ) + 24 * len(written.graph.initializer)
    assert report.sparsity == pytest.approx(0.4, abs=0.02) and report.sqnr_db > 8


def test_cut_models_stay_half() -> None:
    """Channels are cut in float32; what is left computes in 16 bits."""
    made = onnxshot.shrink(_net(np.dtype("f2"), F16), _samples(np.dtype("f2")), target_flops=0.6).model.to_proto()
    onnx.checker.check_model(made, full_check=True)
    assert _kinds(made) == {F16} and not [n for n in made.graph.node if n.op_type == "Cast"]
    assert _run(made, _samples(np.dtype("f2"))[0])[0].shape == (1, 10)


@pytest.mark.parametrize("kind", [F16, BF16])
def test_emitted_models_stay_half(tmp_path: Path, kind: int) -> None:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    onnxshot.emit(_net(dtype, kind), output=tmp_path / "e.onnx")
    written = onnx.load(tmp_path / "e.onnx")
    assert _kinds(written) == {kind} and not [n for n in written.graph.node if n.op_type == "Cast"]


def test_islands_are_given_back_as_they_were() -> None:
    """What was float32 in a mixed model stays so for TensorRT, what was float16 is float16 again."""
    r = np.random.default_rng(3)
    text = HEAD.replace("19", "17") + """agraph (float[n, 64] x) => (float[n, 16] y) {
        a = Cast<to: int = 10>(x) h = MatMul(a, w) g = Relu(h) b = Cast<to: int = 1>(g) s = Softmax<axis: int = -1>(b)
        c = Cast<to: int = 10>(s) m = MatMul(c, v) y = Cast<to: int = 1>(m) }"""
    model = _model(text, w=r.normal(size=(64, 64)).astype("f2") / 8, v=r.normal(size=(64, 16)).astype("f2") / 4)
    samples = [{"x": r.normal(size=(4, 64)).astype("f4")} for _ in range(12)]
    result = onnxshot.quantize(model, samples, target="tensorrt")
    made = onnx.shape_inference.infer_shapes(result.model.to_proto(), strict_mode=True)
    kinds = {i.name: i.type.tensor_type.elem_type for i in made.graph.value_info}
    made_by = {n.op_type: kinds[n.output[0]] for n in made.graph.node if n.op_type in ("MatMul", "Relu", "Softmax")}
    assert made_by == {"MatMul": F16, "Relu": F16, "Softmax": TensorProto.FLOAT}
    assert result.report.sqnr_db > 25 and result.model.opset == 19
    assert _kinds(made) == {F16, TensorProto.INT8}


def test_bfloat16_files_are_compared_timed_and_compressed(tmp_path: Path) -> None:
    """What ONNX Runtime refuses is run in float32, and notes say so."""
    given, made = tmp_path / "net.onnx", tmp_path / "q.onnx"
    dtype = np.dtype(ml_dtypes.bfloat16)
    onnx.save(_net(dtype, BF16), given)
    onnxshot.quantize(given, _samples(dtype), output=made, effort="fast")
    report = onnxshot.compare(given, made, _samples(dtype))
    assert report.sqnr_db > 25
    assert any("computes in bfloat16" in note for note in report.notes)
    rows = onnxshot.bench([given, made], _samples(dtype), seconds=0.05)
    assert [row.path for row in rows] == [given, made]
    small = onnxshot.compress(given, _samples(dtype), sparsity=0.2, output=tmp_path / "c.onnx", effort="fast").report
    assert [row.name for row in small.stages] == ["input", "pruned", "quantized"]
    assert small.stages[-1].sqnr_db > 10


def _answers(dtype: np.dtype) -> np.ndarray:
    """What the net of float32 gives for its samples: numbers that no bfloat16 of any runtime has a part in."""
    net = _net(np.dtype("f4"), TensorProto.FLOAT)
    return np.stack([_run(net, {k: v.astype("f4") for k, v in feed.items()})[0] for feed in _samples(dtype)])


def _db(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))


def test_openvino_takes_and_gives_bfloat16(tmp_path: Path) -> None:
    """Inputs and outputs in its own format, of the given file and of a quantized one."""
    pytest.importorskip("openvino")
    from onnxshot.runtimes.openvino_runtime import OpenVino

    given, made = tmp_path / "net.onnx", tmp_path / "q.onnx"
    dtype = np.dtype(ml_dtypes.bfloat16)
    onnx.save(_net(dtype, BF16), given)
    report = onnxshot.quantize(given, _samples(dtype), target="openvino", output=made, effort="fast").report
    wanted = _answers(dtype)
    for path, least in ((given, 35.0), (made, 20.0)):
        loaded = OpenVino().load(path, threads=1)
        found = np.stack([loaded.run(feed)["y"] for feed in _samples(dtype)])
        assert found.dtype == np.float32 and _db(wanted, found) > least
    (row,) = report.runtimes
    assert row["sqnr_db"] > 20
    emitted = onnxshot.emit(given, to="openvino", output=tmp_path / "e.xml", calib=_samples(dtype))
    assert emitted.outputs[0].sqnr_db > 35


def test_bfloat16_files_are_bundled_told_apart_and_put_into_float16(tmp_path: Path) -> None:
    """What needs the answers of the given model takes them of its float32 form."""
    given, made, half = tmp_path / "net.onnx", tmp_path / "q.onnx", tmp_path / "half.onnx"
    dtype = np.dtype(ml_dtypes.bfloat16)
    onnx.save(_net(dtype, BF16), given)
    result = onnxshot.quantize(given, _samples(dtype), output=made, effort="fast")
    found = onnxshot.diff(given, made, _samples(dtype))
    assert found.sqnr_db > 20 and any("computes in bfloat16" in note for note in found.notes)
    onnxshot.bundle(result, tmp_path / "b", _samples(dtype))
    assert [(row.output, row.passed) for row in onnxshot.verify(tmp_path / "b").outputs] == [("y", True)]
    onnxshot.quantize(given, _samples(dtype), precision="fp16", output=half)
    session = ort.InferenceSession(str(half))
    values = [
        ort.OrtValue.ortvalue_from_numpy_with_onnx_type(feed["x"].view(np.uint16), BF16) for feed in _samples(dtype)
    ]
    bits = [session.run_with_ort_values(["y"], {"x": value})[0] for value in values]
    assert bits[0].element_type() == BF16
    assert F16 in {t.data_type for t in onnx.load(half).graph.initializer}


def test_a_bundle_of_a_file_that_stays_in_bfloat16_says_that_it_cannot_be_run(tmp_path: Path) -> None:
    given, made = tmp_path / "net.onnx", tmp_path / "q.onnx"
    dtype = np.dtype(ml_dtypes.bfloat16)
    onnx.save(_net(dtype, BF16), given)
    result = onnxshot.quantize(given, _samples(dtype), target="tensorrt", output=made, effort="fast")
    onnxshot.bundle(result, tmp_path / "b", _samples(dtype))
    with pytest.raises(TargetError, match="computes in bfloat16, which ONNX Runtime lacks on CPUs"):
        onnxshot.verify(tmp_path / "b")
