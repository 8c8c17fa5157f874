"""A model run in parts gives what ONNX Runtime gives for the whole model, and holds one part's weights at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxshot import memory
from onnxshot.errors import ModelError
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.runtimes.parts import Parts

WIDTH = 48
RNG = np.random.default_rng(7)


def _model(nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], outputs: Sequence[str]) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])]
    infos = [onnx.ValueInfoProto(name=name) for name in outputs]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, infos, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _residual(layers: int = 6, *, quantized: bool = False) -> onnx.ModelProto:
    """Layers h + relu(h A) B on a residual stream, with a shared mask that is computed from constants."""
    nodes = [helper.make_node("Sqrt", ["four"], ["two"]), helper.make_node("Mul", ["x", "two"], ["h0"])]
    weights: dict[str, np.ndarray] = {"four": np.float32(4)}
    for i in range(layers):
        for name in (f"a{i}", f"b{i}"):
            weights[name] = (RNG.standard_normal((WIDTH, WIDTH)) / 7).astype(np.float32)
        source = f"h{i}"
        if quantized:
            weights |= {f"s{i}": np.float32(0.05), f"z{i}": np.uint8(128)}
            nodes += [
                helper.make_node("QuantizeLinear", [source, f"s{i}", f"z{i}"], [f"q{i}"]),
                helper.make_node("DequantizeLinear", [f"q{i}", f"s{i}", f"z{i}"], [f"d{i}"]),
            ]
            source = f"d{i}"
        nodes += [
            helper.make_node("MatMul", [source, f"a{i}"], [f"u{i}"]),
            helper.make_node("Relu", [f"u{i}"], [f"r{i}"]),
            helper.make_node("Mul", [f"r{i}", "two"], [f"t{i}"]),
            helper.make_node("MatMul", [f"t{i}", f"b{i}"], [f"v{i}"]),
            helper.make_node("Add", [source, f"v{i}"], [f"h{i + 1}"]),
        ]
    return _model(nodes, weights, [f"h{layers}", "h2"])


def _feeds(count: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"x": RNG.standard_normal((2 + i, WIDTH)).astype(np.float32)} for i in range(count)]


def _whole(proto: onnx.ModelProto, feeds: Sequence[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two weights to a part."""
    monkeypatch.setattr(memory, "part_bytes", lambda: 2 * 4 * WIDTH * WIDTH)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.usefixtures("small_parts")
