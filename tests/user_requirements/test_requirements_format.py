"""Requirements on graphs and formats: large files, wrapped weights, names, opsets, subgraphs."""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from fixture_data import session
from fixture_runs import PROVEN, QUICK, command, every_node, outputs, sqnr, stored
from handmade import HANDMADE, write_external
from handmade.core import Feed, feeds, model, vector, weight
from handmade.weights import OPS, WRAPPERS
from hypothesis import given, settings
from hypothesis import strategies as st
from large_model import COMMAND_LINE, SIZE, TOTAL, peak, write_large
from onnx import TensorProto, helper

import onnxshot.api.quantize
from onnxshot import inspect, quantize
from onnxshot.errors import ModelError, TargetError, UsageError
from onnxshot.graph import Constant, edit
from onnxshot.graph.load import load_model
from onnxshot.graph.ops import weight_slot
from onnxshot.passes.normalize import normalize

# ---------------------------------------------------------------------- 29: large models


def test_row29_external_data_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of external data were taken from the current folder: onnxruntime 16470, 11072, OnnxSlim 122."""
    (tmp_path / "models").mkdir()
    (tmp_path / "elsewhere").mkdir()
    source = write_external(tmp_path / "models")
    case = HANDMADE["resnet_block"]()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for model_path, out in ((source, tmp_path / "a" / "q.onnx"), (Path("../models") / source.name, Path("q.onnx"))):
        report = quantize(model_path, case.feeds, output=out, settings=PROVEN).report
        assert report.sqnr_db is not None
        assert report.sqnr_db > 25
        monkeypatch.chdir(tmp_path)
        there = out if out.is_absolute() else tmp_path / "elsewhere" / out
        assert sqnr(outputs(case.model, case.feeds), outputs(there, case.feeds)) > 25
        onnx.checker.check_model(str(there), full_check=True)
        monkeypatch.chdir(tmp_path / "elsewhere")


@pytest.mark.slow
def test_row29_a_model_over_2_gb_goes_all_the_way(tmp_path: Path) -> None:
    """Loaded, calibrated, quantized, written, read back and compared, in a fraction of its weights.

    onnxruntime 16470, 11072, 7974, 17098, Model-Optimizer 458, TensorRT 3065.
    """
    if os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize < 9e9:
        pytest.skip("needs 9 GB of disk")
    (tmp_path / "large").mkdir()
    (tmp_path / "small").mkdir()
    large = write_large(tmp_path / "large")
    source = large.relative_to(tmp_path)  # as a user in another folder would write it
    onnx.save(HANDMADE["resnet_block"]().model, str(tmp_path / "small.onnx"))
    options = ("--calib", "random", "--samples", "2", "--threads", "2", "--no-cache")
    stored = ("--mode", "weights", "-o")
    least = peak(COMMAND_LINE, "quantize", "small.onnx", *stored, "small/least.onnx", *options, folder=tmp_path)
    used = peak(COMMAND_LINE, "quantize", source, *stored, "small/weights.onnx", *options, folder=tmp_path)
    print(f"weights: {used / 1e6:.0f} MB")
    assert used - least <= 0.3 * TOTAL, "it is compared with the float model, in parts"
    used = peak(COMMAND_LINE, "quantize", source, "-o", "small/static.onnx", *options, folder=tmp_path)
    print(f"static: {used / 1e6:.0f} MB")
    assert used <= 0.5 * TOTAL, "calibration and proof run the models in parts"
    feed = {"h0": np.random.default_rng(0).normal(size=(2, SIZE)).astype(np.float32)}
    wanted = outputs(large, [feed])
    for name in ("weights", "static"):
        path = tmp_path / "small" / f"{name}.onnx"
        assert sum(p.stat().st_size for p in path.parent.glob(f"{name}*")) < 0.27 * TOTAL
        assert sqnr(wanted, outputs(path, [feed])) > 15


# ---------------------------------------------------------------------- 30 to 32: weights and names


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_row30_a_weight_behind_another_node_is_a_weight(wrapper: str, op: str) -> None:
    """It stayed float, with Q and DQ run every time, and the file grew: onnxruntime 13358, inference-examples 363."""
    case = HANDMADE[f"{op}_behind_{wrapper}"]()
    kind = {"conv": "Conv", "matmul": "MatMul", "gemm": "Gemm"}[op]
    normal = load_model(case.model)
    normalize(normal)
    (node,) = (n for n in normal.graph.nodes if n.op == kind)
    slot = weight_slot(node)
    assert slot is not None
    assert isinstance(node.inputs[slot], Constant)
    wanted = OPS[op][1]
    assert sqnr([wanted], [onnxshot.graph.weights.read(node.inputs[slot])]) > (60 if wrapper == "cast" else 150)
    assert sqnr(outputs(case.model, case.feeds), outputs(normal.to_proto(), case.feeds)) > 100
    # All samples among those calibrated on: a quarter is held out, and 16 outputs a sample are few.
    result = quantize(case.model, case.feeds * 4, include=(kind,), settings=QUICK)
    proto = result.model.to_proto()
    in_8_bits = [v for v in stored(proto).values() if v.dtype == np.int8 and v.size == wanted.size]
    assert len(in_8_bits) == 1
    assert not [v for v in stored(proto).values() if v.dtype != np.int8 and v.size >= wanted.size]
    assert not {n.op_type for n in proto.graph.node} & {"Constant", "Identity", "Cast", "Transpose", "Reshape"} - (
        {"Cast"} if op == "matmul" else set()
    )  # a dynamic MatMul has a Cast of its own, behind it
    assert sqnr(outputs(case.model, case.feeds), outputs(proto, case.feeds)) > 25


def test_row31_a_weight_that_is_an_input_too_is_settled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such weights block folding, silently: onnxruntime 3449, 25102."""
    case = HANDMADE["initializers_as_inputs"]()
    result = quantize(case.model, case.feeds, settings=PROVEN)
    proto = result.model.to_proto()
    assert [i.name for i in proto.graph.input] == ["x"]
    assert proto.ir_version >= 4
    assert any("no longer listed as inputs: w, b" in note for note in result.report.notes)
    assert [v for v in stored(proto).values() if v.dtype == np.int8 and v.ndim == 4]
    assert sqnr(outputs(case.model, case.feeds), outputs(proto, case.feeds)) > 25
    case.model.ir_version = max(case.model.ir_version, 4)  # below 4 a runtime takes them as constant all the same
    kept = quantize(case.model, case.feeds, settings=replace(PROVEN, keep_overridable=True))
    proto = kept.model.to_proto()
    assert [i.name for i in proto.graph.input] == ["x", "w", "b"]
    assert stored(proto)["w"].dtype == np.float32
    (skip,) = (s for s in kept.report.skips if s.op == "Conv")
    assert "may be overridden" in skip.reason
    override = [{**f, "w": np.zeros((8, 4, 3, 3), np.float32)} for f in case.feeds[:1]]
    assert not np.array_equal(outputs(proto, override)[0], outputs(proto, case.feeds[:1])[0])
    onnx.save(case.model, str(tmp_path / "m.onnx"))
    assert command("quantize", tmp_path / "m.onnx", "--calib", "random", "--keep-overridable", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert any("may be overridden" in s["reason"] for s in told["skips"])


def unique_names(proto: onnx.ModelProto) -> None:
    """Every node has a name of its own, and every tensor one maker, subgraphs included."""
    names = [n.name for n in every_node(proto.graph)]
    assert all(names)
    assert len(set(names)) == len(names)
    made = [o for n in every_node(proto.graph) for o in n.output if o]
    made += [i.name for i in proto.graph.input] + [t.name for t in proto.graph.initializer]
    doubles = [name for name, count in Counter(made).items() if count > 1]
    assert not set(doubles) - {i.name for i in proto.graph.initializer}, doubles
    assert len({t.name for t in proto.graph.initializer}) == len(proto.graph.initializer)


ODD_NAMES = st.sampled_from(
    ["b", "b0", "b_0", "b_1", "x", "x_q", "x_scale", "x_zero_point", "x_quantize", "x_quantized", "x_dequantize", "w",
     "x_QuantizeLinear", "w_scale", "w_zero_point", "w_quantized", "w_dequantized", "y", "y_raw", "h", "h_raw", "y_1"]
)  # fmt: skip


@given(tensors=st.lists(ODD_NAMES, min_size=6, max_size=6, unique=True), nodes=st.lists(ODD_NAMES, min_size=3))
@settings(max_examples=60)
def test_row32_no_new_name_meets_an_old_one(tensors: list[str], nodes: list[str]) -> None:
    """b and b0 corrupted xception; duplicate node names did not load: onnxruntime 24705, 14142, 8811."""
    x, w1, h, r, w2, y = tensors
    made = [
        helper.make_node("Conv", [x, w1], [h], nodes[0]),
        helper.make_node("Relu", [h], [r], nodes[1]),
        helper.make_node("Conv", [r, w2], [y], nodes[2]),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3, 5, 5]) for n in (x, y)]
    constants = [onnx.numpy_helper.from_array(weight(3, 3, 1, 1, seed=i), n) for i, n in enumerate((w1, w2))]
    proto = helper.make_model(
        helper.make_graph(made, "g", value[:1], value[1:], constants), ir_version=8,
        opset_imports=[helper.make_opsetid("", 17)],
    )  # fmt: skip
    given_ = feeds(2, **{x: (1, 3, 5, 5)})
    got = quantize(proto, given_, settings=QUICK).model.to_proto()
    unique_names(got)
    onnx.checker.check_model(got, full_check=True)
    assert [i.name for i in got.graph.input] == [x]
    assert [o.name for o in got.graph.output] == [y]
    named = helper.make_model(
        helper.make_graph(
            [helper.make_node(n.op_type, n.input, n.output, f"n{i}") for i, n in enumerate(made)],
            "g", value[:1], value[1:], constants,
        ),
        ir_version=8, opset_imports=[helper.make_opsetid("", 17)],
    )  # fmt: skip
    assert sqnr(outputs(named, given_), outputs(got, given_)) > 25


