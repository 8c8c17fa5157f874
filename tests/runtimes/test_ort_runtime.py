import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnxshot.errors import ModelError, TargetError, UsageError
from onnxshot.runtimes.executed import Execution
from onnxshot.runtimes.ort_bench import bench, settled
from onnxshot.runtimes.ort_executed import executed
from onnxshot.runtimes.ort_runtime import Runner, as_array, providers_for, session
from onnxshot.runtimes.ort_session import SessionRunner

Feed = dict[str, NDArray[np.float32]]


def values(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).normal(0, 0.3, shape).astype(np.float32)


def parsed(text: str, imports: str = "", **constants: NDArray[np.generic]) -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17{imports}]>\ng {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    return proto


def linear() -> bytes:
    return parsed("(float[N,8] x) => (float[N,4] y) { y = MatMul(x, w) }", w=values(8, 4)).SerializeToString()


def residual() -> onnx.ModelProto:
    return parsed(
        """(float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv<pads=[1,1,1,1]>(x, w1, b1)  b = Relu(a)
            c = Conv<pads=[1,1,1,1]>(b, w2, b1)  d = Add(c, b)  e = Relu(d)
            f = GlobalAveragePool(e)  h = Flatten(f)  y = Gemm(h, w3, b3)
        }""",
        w1=values(8, 3, 3, 3), b1=values(8), w2=values(8, 8, 3, 3), w3=values(8, 5), b3=values(5),
    )  # fmt: skip


RESIDUAL_MACS = 2 * 64 * 8 * (27 + 72) + 2 * 40  # of a batch of 2


def quantized(proto: onnx.ModelProto, folder: Path, feeds: list[Feed], **options: object) -> Path:
    """A QDQ model made by onnxruntime's own quantizer: uint8 activations, per-channel int8 weights."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.feeds, None)

    source, target = folder / "float.onnx", folder / "q.onnx"
    for i, node in enumerate(proto.graph.node):
        node.name = node.name or f"n{i}"
    onnx.save(proto, str(source))
    options |= {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(str(source), str(target), Reader(), **options)
    return target


# ---------------------------------------------------------------------- sessions


def test_a_runner_names_inputs_and_outputs_and_runs() -> None:
    runner = Runner(linear())
    (spec,) = runner.inputs
    assert (spec.name, spec.dtype, spec.shape) == ("x", np.float32, ("N", 8))
    x = values(3, 8, seed=1)
    result = runner.run({"x": x, "unused": x})
    np.testing.assert_allclose(result["y"], x @ values(8, 4), atol=1e-5)


def test_a_runner_gives_the_outputs_asked_for() -> None:
    proto = parsed("(float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Neg(x) }")
    assert list(Runner(proto.SerializeToString(), outputs=["z"]).run({"x": values(2)})) == ["z"]


def test_outputs_that_are_no_arrays_are_skipped() -> None:
    proto = parsed("(float[2] x) => (seq(float[2]) s, float[2] y) { s = SequenceConstruct(x, x)  y = Neg(x) }")
    runner = Runner(proto.SerializeToString())
    assert runner.skipped == {"s": "seq(tensor(float))"}
    assert list(runner.run({"x": values(2)})) == ["y"]


def test_a_sequence_output_is_skipped() -> None:
    proto = parsed(
        """(float[N,6] x) => (float[N,6] y) {
            s = SplitToSequence<axis = 1>(x, sizes)  y = ConcatFromSequence<axis = 1>(s)
        }""",
        sizes=np.array([2, 4], np.int64),
    )
    proto.graph.output.append(onnx.helper.make_tensor_sequence_value_info("s", 1, None))
    run = Runner(proto.SerializeToString(), outputs=["s", "y"])
    assert {name: found.shape for name, found in run.run({"x": values(3, 6)}).items()} == {"y": (3, 6)}
    assert "seq" in run.skipped["s"]


def test_a_model_without_tensor_outputs_runs() -> None:
    """The model really runs: a session that is never called would neither refuse a feed nor take time."""
    text = "(float[N,8] x) => (seq(float[N,1]) s) { h = MatMul(x, w) s = SplitToSequence<axis=1>(h) }"
    model = parsed(text, w=values(8, 4)).SerializeToString()
    calls = []
    runner = SessionRunner(model)
    real = runner._session.run
    runner._session = type("Counting", (), {
        "run": lambda _, *given: calls.append(real(*given)), "get_outputs": lambda _: session(model).get_outputs(),
    })()  # fmt: skip
    assert runner.run({"x": values(2, 8)}) == {} and len(calls) == 1
    np.testing.assert_allclose(np.concatenate(calls[0][0], 1), values(2, 8) @ values(8, 4), atol=1e-5)
    assert runner.run({"x": values(2, 8)}, []) == {} and len(calls) == 1
    with pytest.raises(ModelError, match="fails in ONNX Runtime"):
        SessionRunner(model).run({"x": values(2, 9)})


def test_what_is_not_a_tensor_becomes_one_array() -> None:
    one, two = values(2, 3), values(2, 4)
    np.testing.assert_array_equal(as_array([one, one]), np.stack([one, one]))
    np.testing.assert_array_equal(as_array([one, two]), np.concatenate([one.reshape(-1), two.reshape(-1)]))
    np.testing.assert_array_equal(as_array([{"b": 2.0, "a": 1.0}, {"a": 3.0, "b": 4.0}]), [[1, 2], [3, 4]])
    assert as_array(None).shape == as_array([]).shape == (0,)


def test_maps_sequences_and_optionals_are_returned_if_asked_for() -> None:
    proto = parsed(
        """(float[N,3] x) => (float[N,3] z, seq(float[N,3]) s, optional(float[N,3]) o) {
            z = ai.onnx.ml.ZipMap<classlabels_int64s = [4, 2, 3]>(x)  s = SequenceConstruct(x)  o = Optional(x)
        }"""
    )
    proto.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    zipped = proto.graph.output[0].type.sequence_type.elem_type.map_type
    zipped.key_type, zipped.value_type.tensor_type.elem_type = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    x = values(2, 3)
    found = Runner(proto.SerializeToString(), whole=True).run({"x": x})
    np.testing.assert_array_equal(found["z"], x[:, [1, 2, 0]])
    np.testing.assert_array_equal(found["s"], x[None])
    np.testing.assert_array_equal(found["o"], x)


@pytest.mark.parametrize("broken", [b"not a model", b""])
def test_a_damaged_model_gives_an_error_of_one_line(broken: bytes) -> None:
    with pytest.raises(ModelError) as caught:
        session(broken)
    assert "\n" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)


def test_an_operator_the_runtime_lacks_is_named() -> None:
    proto = parsed("(float[2] x) => (float[2] y) { y = custom.Thing(x) }", ', "custom": 1')
    with pytest.raises(ModelError, match="Thing"):
        Runner(proto.SerializeToString())


def test_an_inner_tensor_is_returned_if_the_layout_optimizer_drops_it() -> None:
    """ONNX Runtime adds two Convs of its blocked layout in place, even if the first one's output is asked for."""
    rng = np.random.default_rng(0)
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[1, 16, 8, 8] x) => (float[1, 32, 4, 4] a) {
            a = Conv<group = 16, pads = [3, 3, 3, 3], strides = [2, 2]>(x, w)
            b = Conv<group = 16, pads = [1, 1, 1, 1], strides = [2, 2]>(x, v)
            s = Add(a, b)
            r = Relu(s)
        }"""
    )
    for name, size in (("w", 7), ("v", 3)):
        values = rng.standard_normal((32, 1, size, size)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    feed = {"x": rng.standard_normal((1, 16, 8, 8)).astype(np.float32)}
    found = Runner(proto.SerializeToString(), inner=True).run(feed)["a"]
    np.testing.assert_allclose(found, ReferenceEvaluator(proto).run(None, feed)[0], rtol=1e-4, atol=1e-4)


def test_a_feed_that_does_not_fit_gives_an_error_of_one_line() -> None:
    with pytest.raises(ModelError, match="fails in ONNX Runtime"):
        Runner(linear()).run({"x": values(3, 9)})
    with pytest.raises(ModelError, match="asks for input 'x'"):
        Runner(linear()).run({})


def test_missing_devices_are_refused() -> None:
    import onnxruntime

    assert providers_for("cpu") == ("CPUExecutionProvider",)
    with pytest.raises(UsageError, match="devices: cpu"):
        providers_for("abacus")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(TargetError, match="onnxruntime-gpu"):
            providers_for("cuda")


def test_a_missing_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TargetError, match="pip install onnxruntime"):
        session(linear())


# ---------------------------------------------------------------------- executed


def precisions(run: Execution) -> dict[str, str]:
    return {node.op: node.precision for node in run.nodes}


def test_a_float_model_runs_in_float() -> None:
    run = executed(residual().SerializeToString(), sample={"x": values(2, 3, 8, 8)})
    assert run.share == 0.0
    assert run.int8_macs == 0
    assert run.total_macs == RESIDUAL_MACS
    assert set(precisions(run).values()) == {"float"}
    assert set(run.float_by_op) == {"Conv", "Gemm"}


def test_a_quantized_residual_block_runs_all_its_work_in_int8(tmp_path: Path) -> None:
    feeds = [{"x": values(2, 3, 8, 8, seed=i)} for i in range(4)]
    run = executed(quantized(residual(), tmp_path, feeds), sample=feeds[0])
    assert run.share == 1.0
    assert run.total_macs == RESIDUAL_MACS
    assert all(node.exact for node in run.nodes)
    assert run.ops["QLinearConv"] == 2
    assert not any(name.startswith(("Conv", "Add", "Gemm")) for name in run.float_between)


def test_work_without_a_sample_is_counted_for_batch_1(tmp_path: Path) -> None:
    feeds = [{"x": values(2, 3, 8, 8)}]
    assert executed(quantized(residual(), tmp_path, feeds)).total_macs == RESIDUAL_MACS // 2


def test_a_half_quantized_model_has_its_share(tmp_path: Path) -> None:
    feeds = [{"x": values(2, 3, 8, 8, seed=i)} for i in range(4)]
    run = executed(quantized(residual(), tmp_path, feeds, op_types_to_quantize=["Gemm"]), sample=feeds[0])
    assert 0 < run.share < 0.01
    assert next(iter(run.float_by_op)).endswith("Conv")


def test_float_nodes_between_dq_and_q_are_named() -> None:
    """microsoft/onnxruntime #12487, #21496: quantized on paper, float in the run."""
    proto = parsed(
        """(float[2,8] x) => (float[2,8] y) {
            a = QuantizeLinear(x, s, z)  b = DequantizeLinear(a, s, z)
            c = Exp(b)  d = QuantizeLinear(c, s, z)  y = DequantizeLinear(d, s, z)
        }""",
        s=np.asarray(0.05, np.float32), z=np.asarray(128, np.uint8),
    )  # fmt: skip
    proto.graph.node[2].name = "exp"
    assert executed(proto.SerializeToString(), sample={"x": values(2, 8)}).float_between == ("Exp exp",)