def test_parts_compute_what_the_whole_model_computes(quantized: bool) -> None:
    proto, feeds = _residual(quantized=quantized), _feeds()
    runner = Runner(LeanModel.of(proto))
    assert runner.in_parts == 6
    for wanted, got in zip(_whole(proto, feeds), runner.run_all(feeds, 2), strict=True):
        assert list(got) == ["h6", "h2"]
        for one, other in zip(wanted, got.values(), strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_parts")
def test_cuts_are_on_the_residual_stream() -> None:
    parts = Parts(LeanModel.of(_residual()), memory.part_bytes())
    assert [part.passes for part in parts.parts] == [(f"h{i}",) for i in range(1, 6)] + [()]
    assert [part.reads for part in parts.parts] == [("x",)] + [(f"h{i}",) for i in range(1, 6)]


@pytest.mark.usefixtures("small_parts")
def test_integers_cross_and_every_reader_has_its_dequantize_linear() -> None:
    parts = Parts(LeanModel.of(_residual(quantized=True)), memory.part_bytes())
    makers = {name for part in parts.parts for name in part.passes}
    assert not any(name.startswith("d") for name in makers)


@pytest.mark.parametrize(("quantized", "count"), [(False, 8), (True, 2)])
def test_dequantized_weights_count_as_floats_unless_their_input_is_quantized_too(quantized: bool, count: int) -> None:
    layers, width = 8, 80
    nodes, stored = list[onnx.NodeProto](), {"s": np.float32(0.05), "z": np.uint8(128)}
    for i in range(layers):
        stored[f"w{i}"] = RNG.integers(-127, 128, (width, width), np.int8)
        nodes.append(helper.make_node("DequantizeLinear", [f"w{i}", "s"], [f"f{i}"]))
        source = "x" if i == 0 else f"y{i - 1}"
        if quantized:
            nodes.append(helper.make_node("QuantizeLinear", [source, "s", "z"], [f"q{i}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", "s", "z"], [f"d{i}"]))
            source = f"d{i}"
        nodes.append(helper.make_node("MatMul", [source, f"f{i}"], [f"y{i}"]))
    lean = LeanModel.of(_model(nodes, stored, [f"y{layers - 1}"]))
    assert len(Parts(lean, 4 * width * width)) == count


@pytest.mark.usefixtures("small_parts")
def test_a_candidate_is_cut_where_the_float_model_is() -> None:
    first = Parts(LeanModel.of(_residual()), memory.part_bytes())
    second = Parts(LeanModel.of(_residual(quantized=True)), 1 << 40, first.stops)
    assert len(second) == len(first)
    for name in ("u0", "v3", "h4", "h6"):
        assert first.part_of(name) == second.part_of(name) is not None
    assert (first.part_of("x"), first.part_of("a0")) == (None, None)


@pytest.mark.usefixtures("small_parts")
def test_events_give_each_tensor_once_in_the_order_of_the_parts() -> None:
    proto, feeds = _residual(), _feeds(2)
    names = ["u0", "u3", "h6", "x", "a1"]
    seen: list[tuple[int, str]] = []
    for sample, values in Runner(LeanModel.of(proto).exposing(names)).events(feeds, 1, names):
        seen += [(sample, name) for name in values]
    assert sorted(seen) == sorted((sample, name) for sample in range(2) for name in names)
    assert seen.index((1, "u0")) < seen.index((0, "u3")) < seen.index((1, "u3")) < seen.index((0, "h6"))


@pytest.mark.usefixtures("small_parts")
def test_what_crosses_is_spilled_past_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "held_bytes", lambda: 0)
    proto, feeds = _residual(), _feeds()
    for wanted, got in zip(_whole(proto, feeds), Runner(LeanModel.of(proto)).run_all(feeds, 2), strict=True):
        np.testing.assert_allclose(got["h6"], wanted[0], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_parts")
def test_branches_and_bfloat16_and_sequences_cross_or_are_not_cut() -> None:
    proto = _residual(4)
    graph = proto.graph
    branches = [
        helper.make_graph([helper.make_node(op, ["h1"], [f"{op}_o"])], op, [], [onnx.ValueInfoProto(name=f"{op}_o")])
        for op in ("Neg", "Abs")
    ]
    graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    nodes = [
        helper.make_node("If", ["yes"], ["branch"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Cast", ["branch"], ["half"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["half"], ["full"], to=TensorProto.FLOAT),
        helper.make_node("SequenceConstruct", ["full", "h3"], ["pair"]),
        helper.make_node("ConcatFromSequence", ["pair"], ["joined"], axis=0),
    ]
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*kept[:7], *nodes[:2], *kept[7:17], *nodes[2:], *kept[17:]])
    graph.output.append(onnx.ValueInfoProto(name="joined"))
    graph.value_info.append(helper.make_tensor_value_info("half", TensorProto.BFLOAT16, None))
    feeds = _feeds(2)
    runner = Runner(LeanModel.of(proto))
    assert runner.in_parts > 2
    for wanted, got in zip(_whole(proto, feeds), runner.run_all(feeds, 1), strict=True):
        np.testing.assert_allclose(got["joined"], wanted[2], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_parts")
def test_a_sequence_that_is_an_output_is_returned_where_it_was_asked_for() -> None:
    proto, feeds = _residual(4), _feeds(2)
    proto.graph.node.append(helper.make_node("SplitToSequence", ["h2"], ["pieces"], axis=0))
    proto.graph.output.append(helper.make_tensor_sequence_value_info("pieces", TensorProto.FLOAT, None))
    runner = Runner(LeanModel.of(proto), whole=True)
    assert runner.in_parts == 4
    for wanted, got in zip(_whole(proto, feeds), runner.run_all(feeds, 1), strict=True):
        np.testing.assert_allclose(got["pieces"], np.stack(wanted[2]), rtol=1e-5, atol=1e-5)
    plain = Runner(LeanModel.of(proto))
    assert (list(plain.skipped), plain.outputs) == (["pieces"], ("h4", "h2"))


@pytest.mark.usefixtures("small_parts")
def test_a_missing_input_and_a_wrong_size_are_errors_of_the_model() -> None:
    runner = Runner(LeanModel.of(_residual()))
    with pytest.raises(ModelError, match="asks for input 'x'"):
        runner.run({})
    with pytest.raises(ModelError, match="fails in ONNX Runtime"):
        runner.run({"x": np.zeros((2, WIDTH + 1), np.float32)})


@pytest.mark.usefixtures("small_parts")
def test_files_with_external_data_run_in_parts_from_their_own_file(tmp_path) -> None:
    proto, feeds = _residual(), _feeds(1)
    path = tmp_path / "model.onnx"
    copy = onnx.load_from_string(proto.SerializeToString())
    onnx.save(copy, str(path), save_as_external_data=True, size_threshold=64)
    runner = Runner(path)
    assert runner.in_parts == 6
    whole = Runner(path, split=False)
    assert whole.in_parts == 1
    for one in (runner, whole):
        np.testing.assert_allclose(one.run(feeds[0])["h6"], _whole(proto, feeds)[0][0], rtol=1e-5, atol=1e-5)
