"""Layer-wise reconstruction: less error on other samples, and nothing but biases and weights changes."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from handmade.core import Case, Feed, model, vector, weight
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from planned_models import initializers, planned, sqnr

from onnxshot import memory
from onnxshot.execution.layer_rows import spread_over
from onnxshot.graph import edit
from onnxshot.graph.load import load_model
from onnxshot.maths.bias_quantization import BIAS_QMAX
from onnxshot.passes.apply_repairs import ApplyRepairs
from onnxshot.passes.insert_qdq import InsertQdq
from onnxshot.recovery import layer_reconstruction as module
from onnxshot.recovery.layer_reconstruction import Repair, reconstruct

SIX = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
LEARN, OTHER = slice(0, 48), slice(48, 80)
TEXT = """g (float[1, 3, 10, 10] x) => (float[1, 10, 1, 1] y) {
    a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b)
    r = Relu(a)
    d = Conv<group = 12, pads = [0, 1, 2, 1]>(r, dw, db)
    e = Clip(d, zero, six)
    f = Conv<group = 2, dilations = [2, 2]>(e, u, ub)
    p = GlobalAveragePool(f)
    q = Flatten(p)
    h = Gemm(q, k, kb)
    i = Relu(h)
    z = Reshape(i, shape)
    y = Conv(z, v)
}"""
CONSTANTS = {
    "w": weight(12, 3, 3, 3), "b": vector(12), "dw": weight(12, 1, 3, 3), "db": vector(12, 1),
    "u": weight(16, 6, 2, 2), "ub": vector(16), "k": weight(16, 14, channel_axis=1), "kb": vector(14),
    "shape": np.asarray([1, 14, 1, 1]), "v": weight(10, 14, 1, 1), **SIX,
}  # fmt: skip


def smooth(count: int, *shape: int) -> list[Feed]:
    """Pictures whose neighbouring values correlate, as in real pictures."""
    rng = np.random.default_rng(11)
    noise = rng.standard_normal((count, *shape[:-1], shape[-1] + 4))
    found = sum(noise[..., i : i + shape[-1]] for i in range(5)) / np.sqrt(5)
    return [{"x": x.astype(np.float32)} for x in found]


def network() -> Case:
    return Case(model(TEXT, CONSTANTS), smooth(80, 1, 3, 10, 10))


def part(case: Case, which: slice) -> Case:
    return replace(case, feeds=case.feeds[which])


def weighted(proto: ModelProto) -> list[str]:
    return [n.name for n in proto.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]


def prepared(case: Case, **options: Any) -> tuple[ModelProto, ModelProto]:
    """The normalized float model, and the quantized one, whose ranges are those of all samples: nothing is clipped.

    Every Conv is int8, those too that are faster in float as they have few channels in a group.
    """
    ready, plan = planned(case, calibrate=True, method="minmax", include=("Conv",), **options)
    reference = ready.to_proto()
    InsertQdq(plan).run(ready)
    edit.remove_unused(ready)
    return reference, ready.to_proto()


def put(candidate: ModelProto, repairs: dict[str, Repair]) -> tuple[ModelProto, int]:
    copy = load_model(candidate)
    edits = ApplyRepairs(repairs).run(copy).edits
    return copy.to_proto(), edits


def structure(proto: ModelProto) -> list[tuple[str, str, int, int]]:
    return [(n.op_type, n.name, len(n.input), len(n.output)) for n in proto.graph.node]


@pytest.mark.parametrize("rounding", [False, True])
def test_a_repaired_model_is_better_on_other_samples_and_of_the_same_structure(rounding: bool) -> None:
    case = network()
    reference, candidate = prepared(case, target="ort-avx2")  # of 7-bit weights: there is more to repair
    given = candidate.SerializeToString(), reference.SerializeToString()
    layers = weighted(candidate)
    repairs = reconstruct(reference, candidate, layers, case.feeds[LEARN], rounding=rounding, threads=1)
    assert set(repairs) == set(layers)
    for name, repair in repairs.items():
        assert (repair.weight is not None) == rounding
        assert (repair.bias is None) == (name == layers[-1])  # the last Conv has none
    repaired, edits = put(candidate, repairs)
    assert edits == len(layers)
    onnx.checker.check_model(repaired, full_check=True)
    assert structure(repaired) == structure(candidate)
    assert (candidate.SerializeToString(), reference.SerializeToString()) == given
    before, after = (sqnr(part(case, OTHER), proto) for proto in (candidate, repaired))
    assert after > before + 1


def test_rounding_is_better_than_biases_alone() -> None:
    case = network()
    reference, candidate = prepared(case, target="ort-avx2")
    found = []
    for rounding in (False, True):
        repairs = reconstruct(
            reference, candidate, weighted(candidate), case.feeds[LEARN], rounding=rounding, threads=2
        )  # fmt: skip
        found.append(sqnr(part(case, OTHER), put(candidate, repairs)[0]))
        for repair in repairs.values():
            assert repair.weight is None or np.abs(repair.weight).max() <= 63, "7-bit weights stay 7-bit"
    assert found[1] > found[0]


def test_the_number_of_threads_does_not_matter() -> None:
    case = network()
    reference, candidate = prepared(case)
    one, two = (
        reconstruct(reference, candidate, weighted(candidate), case.feeds[LEARN], rounding=True, threads=n)
        for n in (1, 2)
    )
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name].bias, two[name].bias)
        np.testing.assert_array_equal(one[name].weight, two[name].weight)


def test_a_weight_changes_by_few_steps_and_keeps_type_and_shape() -> None:
    case = network()
    reference, candidate = prepared(case)
    repairs = reconstruct(reference, candidate, weighted(candidate), case.feeds[LEARN], rounding=True, threads=1)
    stored = initializers(candidate)
    makers = {n.output[0]: n for n in candidate.graph.node}
    moved = 0
    for node in candidate.graph.node:
        if node.name in repairs:
            old, new = stored[makers[node.input[1]].input[0]], repairs[node.name].weight
            assert new is not None
            assert (new.dtype, new.shape) == (old.dtype, old.shape)
            steps = np.abs(new.astype(np.int64) - old)
            moved += int(np.count_nonzero(steps))
            assert np.median(steps) <= 1
    assert moved > 0


def test_repairs_build_on_those_before() -> None:
    """A layer learns from inputs that include earlier repairs, so the last layer alone is repaired differently."""
    case = network()
    reference, candidate = prepared(case)
    layers = weighted(candidate)
    every = reconstruct(reference, candidate, layers, case.feeds[LEARN], rounding=False, threads=1)
    alone = reconstruct(reference, candidate, layers[-2:-1], case.feeds[LEARN], rounding=False, threads=1)
    assert list(alone) == layers[-2:-1]
    first, second = every[layers[-2]].bias, alone[layers[-2]].bias
    assert first is not None
    assert second is not None
    assert not np.array_equal(first, second)


def conv(attributes: str, size: int, seed: int = 0, count: int = 24) -> Case:
    """A Relu, a Conv with these attributes, and no bias that it came with."""
    text = f"""g (float[1, 4, {size}, {size}] x) => (float[1, 8, h, w2] y) {{
        a = Conv(x, w, b) r = Relu(a) y = Conv<{attributes}>(r, v, vb) }}"""
    constants = {"w": weight(6, 4, 1, 1, seed=seed), "b": vector(6), "v": weight(8, 6, 3, 2), "vb": vector(8)}
    return Case(model(text, constants), smooth(count, 1, 4, size, size))


def exact_rows(monkeypatch: pytest.MonkeyPatch, case: Case) -> float:
    """Largest difference of a layer's outputs from the product of its inputs and weights, relative to its outputs.

    ONNX Runtime computes the outputs; patches of the inputs at the same positions are multiplied here.
    """
    reference, candidate = prepared(case)
    stored, correct, read = initializers(candidate), module.corrected_bias, module._Layer._read
    products, worst = list[NDArray[Any]](), list[float]()

    def keep(integers: NDArray[Any], moments: NDArray[Any], scales: NDArray[Any], limits: Any) -> NDArray[Any]:
        del moments, limits
        return np.rint(integers / scales[:, :, None])

    def reading(layer: Any, *rest: Any) -> Any:
        rows = read(layer, *rest)
        weights = layer.form.table(stored[layer.weight]) * stored[layer.scale].reshape(-1, 1)
        x = (rows.stored.astype(np.float64) - rows.zero_point) * rows.scale
        products.append(np.concatenate([x[g] @ weights[g].T for g in range(len(x))], axis=1))
        return rows

    def correcting(wanted: NDArray[Any], got: NDArray[Any], *rest: Any) -> NDArray[Any]:
        worst.append(float(np.abs(products[-1] - got).max() / np.abs(wanted).max()))
        return correct(wanted, got, *rest)

    monkeypatch.setattr(module, "round_weights", keep)
    monkeypatch.setattr(module._Layer, "_read", reading)
    monkeypatch.setattr(module, "corrected_bias", correcting)
    reconstruct(reference, candidate, weighted(candidate), case.feeds[LEARN], rounding=True, threads=1)
    assert len(products) == len(worst) == 2
    return max(worst)


@pytest.mark.parametrize(
    "attributes",
    [
        "auto_pad = \"SAME_UPPER\"", "auto_pad = \"SAME_LOWER\"", "auto_pad = \"VALID\"",
        "auto_pad = \"SAME_UPPER\", strides = [2, 3]", "auto_pad = \"SAME_LOWER\", strides = [3, 2]",
        "pads = [1, 0, 2, 1]", "strides = [2, 2], pads = [0, 1, 0, 0]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [7, 8])
def test_a_layer_is_followed_at_the_positions_it_gives(
    attributes: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patches from a wrong place would differ by as much as the outputs themselves."""
    assert exact_rows(monkeypatch, conv(attributes, size)) < 1e-5