def test_dynamic_matmul_runs_in_int8(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    proto = parsed("(float[N,64] x) => (float[N,32] y) { y = MatMul(x, w) }", w=values(64, 32))
    onnx.save(proto, str(tmp_path / "f.onnx"))
    quantize_dynamic(str(tmp_path / "f.onnx"), str(tmp_path / "q.onnx"))
    run = executed(tmp_path / "q.onnx", sample={"x": values(3, 64)})
    assert run.share == 1.0
    assert run.total_macs == 3 * 64 * 32


@pytest.mark.parametrize(("level", "activations"), [(4, "int8"), (0, "float")])
def test_int4_weights_are_distinguished_from_int8(level: int, activations: str) -> None:
    attributes = {"K": 64, "N": 32, "bits": 4, "block_size": 32, "accuracy_level": level}
    node = onnx.helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attributes)
    proto = parsed(
        "(float[N,64] x) => (float[N,32] y) { y = Neg(x) }", ', "com.microsoft": 1',
        w=np.zeros((32, 2, 16), np.uint8), s=np.ones(64, np.float32),
    )  # fmt: skip
    proto.graph.node[0].CopyFrom(node)
    run = executed(proto.SerializeToString(), sample={"x": values(3, 64)})
    assert precisions(run) == {"MatMulNBits": "int4" if level == 4 else "float"}
    assert run.total_macs == 3 * 64 * 32
    assert run.blocks == [{"bits": 4, "activations": activations, "macs_share": 1.0}]
    assert run.share == (level == 4)


