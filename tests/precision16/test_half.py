"""Runs with --precision: half the size, proven as any other, refused where the target cannot."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from fixture_data import facts, fixture
from fixture_runs import PROVEN, QUICK, command, compressed, data_of, every_node, outputs, sqnr, stored
from handmade import HANDMADE
from handmade.core import feeds, model, weight
from onnx.reference import ReferenceEvaluator

import onnxshot
from onnxshot.errors import TargetError, UsageError
from onnxshot.graph.load import load_model
from onnxshot.graph.weight_sparsity import lost_zeros
from onnxshot.planning.plan import HALF, STATIC
from onnxshot.precision16.bfloat16_emulation import emulate_bfloat16
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import PruneStage, Stages
from onnxshot.settings import Settings
from onnxshot.verification import proof

FIXTURES = ("digits_resnet", "digits_mobile", "digits_detector", "licence_encoder", "licence_lstm", "licence_gru")


@pytest.mark.parametrize("name", FIXTURES)
def test_fp16_is_half_the_size_and_within_50_db(name: str) -> None:
    result = compressed(name, precision="fp16")
    report = result.report
    assert report.sqnr_db is not None
    assert report.sqnr_db > 50
    stored_bytes = result.model.weight_bytes()
    assert stored_bytes < 0.51 * sum(v.nbytes for v in stored(onnx.load(str(fixture(name)))).values())
    assert not report.float_weights
    assert report.int8_macs_share == 0
    assert report.samples["calibration"] + report.samples["held_out"] == 12
    assert any("not faster" in note for note in report.notes)
    assert all(node.reason for node in result.plan.nodes if node.how != HALF)


def big() -> onnx.ModelProto:
    """Activations of 1e5 in the middle of a network of normal ones, whose mean is taken, and that a Resize reads."""
    text = """g (float[1, 4, 8, 8] x) => (float[1, 4, 1, 1] y, float[1, 4, 16, 16] z) {
        a = Conv<kernel_shape = [1, 1]>(x, w)
        b = Mul(a, up)
        c = Cast<to = 1>(b)
        m = ReduceMean<axes = [2, 3]>(c)
        d = Mul(c, down)
        e = Conv<kernel_shape = [1, 1]>(d, w)
        z = Resize<mode = "nearest">(e, , scales)
        y = Mul(m, down)
    }"""
    constants: dict[str, Any] = {
        "w": weight(4, 4, 1, 1), "up": np.float32(1e5), "down": np.float32(1e-2),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }  # fmt: skip
    return model(text, constants)


def test_activations_of_1e5_are_finite_and_within_40_db() -> None:
    """OCC #323 (ReduceMean gives NaN), #320 (Cast), #306 and #207 (Resize)."""
    data = feeds(12, x=(1, 4, 8, 8))
    result = onnxshot.quantize(big(), data, precision="fp16", settings=PROVEN)
    after = result.model.to_proto()
    for plain in (True, False):
        found = outputs(after, data, optimize=plain)
        assert all(np.isfinite(values).all() for values in found)
        assert sqnr(outputs(big(), data), found) > 40
    assert len(result.plan.labels(HALF)) >= 2
    reasons = " ".join(skip.reason for skip in result.report.skips)
    assert "above 6e+04, the limit for fp16" in reasons


def test_a_recurrent_net_in_fp16_does_not_end_the_process() -> None:
    """ONNX Runtime 1.23 and newer end the process where a float16 Transpose moves the rows of a product."""
    proto = model(
        """g (float[1, 6, 8] x) => (float[1, 6, 5] y) {
            t = Transpose<perm = [1, 0, 2]>(x)
            h = GRU<hidden_size = 16, direction = "bidirectional">(t, w, r, b)
            u = Transpose<perm = [0, 2, 1, 3]>(h)  s = Reshape(u, to)  v = Transpose<perm = [1, 0, 2]>(s)
            m = MatMul(v, o)  y = Add(m, c)
        }""",
        {
            "w": weight(2, 48, 8), "r": weight(2, 48, 16), "b": weight(2, 96), "o": weight(32, 5), "c": weight(5),
            "to": np.array([0, 0, -1]),
        },
    )  # fmt: skip
    made = onnxshot.quantize(proto, calib=feeds(4, x=(1, 6, 8)), precision="fp16", settings=PROVEN)
    assert made.report.sqnr_db is not None and made.report.sqnr_db > 50
    assert {n.op for n in made.plan.nodes if n.how == HALF} >= {"GRU", "MatMul"}