def test_a_product_without_a_bias_is_rounded_and_has_no_bias_after_it() -> None:
    text = """g (float[1, 4, 8, 8] x) => (float[1, 6, 8, 4] y) {
        a = Conv(x, w, b) r = Relu(a) m = MatMul(r, k) y = Conv(m, v) }"""
    constants = {"w": weight(6, 4, 1, 1), "b": vector(6), "k": weight(8, 4, channel_axis=1), "v": weight(6, 6, 1, 1)}
    case = Case(model(text, constants), smooth(80, 1, 4, 8, 8))
    reference, candidate = prepared(case)
    (product,) = [n for n in candidate.graph.node if n.op_type == "MatMul"]
    layers = weighted(candidate)
    for rounding in (False, True):
        repairs = reconstruct(reference, candidate, layers, case.feeds[LEARN], rounding=rounding, threads=1)
        assert repairs[product.name].bias is None
        assert (repairs[product.name].weight is not None) == rounding
    repaired, _ = put(candidate, repairs)
    assert structure(repaired) == structure(candidate)
    assert sqnr(part(case, OTHER), repaired) > sqnr(part(case, OTHER), candidate)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_bias_is_corrected_with_one_scale_or_many(per_channel: bool) -> None:
    case = network()
    reference, candidate = prepared(case, target="ort-avx2", per_channel=per_channel)
    layers = weighted(candidate)
    repairs = reconstruct(reference, candidate, layers, case.feeds[LEARN], rounding=False, threads=1)
    assert all(repairs[name].bias is not None for name in layers[:-1])
    repaired, _ = put(candidate, repairs)
    assert sqnr(part(case, OTHER), repaired) > sqnr(part(case, OTHER), candidate)


