"""Channels removed by one call: targets, what is learned back, what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from channel_removal import SUMS, residual
from fixture_data import accuracy, fixture
from handmade.core import Feed, feeds, model, vector, weight
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from pass_checks import outputs

from onnxshot.api.shrink import shrink
from onnxshot.calibration.sampling import spread
from onnxshot.channels.layer_inputs import layers_of
from onnxshot.channels.ridge_reconstruction import reconstruct
from onnxshot.delivery.record import RECIPE_KEY, RUNS_KEY, VERSION_KEY
from onnxshot.errors import UsageError
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import macs
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.results.shrunk import ShrinkResult
from onnxshot.settings import Settings

QUICK = Settings(verify=False, use_cache=False, threads=1, bench_seconds=0.02)
CALIB = feeds(24, x=(1, 4, 8, 8))


def shrunk(proto: ModelProto | None = None, calib: Any = CALIB, **options: Any) -> ShrinkResult:
    return shrink(proto or residual(), calib, **{"settings": QUICK, "multiple": 1, **options})


def db(proto: ModelProto, other: ModelProto, given: list[Feed]) -> float:
    total = SqnrSum()
    for feed in given:
        for want, got in zip(outputs(proto, feed), outputs(other, feed), strict=True):
            total.add(want, got)
    return total.db


FRESH = [{"x": np.random.default_rng([9, i]).normal(0, 1, (1, 4, 8, 8)).astype(np.float32)} for i in range(16)]


def test_twins_go_first_and_nothing_is_lost() -> None:
    found = shrunk(target_flops=0.75, include=["Conv_7"])
    (row,) = found.report.groups
    assert row.before == 16
    assert row.after < 10
    assert db(residual(), found.model.to_proto(), FRESH) > 25
    assert any("not included" in skip.reason for skip in found.report.skips)


@pytest.mark.parametrize("target", ["target_flops", "target_params"])
@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_targets_are_met_within_a_step(target: str, share: float) -> None:
    found = shrunk(**{target: share})
    proto = found.model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    work = sum(macs(found.model).values())
    stored = sum(int(np.prod(t.dims)) for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert found.report.macs[1] == work
    assert found.report.params[1] == stored
    before, after = found.report.macs if target == "target_flops" else found.report.params
    assert share - 0.06 < after / before <= share, "one channel is up to 6 % of this network"
    assert found.report.reached


def test_what_stays_learns_the_answers_back() -> None:
    plain, learned = shrunk(calib=None, target_flops=0.7), shrunk(target_flops=0.7)
    assert db(residual(), learned.model.to_proto(), FRESH) > db(residual(), plain.model.to_proto(), FRESH) + 5


def test_the_error_is_measured_on_samples_that_no_weight_was_fitted_on() -> None:
    found = shrunk(target_flops=0.7, settings=replace(QUICK, verify=True))
    judged = [CALIB[number] for number in spread(len(CALIB))[: found.report.compared]]
    assert found.report.compared == 4
    assert found.report.sqnr_db == pytest.approx(db(residual(), found.model.to_proto(), judged), abs=0.01)
    assert shrunk(calib=None, target_flops=0.7).report.sqnr_db is None


def test_of_few_samples_it_says_that_it_is_judged_on_those_of_the_fit() -> None:
    proven = replace(QUICK, verify=True)
    for count, told in ((4, True), (5, False)):
        notes = shrunk(calib=CALIB[:count], target_flops=0.7, settings=proven).report.notes
        assert any("judged on the samples that its weights were fitted on" in note for note in notes) is told


def test_widths_stay_multiples() -> None:
    found = shrunk(target_flops=0.8, multiple=8)
    assert {row.after for row in found.report.groups} <= {8, 16}
    assert found.report.macs[1] <= 0.8 * found.report.macs[0]


@pytest.mark.parametrize(("share", "multiple", "told"), [(0.97, 8, True), (0.97, 1, False), (0.8, 1, False)])
def test_a_target_that_steps_go_far_beyond_is_told_with_its_figures(share: float, multiple: int, told: bool) -> None:
    text = """g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
        h = Conv<pads = [1, 1, 1, 1]>(x, v) r = Relu(h) y = Conv<pads = [1, 1, 1, 1]>(r, w)
    }"""
    proto = model(text, {"v": weight(32, 4, 3, 3), "w": weight(4, 32, 3, 3, seed=1)})
    found = shrunk(proto, target_flops=share, multiple=multiple)
    (row,) = found.report.groups
    left = row.after / 32
    assert found.report.macs[1] == left * found.report.macs[0]
    assert left <= share < left + multiple / 32, "one step less misses the target"
    notes = [note for note in found.report.notes if note.startswith("target_flops is")]
    assert len(notes) == told
    assert all(f"{left:.1%} of the work remain" in note for note in notes)


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_norms_need_no_data(importance: str) -> None:
    found = shrunk(calib=None, target_flops=0.8, importance=importance)
    assert found.report.samples == 0
    assert found.report.macs[1] <= 0.8 * found.report.macs[0]
    (row,) = shrunk(calib=None, target_flops=0.85, importance=importance, include=["Conv_7"]).report.groups
    assert row.after < 16


def test_the_largest_cut_that_keeps_the_score() -> None:
    wanted = [outputs(residual(), feed)[0] for feed in FRESH]
    tried: list[float] = []

    def score(run: Any) -> float:
        total = SqnrSum()
        for feed, want in zip(FRESH, wanted, strict=True):
            total.add(want, run(feed)["y"])
        tried.append(min(total.db, 200.0))
        return tried[-1]

    found = shrunk(max_drop=180.0, evaluate=score)
    assert tried[0] == 200
    assert found.report.drop is not None and found.report.drop <= 180
    assert db(residual(), found.model.to_proto(), FRESH) == pytest.approx(200 - found.report.drop, abs=0.1)
    assert found.report.macs[1] < found.report.macs[0]
    none = shrunk(max_drop=0.0, evaluate=score)
    assert none.report.macs[0] == none.report.macs[1]
    assert none.report.drop == 0.0


def test_a_latency_is_searched_for() -> None:
    text = "net (float[1,4,8,8] x) => (float[1,3,8,8] y) { a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) y = Conv(c, w3)}"
    constants = {"w1": weight(64, 4, 1, 1), "w2": weight(64, 64, 1, 1), "w3": weight(3, 64, 1, 1)}
    quick = Settings(use_cache=False, threads=1, bench_seconds=0.02)
    found = shrunk(model(text, constants), target_latency=0.99, multiple=8, settings=quick)
    assert found.report.latency is not None
    assert found.report.macs[1] < found.report.macs[0]
    assert {row.after % 8 for row in found.report.groups} == {0}


def test_a_branch_that_gives_next_to_nothing_is_left_out() -> None:
    proto = residual()
    for t in proto.graph.initializer:
        if t.name in ("w4", "b4"):
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * np.float32(1e-3), t.name))
    found = shrunk(proto, target_flops=0.5)
    assert found.report.branches == ["Conv_7"]
    assert {row.group: row.after for row in found.report.groups}["Conv_7"] == 0
    assert found.report.macs[1] == sum(macs(found.model).values()) <= 0.5 * found.report.macs[0]
    assert db(proto, found.model.to_proto(), FRESH) > 30
    for whole in ({"target_flops": 0.7}, {"target_flops": 0.5, "exclude": ["Conv_9"]}):
        assert not shrunk(proto, **whole).report.branches


def test_a_drop_leaves_out_a_branch_where_that_is_nearer_than_to_cut_channels() -> None:
    """The branch is nearly half of the work and gives next to nothing: no channels are as cheap."""
    proto = residual()
    for t in proto.graph.initializer:
        if t.name in ("w4", "b4"):
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * np.float32(1e-3), t.name))

    def score(run: Any) -> float:
        total = SqnrSum()
        for feed in FRESH:
            total.add(outputs(proto, feed)[0], run(feed)["y"])
        return min(total.db, 200.0)

    found = shrunk(proto, max_drop=165.0, evaluate=score)
    assert found.report.branches == ["Conv_7"]
    assert found.report.macs[1] < 0.6 * found.report.macs[0]
    assert db(proto, found.model.to_proto(), FRESH) > 35
    kept = shrunk(proto, max_drop=165.0, evaluate=score, exclude=["Conv_9"])
    assert not kept.report.branches
    assert kept.report.macs[1] > found.report.macs[1]


def test_nothing_is_changed_where_nothing_can_be_cut() -> None:
    proto = model("net (float[1,4] x) => (float[1,4] y) { y = Gemm(x, w) }", {"w": weight(4, 4)})
    found = shrink(proto, feeds(4, x=(1, 4)), target_flops=0.5, settings=QUICK)
    made = found.model.to_proto()
    assert {p.key for p in made.metadata_props} == {VERSION_KEY, RECIPE_KEY, RUNS_KEY}
    del made.metadata_props[:]
    assert made == load_model(proto).to_proto()
    assert found.report.notes[-1].startswith("nothing was cut")
    assert not found.report.reached
    assert [skip.reason for skip in found.report.skips] == ["'y' is an output of the model"]
    assert not shrunk(target_flops=0.9, scope="heads").report.groups


def test_a_target_that_cannot_be_met_is_said() -> None:
    found = shrunk(target_flops=0.01)
    assert not found.report.reached
    assert "target_flops 0.01 is not reached" in found.report.notes[-1]
    onnx.checker.check_model(found.model.to_proto(), full_check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "target_flops is missing"),
        ({"target_flops": 0.5, "target_params": 0.5}, "target_flops is given beside target_params"),
        ({"target_flops": 1.5}, r"target_flops is 1\.5"),
        ({"target_params": 0.0}, "target_params is 0"),
        ({"max_drop": 1.0}, "max_drop is given without evaluate"),
        ({"target_flops": 0.5, "evaluate": len}, "evaluate is given without max_drop"),
        ({"max_drop": -1.0, "evaluate": len}, "max_drop is -1"),
        ({"target_flops": 0.5, "multiple": 3}, "multiple is 3"),
        ({"target_flops": 0.5, "scope": "conv"}, "scope is 'conv'"),
        ({"target_flops": 0.5, "importance": "taylor"}, "importance is 'taylor'"),
        ({"target_flops": 0.5, "importance": "error", "calib": None}, "importance 'error' needs data"),
        ({"target_flops": 0.5, "include": ["nowhere"]}, "include 'nowhere' matches no node"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        shrunk(**options)


def test_a_fit_is_the_best_there_is_for_the_samples() -> None:
    """A layer whose inputs were cut: numpy's least squares of its own inputs against float outputs is hardly better."""
    text = "net (float[1,6] x) => (float[1,3] y) { a = Gemm<transB=1>(x, w1, b1) y = Gemm<transB=1>(a, w2, b2) }"
    proto = model(text, {"w1": weight(8, 6), "b1": vector(8), "w2": weight(3, 8), "b2": vector(3)})
    proto.graph.node[0].name, proto.graph.node[1].name = "one", "two"
    cut = ModelProto()
    cut.CopyFrom(proto)
    for t in cut.graph.initializer:
        values = numpy_helper.to_array(t)
        kept: NDArray[Any] = values[:4] if t.name in ("w1", "b1") else values[:, :4] if t.name == "w2" else values
        t.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(kept), t.name))
    given = feeds(200, x=(1, 6))
    found = reconstruct(proto, cut, {"one": np.arange(8) < 4}, given, threads=1)
    x = np.concatenate([feed["x"] for feed in given])
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    wanted = (x @ values["w1"].T + values["b1"]) @ values["w2"].T + values["b2"]
    a = x @ values["w1"][:4].T + values["b1"][:4]
    rows = np.concatenate([a, np.ones((200, 1), np.float32)], axis=1)
    best = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    error = np.square(a @ found["w2"].T + found["b2"] - wanted).mean()
    assert error < 1.01 * np.square(rows @ best - wanted).mean()
    assert error < 0.5 * np.square(a @ values["w2"][:, :4].T + values["b2"] - wanted).mean()