@pytest.mark.parametrize("name", ["clashing_names", "duplicate_node_names", "empty_node_names", "nested_if"])
@pytest.mark.parametrize("mode", ["static", "dynamic", "weights"])
def test_row32_names_that_others_would_produce(name: str, mode: str) -> None:
    """Suffixes and numbers that tools append are taken already. onnxruntime 24705, 14142."""
    case = HANDMADE[name]()
    proto = quantize(case.model, case.feeds, mode=mode, include=("*",), settings=QUICK).model.to_proto()
    unique_names(proto)
    session(proto.SerializeToString()).run(None, case.feeds[0])


@pytest.mark.parametrize("name", ["already_qdq", "already_dynamic"])
def test_row32_a_quantized_model_is_not_quantized_again(name: str, tmp_path: Path) -> None:
    """It wrote duplicate names and onnxruntime refused the file: onnxruntime 8811."""
    case = HANDMADE[name]()
    with pytest.raises(UsageError, match="quantized already") as caught:
        quantize(case.model, case.feeds, settings=QUICK)
    assert "requantize=True" in caught.value.hint
    assert caught.value.exit_code == 2
    assert inspect(case.model).plan is None
    if name == "already_qdq":
        result = quantize(case.model, case.feeds, output=tmp_path / "q.onnx", settings=replace(PROVEN, requantize=True))
        unique_names(result.model.to_proto())
        assert sqnr(outputs(case.model, case.feeds), outputs(tmp_path / "q.onnx", case.feeds)) > 25