def test_a_loop_counts_every_iteration() -> None:
    text = """(float[2,4] x) => (float[2,4] y) {
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[2,4] h) => (bool d, float[2,4] k) {
            d = Identity(c)  k = MatMul(h, w) }> }"""
    proto = parsed(text, w=values(4, 4), n=np.asarray(5, np.int64), go=np.asarray(True))
    assert executed(proto.SerializeToString(), sample={"x": values(2, 4)}).total_macs == 5 * 2 * 16


def test_a_branch_not_taken_does_no_work() -> None:
    text = """(bool c, float[2,8] x) => (float[2,4] y) {
        y = If (c) <then_branch = t () => (float[2,4] a) { a = MatMul(x, w) },
                    else_branch = e () => (float[2,4] b) { h = MatMul(x, w2)  b = MatMul(h, w) }> }"""
    proto = parsed(text, w=values(8, 4), w2=values(8, 8)).SerializeToString()
    x = values(2, 8)
    assert executed(proto, sample={"c": np.asarray(True), "x": x}).total_macs == 64
    assert executed(proto, sample={"c": np.asarray(False), "x": x}).total_macs == 64 + 128


def test_nodes_without_names_and_external_weights_are_found(tmp_path: Path) -> None:
    proto = parsed("(float[N,8] x) => (float[N,4] y) { a = MatMul(x, v) b = MatMul(a, v)  y = MatMul(b, w) }",
                   v=values(8, 8), w=values(8, 4))  # fmt: skip
    onnx.save(proto, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    run = executed(tmp_path / "m.onnx", sample={"x": values(3, 8)})
    assert run.total_macs == 3 * (64 + 64 + 32)
    assert len(run.nodes) == 3


def test_a_sample_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="fails in ONNX Runtime"):
        executed(linear(), sample={"x": values(3, 9)})
    with pytest.raises(ModelError):
        executed(tmp_path / "missing.onnx")