def sparse(proto: ModelProto) -> ModelProto:
    """The model with half of every weight zero."""
    rng = np.random.default_rng(3)
    other = ModelProto()
    other.CopyFrom(proto)
    for t in other.graph.initializer:
        if len(t.dims) > 1:
            values = numpy_helper.to_array(t) * rng.integers(0, 2, t.dims).astype(np.float32)
            t.CopyFrom(numpy_helper.from_array(values, t.name))
    return other


def test_zeros_of_what_stays_are_kept() -> None:
    options: dict[str, Any] = {"target_params": 0.8, "importance": "l2", "include": ["Conv_2", "Conv_7"]}
    plain, learned = (
        {
            t.name: numpy_helper.to_array(t)
            for t in shrunk(sparse(residual()), calib, **options).model.to_proto().graph.initializer
        }
        for calib in (None, CALIB)
    )
    assert plain["w2"].shape[1] < 16 or plain["w4"].shape[1] < 16
    for name in (f"w{i}" for i in range(6)):
        np.testing.assert_array_equal(plain[name] == 0, learned[name] == 0)
    assert any(not np.array_equal(plain[name], learned[name]) for name in ("w2", "w4"))


def test_a_fit_is_the_best_there_is_with_these_zeros() -> None:
    """Row by row, numpy's least squares of the inputs whose weights are not zero is hardly better."""
    text = "net (float[1,6] x) => (float[1,3] y) { a = Gemm<transB=1>(x, w1, b1) y = Gemm<transB=1>(a, w2, b2) }"
    proto = model(text, {"w1": weight(8, 6), "b1": vector(8), "w2": weight(3, 8), "b2": vector(3)})
    proto.graph.node[0].name, proto.graph.node[1].name = "one", "two"
    cut = sparse(proto)
    given = feeds(200, x=(1, 6))
    found = reconstruct(proto, cut, {}, given, threads=1)
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    zeros = {t.name: numpy_helper.to_array(t) == 0 for t in cut.graph.initializer}
    x = np.concatenate([feed["x"] for feed in given])
    target = x @ values["w1"].T + values["b1"]
    assert zeros["w1"].any()
    np.testing.assert_array_equal(found["w1"] == 0, zeros["w1"])
    least = 0.0
    for row in range(8):
        rows = np.concatenate([x[:, ~zeros["w1"][row]], np.ones((200, 1), np.float32)], axis=1)
        least += np.square(rows @ np.linalg.lstsq(rows, target[:, row], rcond=None)[0] - target[:, row]).sum()
    assert np.square(x @ found["w1"].T + found["b1"] - target).sum() < 1.01 * least


def test_shared_weights_are_nobodys_own() -> None:
    text = "net (float[1,4] x) => (float[1,4] y) { a = MatMul(x, w) b = MatMul(a, w) c = MatMul(b, v) y = Add(c, d) }"
    proto = model(text, {"w": weight(4, 4), "v": weight(4, 4, seed=1), "d": vector(4)})
    proto.graph.node[2].name = "last"
    found = layers_of(proto)
    assert list(found) == ["last"]
    assert (found["last"].bias, found["last"].output) == ("d", "y")


def test_a_trained_network_keeps_its_accuracy() -> None:
    proto = onnx.load(fixture("digits_resnet"))
    assert any(node.op_type in SUMS for node in proto.graph.node)
    found = shrink(
        fixture("digits_resnet"), fixture("data/digits/calib"), target_flops=0.7, settings=QUICK,
        preset=str(fixture("data/digits/preset.yaml")),
    )  # fmt: skip
    assert accuracy("digits_resnet", found.model.to_proto().SerializeToString()) > accuracy("digits_resnet") - 0.03