def test_a_bias_that_would_not_fit_int32_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    case = conv("pads = [0, 0, 0, 0]", 8)
    reference, candidate = prepared(case)
    layers = weighted(candidate)

    makers = {n.output[0]: n for n in candidate.graph.node}
    node = next(n for n in candidate.graph.node if n.name == layers[1])
    stored = initializers(candidate)
    x_scale, w_scale = (stored[makers[node.input[i]].input[1]] for i in (0, 1))
    step = float(x_scale) * float(w_scale[0]) * BIAS_QMAX
    for factor, fits in ((0.9, True), (1.1, False)):
        huge = np.asarray([factor * step] + [0.0] * 7)
        monkeypatch.setattr(module, "corrected_bias", lambda *_, huge=huge: huge)
        repairs = reconstruct(reference, candidate, layers[1:], case.feeds[LEARN], rounding=False, threads=1)
        assert (repairs[layers[1]].bias is not None) == fits


def test_what_cannot_be_repaired_is_left_out() -> None:
    case = network()
    reference, candidate = prepared(case)
    layers = weighted(candidate)

    def repaired(proto: ModelProto, names: list[str]) -> set[str]:
        return set(reconstruct(reference, proto, names, case.feeds[:2], rounding=True, threads=1))

    relu = next(n.name for n in reference.graph.node if n.op_type == "Relu")
    assert repaired(candidate, [layers[1], relu, "nobody"]) == {layers[1]}
    assert repaired(candidate, []) == set()
    assert repaired(reference, layers) == set(), "there is nothing quantized"