# ---------------------------------------------------------------------- bench


def test_bench_runs_all_models_the_same_number_of_rounds(tmp_path: Path) -> None:
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path in paths:
        path.write_bytes(linear())
    rows = bench(paths, [{"x": values(1, 8)}, {"x": values(3, 8)}], rounds=5, seconds=5)
    assert [r.path for r in rows] == paths
    assert [r.rounds for r in rows] == [5, 5]
    assert rows[0].ratio == 1.0
    assert all(0 < r.p10 <= r.median_ms <= r.p90 for r in rows)
    assert rows[1].ratio > 0


def test_bench_stops_at_its_time_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(linear())
    (row,) = bench([path], [{"x": values(1, 8)}], rounds=10**9, seconds=0.01)
    assert 3 <= row.rounds < 10**5


def test_bench_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError):
        bench([], [])


def test_timing_ends_when_the_ratio_is_known() -> None:
    """The rule equals its formula: half the notch of a box plot, 1.57 * IQR / sqrt(n)."""
    rng = np.random.default_rng(0)
    for spread in (0.02, 0.1, 0.5):
        ratios = 2.0 + spread * rng.standard_normal(100)
        ms = np.stack([ratios, np.ones(100)], axis=1)
        half = 1.57 * np.subtract(*np.percentile(ratios, (75, 25))) / 10
        for precision in (0.5 * half / np.median(ratios), 2 * half / np.median(ratios)):
            assert settled(ms, precision) == (precision > half / np.median(ratios))
    assert settled(np.ones((10, 3)), 0.001)
    jittery = np.stack([np.ones(100), np.ones(100), 1.0 / ratios], axis=1)
    assert not settled(jittery, 0.01), "every ratio must be known"