def test_int8_and_fp16_share_a_model() -> None:
    name = "licence_encoder"
    int8, both = (compressed(name, precision=precision, effort="fast") for precision in ("int8", "int8+fp16"))
    assert both.report.int8_macs_share == pytest.approx(int8.report.int8_macs_share)
    assert both.model.weight_bytes() < 0.4 * fixture(name).stat().st_size
    assert both.report.sqnr_db == pytest.approx(int8.report.sqnr_db, abs=2)
    assert both.plan.labels(STATIC) == int8.plan.labels(STATIC)
    assert both.plan.labels(HALF)
    gone = {skip.node for skip in both.report.skips}
    assert not gone & both.plan.labels(HALF)


def test_operators_between_int8_ops_stay_between_them() -> None:
    for target in ("ort", "tensorrt"):
        case = HANDMADE["resnet_block"]()
        options: dict[str, Any] = {"target": target, "settings": QUICK, "effort": "fast"}
        plain, both = (
            onnxshot.quantize(case.model, case.feeds, precision=precision, **options)
            for precision in ("int8", "int8+fp16")
        )
        assert [n.op for n in both.model.graph.nodes] == [n.op for n in plain.model.graph.nodes]


def test_without_data_weights_and_operators_decide_and_the_report_says_so() -> None:
    result = onnxshot.quantize(fixture("digits_resnet"), precision="fp16", settings=PROVEN)
    assert result.plan.labels(HALF)
    assert any("whatever the activations" in note for note in result.report.notes)
    assert result.report.sqnr_db is None, "random inputs say nothing"
    assert result.report.on_random_data["sqnr_db"] > 50


def test_bf16_is_refused_where_it_does_not_run() -> None:
    with pytest.raises(TargetError, match="bfloat16"):
        onnxshot.quantize(fixture("digits_resnet"), precision="bf16")


def test_bf16_for_tensorrt_is_proven_rounded_at_every_step() -> None:
    result = compressed("digits_resnet", precision="bf16", target="tensorrt")
    assert result.report.sqnr_db is not None
    assert 35 < result.report.sqnr_db < 60
    assert any("no bfloat16" in note for note in result.report.notes)
    found = {v.dtype.name for v in stored(result.model.to_proto()).values()}
    assert found <= {"bfloat16", "int64"}


@pytest.mark.parametrize("size", [8, 64])
def test_what_is_emulated_is_what_bf16_gives(size: int) -> None:
    """Against numpy's own rounding, step by step, and onnx's reference evaluator; the larger weight is read lazily."""
    text = f"""g (float[2, {size}] x) => (float[2, {size}] y) {{
        h = Cast<to = 16>(x) a = MatMul(h, w) r = Relu(a) s = Add(r, h) y = Cast<to = 1>(s)
    }}"""
    bf16 = ml_dtypes.bfloat16
    proto = model(text, {"w": weight(size, size).astype(bf16)}, opset=22, ir=10)
    (feed,) = feeds(1, x=(2, size))
    emulated = emulate_bfloat16(proto)
    assert set(emulated.weights) == ({"w"} if size > 8 else set())
    (found,) = outputs(emulated.to_proto(), [feed])
    h = feed["x"].astype(bf16)
    a = (h.astype(np.float32) @ weight(size, size).astype(bf16).astype(np.float32)).astype(bf16)
    s = (np.maximum(a, bf16(0)).astype(np.float32) + h.astype(np.float32)).astype(bf16)
    np.testing.assert_array_equal(found, s.astype(np.float32))
    (reference,) = ReferenceEvaluator(proto).run(None, feed)
    np.testing.assert_allclose(found, reference, rtol=2**-7, atol=2**-7)


def test_zeros_of_bf16_are_counted() -> None:
    kept = np.where(np.arange(64).reshape(8, 8) % 4 == 0, weight(8, 8), 0).astype(ml_dtypes.bfloat16)
    text = "g (bfloat16[1, 8] x) => (bfloat16[1, 8] y) { y = MatMul(x, w) }"
    assert proof.sparsity(load_model(model(text, {"w": kept}, opset=22, ir=10))) == 0.75


def test_excluded_nodes_stay_float32() -> None:
    result = onnxshot.quantize(
        fixture("digits_resnet"), **data_of("digits_resnet"), precision="fp16", exclude=("Gemm",), settings=QUICK
    )
    (skip,) = (skip for skip in result.report.skips if skip.op == "Gemm")
    assert skip.reason == "excluded by 'Gemm'"


@pytest.mark.parametrize("field", [{"mode": "weights"}, {"activation_type": "int8"}, {"include": ("Conv",)}], ids=str)
def test_what_int8_alone_knows_is_refused_without_it(field: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="leave it out of fp16") as caught:
        Recipe(precision="fp16", **field)
    assert next(iter(field)) in caught.value.message