def test_a_wide_layer_is_rounded_in_blocks_of_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the budget all inputs of a layer are rounded together; over it, in as few blocks as fit."""
    case = network()
    reference, candidate = prepared(case, target="ort-avx2")
    layers, stored = weighted(candidate), initializers(reference)
    widths = {n.name: int(np.prod(stored[n.input[1]].shape[1:])) for n in reference.graph.node if n.name in layers}
    widths[next(n.name for n in reference.graph.node if n.op_type == "Gemm")] = 16
    groups = {n.name: next((a.i for a in n.attribute if a.name == "group"), 1) for n in reference.graph.node}
    found = []
    for afford in (1000, 16):
        monkeypatch.setattr(module.memory, "budget", lambda afford=afford: 4 * 40 * afford * afford)
        found.append(reconstruct(reference, candidate, layers, case.feeds[LEARN], rounding=True, threads=1))
    for name in layers:
        assert found[0][name].blocks == 1
        assert found[1][name].blocks == -(-widths[name] // int(16 / groups[name] ** 0.5))
    assert max(repair.blocks for repair in found[1].values()) > 1
    after = [sqnr(part(case, OTHER), put(candidate, repairs)[0]) for repairs in found]
    assert min(after) > sqnr(part(case, OTHER), candidate) + 1


@pytest.mark.parametrize("size", [1, 4 * 2 * 5 * 7, 1 << 20])
@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16])
def test_what_a_layer_reads_is_summed_block_by_block(monkeypatch: pytest.MonkeyPatch, kind: type, size: int) -> None:
    """Blocks of one row, of seven of 30 (the last is shorter), and of all."""
    monkeypatch.setattr(module, "_BLOCK", size)
    rng = np.random.default_rng(3)
    stored = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, (30, 2, 5), kind, endpoint=True).transpose(1, 0, 2)
    given, scale, zero_point = stored.copy(), np.float32(0.03), np.float32(17)
    rows = module._Rows(stored, scale, zero_point)
    values = float(scale) * (stored.astype(np.float64) - 17)
    about_mean, about_zero = (rows.moments(slice(None), centred=c) for c in (True, False))
    for group, x in enumerate(values):
        small = 1e-5 * np.square(x).mean()
        np.testing.assert_allclose(about_mean[group], np.cov(x.T, bias=True), rtol=1e-5, atol=small)
        np.testing.assert_allclose(about_zero[group], x.T @ x / 30, rtol=1e-5, atol=small)
    np.testing.assert_array_equal(stored, given)


def test_a_weight_with_a_zero_point_is_left_out() -> None:
    case = network()
    reference, candidate = prepared(case, weight_type="uint8")
    assert reconstruct(reference, candidate, weighted(candidate), case.feeds[:4], rounding=True, threads=1) == {}


def test_progress_is_told_layer_by_layer() -> None:
    case = network()
    reference, candidate = prepared(case)
    layers, seen = weighted(candidate), []
    reconstruct(
        reference, candidate, layers, case.feeds[:2], rounding=False, threads=1, progress=lambda *a: seen.append(a)
    )
    with_bias = layers[:-1]  # the last Conv has nothing to correct
    assert seen == [("repairing", i, len(with_bias)) for i in range(1, len(with_bias) + 1)]


@pytest.mark.parametrize("rounding", [False, True])
def test_repairs_do_not_depend_on_the_memory_that_tensors_may_take(
    rounding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all tensors in memory, and with all in a file and weights mapped from files: the same bits."""
    case = network()
    reference, candidate = prepared(case)
    layers, found = weighted(candidate), []
    for held, part_bytes in ((1 << 30, 1 << 30), (100, 1)):
        monkeypatch.setattr(memory, "held_bytes", lambda held=held: held)
        monkeypatch.setattr(memory, "part_bytes", lambda part_bytes=part_bytes: part_bytes)
        found.append(reconstruct(reference, candidate, layers, case.feeds[:12], rounding=rounding, threads=2))
    for name in layers:
        for one, other in zip(*((r[name].bias, r[name].weight) for r in found), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_positions_are_spread_over_all_and_differ_between_samples() -> None:
    for size, share in ((100, 7), (5, 9), (1, 1), (1000, 1000), (13, 13)):
        for number in range(9):
            at = spread_over(size, share, number)
            assert len(set(at.tolist())) == min(size, share)
            assert at.min() >= 0
            assert at.max() < size
            if len(at) > 1:
                assert np.diff(at).max() <= -(-size // len(at))
    first = [spread_over(100, 1, number)[0] for number in range(8)]
    assert len(set(first)) == 8


def test_constants_of_a_repair_are_new_ones() -> None:
    """A constant that two nodes share must not change for the other."""
    case = network()
    _, candidate = prepared(case)
    layers = weighted(candidate)
    before = initializers(candidate)
    bias = np.arange(12, dtype=np.float32)
    repaired, edits = put(candidate, {layers[0]: Repair(bias, None), "nobody": Repair(bias, None)})
    assert edits == 1
    after = initializers(repaired)
    node = next(n for n in repaired.graph.node if n.name == layers[0])
    assert after[node.input[2]].tolist() == bias.tolist()
    assert node.input[2] not in before
    assert all((after[name] == before[name]).all() for name in before if name in after)
    assert numpy_helper.to_array(repaired.graph.initializer[0]).size


@pytest.mark.parametrize("rounding", [False, True])
def test_the_bias_that_is_added_to_a_product_is_corrected(rounding: bool) -> None:
    """The Add behind a MatMul gets the repair; an Add that two tensors or several readers share is left."""
    text = """g (float[1, 6, 16] x) => (float[1, 6, 8] y) {
        m = MatMul(x, k) a = Add(m, b) r = Tanh(a) n = MatMul(r, v) s = Add(c, n) y = Tanh(s) }"""
    rng = np.random.default_rng(2)
    constants = {
        "k": weight(16, 24, channel_axis=1), "b": vector(24), "v": weight(24, 8, channel_axis=1),
        "c": np.asarray(rng.standard_normal((1, 8)), np.float32),
    }  # fmt: skip
    given = [{"x": np.abs(feed["x"])} for feed in smooth(80, 1, 6, 16)]  # not around 0, so that errors have a mean
    case = Case(model(text, constants), given)
    ready, plan = planned(case, calibrate=True, method="minmax", target="openvino", weight_type="int8")
    reference = ready.to_proto()
    InsertQdq(plan).run(ready)
    edit.remove_unused(ready)
    candidate = ready.to_proto()
    layers = [n.name for n in candidate.graph.node if n.op_type == "MatMul"]
    # Coarse weights: their error moves the means of the outputs.
    coarse = {n.input[1] for n in candidate.graph.node if n.op_type == "MatMul"}
    stored = {n.input[0] for n in candidate.graph.node if n.op_type == "DequantizeLinear" and n.output[0] in coarse}
    for tensor in candidate.graph.initializer:
        if tensor.name in stored:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((values // 32 * 32).astype(np.int8), tensor.name))
    repairs = reconstruct(reference, candidate, layers, case.feeds[LEARN], rounding=rounding, threads=1)
    adds = [n.name for n in candidate.graph.node if n.op_type == "Add"]
    assert set(repairs) == {*layers, *adds}
    for name, repair in repairs.items():
        assert (repair.bias is None) == (name in layers)
        assert (repair.weight is None) == (name in adds or not rounding)
    repaired, edits = put(candidate, repairs)
    assert edits == len(repairs)
    assert structure(repaired) == structure(candidate)
    assert sqnr(part(case, OTHER), repaired) > sqnr(part(case, OTHER), candidate) + 1