# ---------------------------------------------------------------------- 33: opsets


@pytest.mark.parametrize(
    ("name", "options", "opset"),
    [
        ("opset_9", {}, 13),
        ("opset_11", {}, 13),
        ("opset_12", {}, 13),
        ("resnet_block", {}, 17),
        ("opset_21", {}, 21),
        ("opset_9", {"mode": "weights"}, 13),
        ("opset_11", {"mode": "weights", "weight_type": "int16"}, 21),
        ("resnet_block", {"mode": "weights", "weight_type": "int16"}, 21),
    ],
)
def test_row33_the_opset_is_the_lowest_that_the_scheme_needs(name: str, options: dict[str, str], opset: int) -> None:
    """The number was edited by hand and the file did not load: onnxruntime 9197, 24949, 25932, 28202."""
    case = HANDMADE[name]()
    proto = quantize(case.model, case.feeds, settings=PROVEN, **options).model.to_proto()
    assert {o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")} == {opset}
    onnx.checker.check_model(proto, full_check=True)
    ops = {n.op_type for n in proto.graph.node}
    assert "Upsample" not in ops
    assert sqnr(outputs(case.model, case.feeds), outputs(proto, case.feeds)) > 20


def test_row33_success_is_said_of_a_file_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file onnxruntime refuses is an error, and is not left behind: onnxruntime 25932."""
    real = edit.toposort
    calls: list[int] = []

    def spoil(loaded: onnxshot.graph.Model) -> None:
        real(loaded)
        for node in loaded.graph.nodes:
            if node.op == "DequantizeLinear" and "axis" in node.attrs:
                node.attrs["axis"] = 77
                calls.append(1)

    case = HANDMADE["resnet_block"]()
    monkeypatch.setattr(edit, "toposort", spoil)
    with pytest.raises(ModelError):
        quantize(case.model, case.feeds, output=tmp_path / "q.onnx", settings=PROVEN)
    assert calls
    assert list(tmp_path.iterdir()) == []


def test_row33_sixteen_bits_are_refused_where_there_is_no_kernel() -> None:
    """onnxruntime 28202: 16-bit QuantizeLinear needs opset 21, and a kernel."""
    case = HANDMADE["resnet_block"]()
    with pytest.raises(TargetError, match="16-bit"):
        quantize(case.model, case.feeds, activation_type="uint16", settings=QUICK)


# ---------------------------------------------------------------------- 34, 35: subgraphs, shapes


@pytest.mark.parametrize("name", ["if_captures_weights", "loop_body", "scan_body", "nested_if"])
def test_row34_subgraphs_are_walked_and_captured_weights_stored_once(name: str) -> None:
    """Silently nothing was quantized: onnxruntime 8488, optimum 1405, Model-Optimizer 1628."""
    case = HANDMADE[name]()
    given_weights = [v for v in stored(case.model).values() if v.ndim >= 2 and v.size > 16]
    result = quantize(case.model, mode="weights", settings=QUICK)
    proto = result.model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    outer = stored(proto)
    in_8_bits = [v for v in outer.values() if v.dtype == np.int8 and v.ndim >= 2]
    for w in given_weights:
        same = [q for q in in_8_bits if q.shape == w.shape and np.corrcoef(q.ravel(), w.ravel())[0, 1] > 0.8]
        assert len(same) == 1 or w.shape == (2, 8), "once, in the outer graph"
    floats = [v for v in outer.values() if v.dtype == np.float32 and sum(n > 1 for n in v.shape) > 1]
    floats = [v for v in floats if v.shape != (2, 8)]
    assert not floats
    for node in every_node(proto.graph):
        for attribute in node.attribute:
            assert all(t.data_type != TensorProto.FLOAT or len(t.dims) < 2 for t in attribute.g.initializer)
    assert sqnr(outputs(case.model, case.feeds), outputs(proto, case.feeds)) > 25
    # With calibration, what cannot be calibrated inside is listed.
    static = quantize(case.model, case.feeds, settings=QUICK)
    proto = static.model.to_proto()
    by = {name: node for node in every_node(proto.graph) for name in node.output}
    in_float = {
        node.name
        for node in every_node(proto.graph)
        if node.op_type in ("MatMul", "Conv", "Gemm")
        and (node.input[1] not in by or by[node.input[1]].op_type != "DequantizeLinear")
    }
    assert in_float <= {s.node for s in static.report.skips if s.reason}
    assert sqnr(outputs(case.model, case.feeds), outputs(static.model.to_proto(), case.feeds)) > 20


def test_row34_a_conv_in_a_loop_says_where_it_is() -> None:
    """Listed as not quantized because it is inside a Loop. onnxruntime 8488."""
    result = quantize(HANDMADE["loop_body"]().model, HANDMADE["loop_body"]().feeds, settings=QUICK)
    (inside,) = (s for s in result.report.skips if s.op == "Conv" and "Loop" in s.reason)
    assert "subgraph" in inside.reason


def test_row35_fusing_makes_standard_ops_only() -> None:
    """Fused custom operators have no shapes, and shape inference died of them: onnxruntime 8770, 18719, 10484."""
    text = """g (float[batch, T, 16] x) => (float[batch, T, 16] y) {
        mean = ReduceMean<axes = [-1]>(x)
        centred = Sub(x, mean)
        square = Pow(centred, two)
        variance = ReduceMean<axes = [-1]>(square)
        safe = Add(variance, tiny)
        deviation = Sqrt(safe)
        normal = Div(centred, deviation)
        scaled = Mul(normal, scale)
        n = Add(scaled, shift)
        up = MatMul(n, w)
        over = Div(up, root2)
        e = Erf(over)
        e1 = Add(e, one)
        gate = Mul(up, e1)
        y = Mul(gate, half)
    }"""
    scalars = {"two": 2.0, "tiny": 1e-5, "root2": 2**0.5, "one": 1.0, "half": 0.5}
    constants: Feed = {k: np.array(v, np.float32) for k, v in scalars.items()}
    constants |= {"scale": vector(16, 0, 0.5, 2), "shift": vector(16, 1), "w": weight(16, 16, channel_axis=1)}
    given_ = feeds(x=(2, 5, 16))
    for opset, wanted in ((17, {"LayerNormalization"}), (13, set())):
        proto = model(text, constants, opset=opset)
        got = quantize(proto, given_, settings=PROVEN).model.to_proto()
        assert {n.domain for n in got.graph.node} <= {"", "ai.onnx"}
        assert wanted <= {n.op_type for n in got.graph.node}
        onnx.shape_inference.infer_shapes(got, check_type=True, strict_mode=True, data_prop=True)
        assert sqnr(outputs(proto, given_), outputs(got, given_)) > 25


@pytest.mark.parametrize("name", ["custom_domain", "microsoft_fused", "microsoft_first"])
def test_row35_shapes_that_cannot_be_inferred_stop_nothing(name: str, tmp_path: Path) -> None:
    """Failed shape inference was fatal: onnxruntime 23868, 21194."""
    case = HANDMADE[name]()
    del case.model.graph.value_info[:]
    plan = inspect(case.model).plan
    assert plan is not None
    options = {"mode": "static" if case.runs else "weights"}
    given_ = case.feeds if case.runs else None
    quantize(case.model, given_, output=tmp_path / "q.onnx", settings=replace(PROVEN, verify=case.runs), **options)
    ops = {(n.domain, n.op_type) for n in onnx.load(str(tmp_path / "q.onnx")).graph.node}
    unknown = {n for n in ((m.domain, m.op_type) for m in case.model.graph.node) if n[0]}
    assert unknown <= ops if name == "custom_domain" else not unknown & ops  # what ONNX Runtime fused is taken apart
    if case.runs:
        assert sqnr(outputs(case.model, case.feeds), outputs(tmp_path / "q.onnx", case.feeds)) > 20


def test_row35_a_plan_needs_no_shapes() -> None:
    """The same nodes are chosen where no shape is known at all. onnxruntime 8770, 10484."""
    case = HANDMADE["resnet_block"]()
    blind = onnx.ModelProto.FromString(case.model.SerializeToString())
    for value in (*blind.graph.input, *blind.graph.output):
        value.type.tensor_type.ClearField("shape")
    plans = [inspect(proto).plan for proto in (case.model, blind)]
    assert plans[0] is not None
    assert plans[1] is not None
    assert [(n.op, n.how) for n in plans[0].nodes] == [(n.op, n.how) for n in plans[1].nodes]
    got = quantize(blind, case.feeds, settings=QUICK).model.to_proto()
    assert sqnr(outputs(case.model, case.feeds), outputs(got, case.feeds)) > 25