def test_a_goal_is_about_int8() -> None:
    case = HANDMADE["resnet_block"]()
    with pytest.raises(UsageError, match="precision is 'fp16'"):
        onnxshot.tune(case.model, case.feeds, onnxshot.Goal(min_sqnr=50), precision="fp16")


def test_a_stage_after_pruning_keeps_every_zero() -> None:
    stages = Stages((PruneStage(sparsity=0.5), Recipe(precision="fp16")))
    data, settings = data_of("digits_mobile"), PROVEN
    result = onnxshot.compress(fixture("digits_mobile"), recipe=stages, settings=settings, **data)
    pruned = onnxshot.prune(fixture("digits_mobile"), sparsity=0.5, settings=settings, **data)
    assert lost_zeros(pruned.model, result.model) == []
    assert result.report.stages[-1].bytes < 0.6 * result.report.stages[1].bytes


def test_the_command_names_the_file_after_the_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(fixture("digits_resnet").read_bytes())
    data = data_of("digits_resnet")
    options = ("--calib", data["calib"], "--preset", data["preset"], "--samples", "8", "--precision", "fp16", "--json")
    assert command("quantize", path, *options) == 0
    written = onnx.load(str(tmp_path / "net.fp16.onnx"))
    assert json.loads(capsys.readouterr().out)["recipe"]["precision"] == "fp16"
    assert {node.op_type for node in every_node(written.graph)} >= {"Conv", "Cast"}


@pytest.mark.parametrize(
    ("name", "precision"),
    [("digits_resnet", "fp16"), ("digits_resnet", "bf16"), ("digits_resnet", "int8+fp16"), ("licence_encoder", "fp16")],
)
def test_what_inspect_foresees_is_what_is_done(name: str, precision: str) -> None:
    about = facts()[name]
    preset = about["preset"] if about["preset"] == "none" else str(fixture(about["preset"]))
    target = "tensorrt" if precision == "bf16" else "ort"
    recipe = onnxshot.Recipe(target=target, precision=precision, effort="fast")
    settings = Settings(verify=False, samples=8, threads=1)
    given = {"calib": fixture(about["calib"]), "preset": preset}
    done = onnxshot.quantize(fixture(name), **given, recipe=recipe, settings=settings)
    foreseen = onnxshot.inspect(fixture(name), **given, recipe=recipe, settings=settings)
    assert foreseen.plan is not None
    assert {n.node: (n.how, n.reason) for n in foreseen.plan.nodes} == {
        n.node: (n.how, n.reason) for n in done.plan.nodes
    }
    assert "half" in {n.how for n in foreseen.plan.nodes}


def test_without_data_inspect_says_which_nodes_no_range_speaks_for() -> None:
    found = onnxshot.inspect(fixture("digits_resnet"), recipe=onnxshot.Recipe(precision="fp16"))
    assert found.plan is not None
    halves = [n for n in found.plan.nodes if n.how == "half"]
    assert halves
    assert {n.reason for n in halves} == {
        "by its operator and weights alone: whether its values stay below 60000 is not known"
    }
    assert f"note: {len(halves)} nodes are in fp16 by operators and weights alone: give calib=DATA" in found.to_text()
    assert found.int8_macs_share == 0
    every = onnxshot.inspect(fixture("digits_resnet"), recipe=onnxshot.Recipe(target="tensorrt", precision="bf16"))
    assert every.plan is not None
    assert not any(n.reason for n in every.plan.nodes if n.how == "half"), "it holds all values of float32"
    assert every.plan.notes == ()


def test_inspect_refuses_what_the_target_does_not_run() -> None:
    with pytest.raises(TargetError, match="has no CPU kernels for bfloat16"):
        onnxshot.inspect(fixture("digits_resnet"), recipe=onnxshot.Recipe(precision="bf16"))


def test_what_is_quantized_stays_so_in_a_half_stage_behind_it(tmp_path: Path) -> None:
    stages = Stages((Recipe(effort="fast"), Recipe(precision="fp16")))
    name = "licence_encoder"
    found = onnxshot.compress(fixture(name), recipe=stages, keep_stages=tmp_path, settings=QUICK, **data_of(name))
    assert [stage.name for stage in found.report.stages] == ["input", "quantized", "halved"]
    first, second = (onnx.load(str(tmp_path / f"{stage}.onnx")) for stage in ("quantized", "halved"))
    before, after = ([n.op_type for n in m.graph.node if "Quantize" in n.op_type] for m in (first, second))
    assert sorted(before) == sorted(after) != []
    kinds = [{t.data_type for t in m.graph.initializer} for m in (first, second)]
    assert onnx.TensorProto.FLOAT16 not in kinds[0]
    assert onnx.TensorProto.FLOAT16 in kinds[1]
    assert found.report.sqnr_db is not None
    assert found.report.sqnr_db > 40
