"""Models that no runtime can compute, or that would never end, are refused by name; weights stay finite."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from handmade.core import model
from onnx import ModelProto, TensorProto, helper

import onnxshot
from onnxshot.errors import ModelError
from onnxshot.graph.load import load_model
from onnxshot.graph.local_functions import MOST_NODES
from onnxshot.maths import optimal_brain_surgeon
from onnxshot.maths.finite import finite, product
from onnxshot.maths.pruning_masks import Pattern, lowest_scores, lowest_scores_of_many
from onnxshot.passes.apply_repairs import ApplyRepairs
from onnxshot.passes.evaluate_constants import result_bytes
from onnxshot.passes.fold_constants import FoldConstants
from onnxshot.pruning import input_blocks as blocks_module
from onnxshot.pruning import loss_curves as curves_module
from onnxshot.pruning.input_blocks import blocks_of, counts_of
from onnxshot.pruning.layerwise_pruning import PrunedLayer
from onnxshot.runtimes.invalid_model import blames_model, invalid_reason

QUIET = onnxshot.Settings(threads=1, use_cache=False, bench_seconds=0.02)


def conv(attributes: str) -> ModelProto:
    """A Conv of [4, 4, 3, 3] on [n, 4, 8, 8]."""
    weight = np.random.default_rng(0).normal(size=(4, 4, 3, 3)).astype(np.float32)
    text = f"g (float[n, 4, 8, 8] x) => (float[n, a, b, c] y) {{ y = Conv<{attributes}>(x, w) }}"
    return model(text, {"w": weight})


@pytest.mark.parametrize(
    "attributes",
    [
        "group = 0", "group = -1", "strides = [0, 0]", "strides = [1, -1]", "dilations = [0, 1]",
        "pads = [-1, 0, 0, 0]", "kernel_shape = [0, 3]", "pads = [1099511627776, 0, 0, 0]",
    ],
)  # fmt: skip
def test_what_a_window_cannot_be_is_refused_with_the_node(attributes: str) -> None:
    name = attributes.split(" ")[0]
    with pytest.raises(ModelError, match=rf"node 'y' \(Conv\): {name} is"):
        load_model(conv(attributes))


def test_an_attribute_of_a_branch_and_of_a_function_is_looked_at_too() -> None:
    inner = "{ y = If(c) <then_branch = a () => (float[n] p) { p = LSTM<hidden_size = 0>(x, w, w) }, "
    branch = model(f"g (bool c, float[n, 1, 1] x, float[n, 1, 1] w) => (float[n] y) {inner}"
                   "else_branch = b () => (float[n] q) { q = Identity(x) }> }")  # fmt: skip
    with pytest.raises(ModelError, match=r"\(LSTM\): hidden_size is 0"):
        load_model(branch)
    within = model("g (float[2, 2] x) => (float[2, 2] y) { y = local.Turn(x) }", imports=', "local": 1')
    turn = helper.make_node("Transpose", ["x"], ["y"], perm=[0, 0])
    within.functions.append(helper.make_function("local", "Turn", ["x"], ["y"], [turn], [helper.make_opsetid("", 17)]))
    with pytest.raises(ModelError, match=r"perm is \[0, 0\]"):
        load_model(within)


def test_an_attribute_given_twice_is_refused() -> None:
    proto = conv("group = 1")
    proto.graph.node[0].attribute.append(helper.make_attribute("group", 2))
    with pytest.raises(ModelError, match="has the attribute 'group' twice"):
        load_model(proto)


def test_two_versions_of_one_operator_set_are_refused() -> None:
    proto = conv("group = 1")
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 13))
    with pytest.raises(ModelError, match="versions 17 and 13"):
        load_model(proto)


def calling(bodies: dict[str, list[str]]) -> ModelProto:
    """A model that calls the first of some functions; each calls those that are listed, or Neg."""
    first = next(iter(bodies))
    proto = model(f"g (float[2] x) => (float[2] y) {{ y = local.{first}(x) }}", imports=', "local": 1')
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for name, calls in bodies.items():
        nodes, last = [], "x"
        for i, call in enumerate(calls):
            domain = "local" if call in bodies else ""
            nodes.append(helper.make_node(call, [last], [f"t{i}"], domain=domain))
            last = f"t{i}"
        nodes.append(helper.make_node("Identity", [last], ["y"]))
        proto.functions.append(helper.make_function("local", name, ["x"], ["y"], nodes, opsets))
    return proto


def test_a_function_that_calls_itself_is_refused() -> None:
    for bodies in ({"A": ["A"]}, {"A": ["B"], "B": ["C", "Neg"], "C": ["A"]}):
        with pytest.raises(ModelError, match=r"the function 'local:.' calls itself"):
            load_model(calling(bodies))


def test_functions_that_unfold_to_more_than_can_be_held_are_refused_at_once() -> None:
    doubling = {f"F{i}": [f"F{i + 1}"] * 2 for i in range(40)} | {"F40": ["Neg"]}
    with pytest.raises(ModelError, match=rf"expand to \d+ nodes, {MOST_NODES} at most"):
        load_model(calling(doubling))
    few = {f"F{i}": [f"F{i + 1}"] * 2 for i in range(4)} | {"F4": ["Neg"]}
    assert load_model(calling(few)).graph.nodes


def test_a_loop_without_end_is_refused_and_one_that_its_condition_ends_is_not() -> None:
    def loop(trips: int, condition: str) -> ModelProto:
        text = f"""g (float[2] x, bool go) => (float[2] y) {{
            y = Loop(trips, yes, x) <body = b (int64 i, bool c, float[2] v) => (bool c2, float[2] v2) {{
                c2 = {condition}
                v2 = Neg(v)
            }}>
        }}"""
        return model(text, {"trips": np.array(trips, np.int64), "yes": np.array(True)})

    with pytest.raises(ModelError, match=f"runs {1 << 62} times"):
        load_model(loop(1 << 62, "Identity(c)"))
    assert load_model(loop(1 << 62, "And(c, go)")).graph.nodes
    assert load_model(loop(7, "Identity(c)")).graph.nodes


@pytest.mark.parametrize(
    ("made", "constants"),
    [
        ("ConstantOfShape(s)", {"s": np.array([1 << 20, 1 << 20])}),
        ("Expand(o, s)", {"o": np.ones(1, np.float32), "s": np.array([1 << 20, 1 << 20])}),
        ("Tile(o, s)", {"o": np.ones(1, np.float32), "s": np.array([1 << 40])}),
        ("Pad(o, s)", {"o": np.ones(1, np.float32), "s": np.array([0, 1 << 40])}),
        ("Range(o, p, q)", {"o": np.float32(0), "p": np.float32(1e5), "q": np.float32(1e-7)}),
        ("OneHot(i, d, v)", {"i": np.array([1]), "d": np.array(1 << 40), "v": np.array([0, 1], np.float32)}),
    ],
)
def test_what_would_fill_terabytes_is_not_folded(made: str, constants: dict[str, np.ndarray]) -> None:
    proto = model(f"g (float[1] x) => (float[1] y) {{ big = {made} m = ReduceMax(big) y = Add(x, m) }}", constants)
    loaded = load_model(proto)
    node = loaded.graph.nodes[0]
    foreseen = result_bytes(loaded, node)
    assert foreseen is None or foreseen > 1 << 38
    change = FoldConstants().run(loaded)
    assert node in loaded.graph.nodes
    assert node.label in {skip.node for skip in change.skips}


def two_layers(scale: float = 1.0) -> ModelProto:
    """Gemm, Relu, Gemm, of 12 inputs."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(12, 16)), "v": rng.normal(size=(16, 3)), "b": np.zeros(16), "c": np.zeros(3)}
    weights["w"] *= scale
    text = "g (float[n, 12] x) => (float[n, 3] y) { h = Gemm(x, w, b) r = Relu(h) y = Gemm(r, v, c) }"
    return model(text, {name: value.astype(np.float32) for name, value in weights.items()})


def samples(scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": (scale * rng.normal(size=(8, 12))).astype(np.float32)} for _ in range(8)]


def stored(proto: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


@pytest.mark.parametrize("scale", [1e19, 1e36])
def test_weights_too_large_to_square_are_pruned_by_magnitude_and_stay_finite(scale: float) -> None:
    result = onnxshot.prune(two_layers(scale), samples(), sparsity=0.5, settings=QUIET)
    assert all(np.isfinite(values).all() for values in stored(result.model.to_proto()).values())
    assert any("pruned by magnitude" in note for note in result.report.notes)
    assert result.report.sparsity == pytest.approx(0.5, abs=0.01)


def test_a_weight_that_is_not_finite_is_left_as_it_is() -> None:
    proto = two_layers()
    values = stored(proto)["w"].copy()
    values[3, 4] = np.nan
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    result = onnxshot.prune(proto, sparsity=0.5, settings=QUIET)
    assert "its weight holds NaN or infinite values" in [skip.reason for skip in result.report.skips]
    np.testing.assert_array_equal(stored(result.model.to_proto())["w"], values)


def test_a_bias_of_one_value_for_all_outputs_is_left_to_be_broadcast() -> None:
    proto = two_layers()
    index = [t.name for t in proto.graph.initializer].index("c")
    proto.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(np.array(0.5, np.float32), "c"))
    result = onnxshot.prune(proto, samples(), sparsity=0.5, settings=QUIET)
    assert result.report.sqnr_db is not None
    assert stored(result.model.to_proto())["c"].shape == ()


def test_what_was_learned_and_is_not_finite_is_not_put_in() -> None:
    loaded = load_model(two_layers())
    first, second = (n for n in loaded.graph.nodes if n.op == "Gemm")
    bad = np.full((12, 16), np.inf, np.float32)
    good = np.full((16, 3), 2.0, np.float32)
    change = ApplyRepairs({first.label: PrunedLayer(bad), second.label: PrunedLayer(good)}).run(loaded)
    assert change.edits == 1
    assert [skip.node for skip in change.skips] == [first.label]
    assert all(np.isfinite(values).all() for values in stored(loaded.to_proto()).values())


def test_a_product_that_overflows_is_told() -> None:
    large = np.array([1e38, 1.0], np.float32)
    assert product(large, np.array([64.0, 2.0])) is None
    np.testing.assert_array_equal(product(large, np.array([2.0, 2.0])), large * 2)
    assert not finite(np.array([np.nan]))
    assert finite(np.array([1]), None)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:4x4"])
def test_a_layer_of_many_inputs_is_fitted_in_blocks(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Better than by magnitude, where the inputs depend on each other; not as good as whole, which sees all of that."""
    rng = np.random.default_rng(2)
    mix, weight = rng.normal(size=(24, 96)), rng.normal(size=(96, 32)).astype(np.float32)
    feeds = [{"x": (rng.normal(size=(64, 24)) @ mix).astype(np.float32)} for _ in range(8)]
    proto = model("g (float[n, 96] x) => (float[n, 32] y) { y = MatMul(x, w) }", {"w": weight})
    asked = {} if pattern == "2:4" else {"sparsity": 0.5}
    whole = onnxshot.prune(proto, feeds, pattern=pattern, settings=QUIET, **asked)
    monkeypatch.setattr(blocks_module, "MOST", 80)
    monkeypatch.setattr(blocks_module, "_PARTS", 2)
    parts = onnxshot.prune(proto, feeds, pattern=pattern, settings=QUIET, **asked)
    assert any("96 inputs were fitted 40 at a time" in note for note in parts.report.notes)
    assert parts.report.sparsity == pytest.approx(whole.report.sparsity, abs=0.02)
    assert whole.report.sqnr_db > parts.report.sqnr_db > parts.report.magnitude_sqnr_db + 1


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:4x4"])
def test_a_layer_of_many_outputs_is_fitted_in_chunks_as_well_as_whole(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(7)
    mix, weight = rng.normal(size=(12, 32)), rng.normal(size=(32, 240)) * np.linspace(0.1, 2, 240)
    feeds = [{"x": (rng.normal(size=(40, 12)) @ mix).astype(np.float32)} for _ in range(12)]
    proto = model("g (float[n, 32] x) => (float[n, 240] y) { y = MatMul(x, w) }", {"w": weight.astype(np.float32)})
    asked = {} if pattern == "2:4" else {"sparsity": 0.5}
    whole = onnxshot.prune(proto, feeds, pattern=pattern, settings=QUIET, **asked)
    monkeypatch.setattr(optimal_brain_surgeon, "_AT_ONCE", 32 * 4 * 50)
    parts = onnxshot.prune(proto, feeds, pattern=pattern, settings=QUIET, **asked)
    assert parts.report.sparsity == pytest.approx(whole.report.sparsity, abs=0.005)
    assert parts.report.sqnr_db == pytest.approx(whole.report.sqnr_db, abs=0.5)
    assert parts.report.sqnr_db > parts.report.magnitude_sqnr_db + 1


def test_blocks_cover_every_input_once_and_share_out_exactly_what_goes() -> None:
    pattern = Pattern.parse("2:4")
    blocks = blocks_of(25_088, pattern)
    assert [i for block in blocks for i in range(block.start, block.stop)] == list(range(25_088))
    assert all(block.start % 4 == 0 for block in blocks)
    rng = np.random.default_rng(3)
    weight, x = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 8, 3000), (1, 20, 3000)))
    parts = [slice(0, 1024), slice(1024, 2048), slice(2048, 3000)]
    counts = counts_of(parts, weight, x, Pattern(), 7001, np.zeros(weight.shape, bool))
    assert sum(counts) == 7001
    scores = np.square(weight) * np.square(x).sum(axis=1, keepdims=True)
    gone = scores <= np.sort(scores, axis=None)[7000]
    np.testing.assert_allclose(counts, [gone[:, :, part].sum() for part in parts], rtol=0.02)
    assert curves_module.blocks_of(8192, Pattern()) == [slice(0, 8192)]


def test_the_lowest_of_many_scores_are_the_same_as_of_few() -> None:
    scores = np.random.default_rng(4).integers(0, 9, (40, 50)).astype(np.float32)  # with many that are equal
    for count in (1, 700, 2000):
        gone = lowest_scores_of_many(scores, count)
        assert gone.sum() == count
        assert scores[gone].max() <= scores[~gone].min(initial=9)
    distinct = np.random.default_rng(5).permutation(2000).reshape(40, 50).astype(np.float32)
    np.testing.assert_array_equal(lowest_scores_of_many(distinct, 700), lowest_scores(distinct, Pattern(), 700))


def broken(model: ModelProto) -> str:
    """Fails in a way that nobody has foreseen."""
    raise IndexError("list index out of range")


def test_an_unforeseen_error_is_the_models_where_the_runtime_refuses_it_too(tmp_path: Path) -> None:
    call: Callable[[ModelProto], str] = blames_model(broken)
    with pytest.raises(IndexError):
        call(two_layers())
    mismatched = two_layers()
    mismatched.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.ones((15, 3), np.float32), "v"))
    assert invalid_reason(two_layers()) == ""
    assert invalid_reason(mismatched)
    with pytest.raises(ModelError, match=r"cannot be processed \(IndexError: list index out of range\); "):
        call(mismatched)
    path = tmp_path / "m.onnx"
    onnx.save(mismatched, path)
    with pytest.raises(ModelError, match=str(path)):
        blames_model(lambda model: model.nothing)(path)


def test_a_model_is_blamed_where_it_runs_at_no_size() -> None:
    weights = {"w": np.ones((1, 1, 8), np.float32), "s": np.array([0, 0, 7])}
    proto = model("g (float[n, 1, m] x) => (float[a, b, c] y) { h = Conv(x, w) y = Reshape(h, s) }", weights)
    proto.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array([3, 0, 7777]), "s"))
    assert invalid_reason(proto)


def test_the_model_that_is_blamed_is_the_one_that_is_at_fault(tmp_path: Path) -> None:
    mismatched = two_layers()
    mismatched.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.ones((15, 3), np.float32), "v"))
    sound, bad, record = (tmp_path / name for name in ("sound.onnx", "bad.onnx", "record.yaml"))
    onnx.save(two_layers(), sound)
    onnx.save(mismatched, bad)
    record.write_text("no model\n")

    @blames_model
    def held(reference: Path, candidate: Path, recorded: Path) -> None:
        raise KeyError("w")

    @blames_model
    def timed(models: list[Path]) -> None:
        raise KeyError("w")

    with pytest.raises(ModelError, match=r"bad\.onnx cannot be processed"):
        held(sound, candidate=bad, recorded=record)
    with pytest.raises(ModelError, match=r"bad\.onnx cannot be processed"):
        timed([sound, bad])
    with pytest.raises(KeyError):
        held(sound, sound, record)


@pytest.mark.parametrize("work", [onnxshot.emit, onnxshot.prune, onnxshot.shrink])
def test_what_is_larger_than_memory_is_refused_before_it_is_run(work: Callable[..., object], tmp_path: Path) -> None:
    text = """g (float[1, 8] x) => (float[1, 4] y) {
        m = MatMul(x, w)
        o = MatMul(m, s)
        e = Expand(o, size)
        y = ReduceMax<keepdims = 0>(e, axes)
    }"""
    constants = {"w": np.ones((8, 16), np.float32), "s": np.ones((16, 4), np.float32)}
    proto = model(text, {**constants, "size": np.array([1 << 38, 1, 4]), "axes": np.array([0])})
    proto.opset_import[0].version = 18
    asked = {"sparsity": 0.5} if work is onnxshot.prune else {"target_flops": 0.5} if work is onnxshot.shrink else {}
    with pytest.raises(ModelError, match=r"larger than the .* GiB of memory"):
        work(proto, calib=[{"x": np.ones((1, 8), np.float32)}] * 3, output=tmp_path / "y.onnx", settings=QUIET, **asked)


def test_an_error_of_ours_is_not_the_models_because_its_smallest_size_is_too_small() -> None:
    weights = {"w": np.ones((1, 1, 8), np.float32)}
    proto = model("g (float[1, 1, n] x) => (float[1, 1, m] y) { y = Conv(x, w) }", weights)
    assert invalid_reason(proto) == ""
    with pytest.raises(IndexError):
        blames_model(broken)(proto)
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 4
    assert invalid_reason(proto)


def test_a_model_that_runs_on_no_random_sample_is_said_not_to_be_compared(tmp_path: Path) -> None:
    proto = model("g (float[2, 3] x) => (float[2, 3] y) { y = Expand(x, s) }", {"s": np.array([5, 7])})
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    report = onnxshot.emit(proto, to="onnx", output=tmp_path / "y.onnx", settings=QUIET)
    assert any("not compared" in note or "compared with the normalized model" in note for note in report.notes)


def test_weights_of_strings_are_refused() -> None:
    proto = model("g (float[n, 3] x) => (float[n, 2] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(helper.make_tensor("w", TensorProto.STRING, [3, 2], [b"a"] * 6))
    with pytest.raises(ModelError):
        onnxshot.quantize(proto, [{"x": np.ones((2, 3), np.float32)}] * 3, settings=QUIET)
