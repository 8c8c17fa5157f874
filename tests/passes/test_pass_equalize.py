"""Equalized channels: the factors, the same answers, and what int8 gains."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from handmade.core import Case, Feed, feeds, model, vector, weight
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from planned_models import FAST, initializers, normalized, planned, run, sqnr, statistics

import onnxshot
from onnxshot.maths import cross_layer_equalization
from onnxshot.maths.cross_layer_equalization import MOST, Reader, equalizing_factors
from onnxshot.passes.equalize import Equalize
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery import plan_candidates

SIX = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}

# ---------------------------------------------------------------------------- maths


def reader(rng: np.random.Generator, ids: NDArray[np.int64], outputs: int = 4, kernel: int = 9) -> Reader:
    shape = (ids.shape[0], outputs, ids.shape[1], kernel)
    absmax = rng.lognormal(0, 1.5, ids.shape)
    return Reader(np.abs(rng.standard_normal(shape)), ids, absmax, float(absmax.max() / 255))


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_factors_are_from_1_to_the_room_there_is(channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    readers = [reader(rng, rng.permutation(channels)[None]), reader(rng, np.arange(channels)[:, None])]
    room = np.where(rng.random(channels) < 0.3, 1.0, rng.lognormal(1, 2, channels)).clip(1.0)
    factors = equalizing_factors(readers, room)
    assert factors.shape == (channels,)
    assert (factors >= 1).all()
    assert (factors <= np.minimum(room, MOST) * (1 + 1e-12)).all()
    assert (factors[room == 1] == 1).all()


def test_one_reader_gets_the_least_of_both_noises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A/s**2 + B*s**2 on a fine grid; a channel that is held fixed holds the largest weight, and so the steps."""
    monkeypatch.setattr(cross_layer_equalization, "STRENGTH", 1.0)
    rng = np.random.default_rng(0)
    weight_of = np.abs(rng.standard_normal((1, 6, 5, 9)))
    weight_of[0, :, 0, 0] = 8.0
    absmax = np.asarray([[40.0, 20.0, 5.0, 1.0, 0.3]])
    given_step = 40.0 / 255
    factors = equalizing_factors(
        [Reader(weight_of, np.arange(5)[None], absmax, given_step)], np.asarray([1.0, *[1e9] * 4])
    )
    grid = np.exp(np.linspace(0, np.log(MOST), 20_000))
    for i in range(1, 5):
        energy_out = (weight_of[0, :, i] ** 2).sum()
        noise_of_activation = given_step**2 / 12 * energy_out / grid**2
        steps = weight_of[0].max(axis=(1, 2)) / 127
        # The weight's own noise is multiplied with the input, which is s times as large.
        noise_of_weight = (steps**2).sum() / 12 * 9 * (absmax[0, i] / cross_layer_equalization._CREST * grid) ** 2
        least = grid[np.argmin(noise_of_activation + noise_of_weight)]
        assert factors[i] == pytest.approx(least, rel=2e-3)
    assert (np.diff(factors[1:]) > 0).all(), "the quieter a channel, the further it is scaled up"


def test_readers_add_up_and_numbers_may_come_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_layer_equalization, "STRENGTH", 1.0)
    rng = np.random.default_rng(1)
    one = reader(rng, np.asarray([[0, 1, 2]]))
    room = np.full(3, 50.0)
    np.testing.assert_allclose(equalizing_factors([one, one], room), equalizing_factors([one], room))
    twice = Reader(one.weight.repeat(2, axis=2), np.asarray([[0, 0, 1, 1, 2, 2]]), one.absmax.repeat(2, axis=1), 0.1)
    split = [replace(one, step=0.1), replace(one, step=0.1)]
    np.testing.assert_allclose(equalizing_factors([twice], room), equalizing_factors(split, room), rtol=1e-9)


def test_silent_and_unread_channels_stay() -> None:
    rng = np.random.default_rng(2)
    weight_of = np.abs(rng.standard_normal((1, 4, 4, 9)))
    weight_of[:, :, 3] = 0.0
    absmax = np.asarray([[5.0, 0.0, 0.5, 0.5]])
    factors = equalizing_factors([Reader(weight_of, np.arange(4)[None], absmax, 0.1)], np.full(6, 8.0))
    assert np.isfinite(factors).all()
    assert factors[3] == 1, "what nobody weighs gains nothing"
    assert factors[4:].tolist() == [1, 1], "what nobody reads is left"
    assert equalizing_factors([], np.full(2, 9.0)).tolist() == [1, 1]
    dead = Reader(np.zeros((1, 2, 2, 1)), np.arange(2)[None], np.zeros((1, 2)), 1.0)
    assert equalizing_factors([dead], np.full(2, 9.0)).tolist() == [1, 1]


# ---------------------------------------------------------------------------- pass


def spread(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """A weight whose outputs differ by up to 50 times, so that there is something to cross_layer_equalization."""
    factors = np.random.default_rng([seed, 9]).uniform(-2, 2, shape[0])
    return (weight(*shape, seed=seed) * np.exp(factors).reshape(-1, *[1] * (len(shape) - 1))).astype(np.float32)


def cnn(body: str, constants: dict[str, Any], out: str = "float[1, 6, 8, 8] y") -> Case:
    text = f"g (float[1, 3, 8, 8] x) => ({out}) {{ {body} }}"
    given = {"w": spread(8, 3, 3, 3), "b": vector(8), "v": weight(6, 8, 1, 1, seed=3), "vb": vector(6), **SIX}
    return Case(model(text, {**given, **constants}), feeds(8, x=(1, 3, 8, 8)))


START = "c = Conv<pads = [1, 1, 1, 1]>(x, w, b) "
POOLED = "r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) "
BEHIND = "q = Relu(h) z = Reshape(q, shape) y = Conv(z, v)"  # without it, ONNX Runtime is given a small Gemm in float
HALVES = np.asarray([4, 4])
NETWORKS: dict[str, Case] = {
    "relu": cnn(START + "r = Relu(c) y = Conv(r, v, vb)", {}),
    "depthwise and clip": cnn(
        START + "r = Clip(c, zero, six) d = Conv<group = 8, pads = [1, 1, 1, 1]>(r, dw, db) e = Clip(d, zero, six) "
        "y = Conv(e, v)",
        {"dw": spread(8, 1, 3, 3, seed=1), "db": vector(8, 2)},
    ),
    "grouped": cnn(
        START + "r = Relu(c) d = Conv<group = 2>(r, gw, gb) e = LeakyRelu<alpha = 0.2>(d) "
        "f = Conv<group = 4>(e, hw) y = Conv(f, v)",
        {"gw": spread(12, 4, 1, 1, seed=1), "gb": vector(12), "hw": spread(8, 3, 1, 1, seed=2)},
    ),
    "residual": cnn(
        START + "r = Relu(c) d = Conv<pads = [1, 1, 1, 1]>(r, u, ub) s = Add(d, r) t = Relu(s) y = Conv(t, v)",
        {"u": spread(8, 8, 3, 3, seed=1), "ub": vector(8, 1)},
    ),
    "shuffle": cnn(
        START + "r = Relu(c) a, p = Split<axis = 1>(r, halves) d = Conv(p, u) e = Relu(d) j = Concat<axis = 1>(a, e) "
        "g1 = Gather<axis = 1>(j, mixed) y = Conv(g1, v)",
        {"u": spread(4, 4, 1, 1, seed=1), "halves": HALVES, "mixed": np.asarray([0, 4, 1, 5, 2, 6, 3, 7])},
    ),
    "slopes": cnn(START + "r = PRelu(c, slope) y = Conv(r, v, vb)", {"slope": vector(8)[:, None, None]}),
    "positions alone": cnn(
        START + "r = Relu(c) e = Pad(r, pads) m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(e) "
        "z = Resize<mode = \"linear\">(m, , scales) n = ReduceMean<axes = [2, 3]>(z) y = Conv(n, v)",
        {"pads": np.asarray([0, 0, 1, 1, 0, 0, 1, 1]), "scales": np.asarray([1, 1, 2, 2], np.float32)},
        "float[1, 6, 1, 1] y",
    ),
    "appended zeros": cnn(
        START + "r = Relu(c) e = Pad(r, pads) d = Conv(r, u, ub) s = Add(d, e) t = Relu(s) y = Conv(t, v12)",
        {
            "pads": np.asarray([0, 0, 0, 0, 0, 4, 0, 0]), "u": spread(12, 8, 1, 1, seed=1), "ub": vector(12, 1),
            "v12": weight(6, 12, 1, 1, seed=5),
        },
    ),
    "gate": cnn(
        START + "r = Relu(c) p = GlobalAveragePool(r) g = Conv(p, u) k = HardSigmoid(g) m = Mul(r, k) y = Conv(m, v)",
        {"u": spread(8, 8, 1, 1, seed=1)},
    ),
    "one bias for two": cnn(
        START + "r = Relu(c) d = Conv(r, u, b) e = Relu(d) y = Conv(e, v)", {"u": spread(8, 8, 1, 1, seed=1)},
    ),
    "gemm": cnn(
        START + POOLED + "h = Gemm(f, k, kb) " + BEHIND,
        {"k": weight(8, 8, seed=4, channel_axis=1), "kb": vector(8, 4), "shape": np.asarray([1, 8, 1, 1])},
        "float[1, 6, 1, 1] y",
    ),
    "gemm with a transposed weight": cnn(
        START + POOLED + "h = Gemm<transB = 1>(f, k, kb) " + BEHIND,
        {"k": weight(8, 8, seed=4), "kb": vector(8, 4), "shape": np.asarray([1, 8, 1, 1])},
        "float[1, 6, 1, 1] y",
    ),
}


def equalized(case: Case) -> tuple[ModelProto, int]:
    """The equalized float model, and how many channels were scaled."""
    ready = normalized(case.model, Recipe())
    _, plan = planned(case, calibrate=True)
    stats = statistics(ready, plan.observe, case.feeds)
    change = Equalize(plan, stats).run(ready)
    return ready.to_proto(), change.edits


def changed(case: Case, proto: ModelProto) -> set[str]:
    """Names of the constants that were replaced."""
    return set(initializers(proto)) - set(initializers(normalized(case.model, Recipe()).to_proto()))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_answers_stay(name: str) -> None:
    case = NETWORKS[name]
    proto, edits = equalized(case)
    assert edits > 0, "there was nothing to test"
    assert changed(case, proto)
    for feed in case.feeds:
        for wanted, got in zip(run(case.model, feed), run(proto, feed), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * float(np.abs(wanted).max()))


def test_a_clipped_channel_stays_as_it_is_and_others_go_up_to_the_limit() -> None:
    case = cnn(START + "r = Clip(c, zero, six) y = Conv(r, v)", {})
    proto, edits = equalized(case)
    assert edits
    before = normalized(case.model, Recipe())
    stats = statistics(before, ["r"], case.feeds)["r"]
    exposed = ModelProto()
    exposed.CopyFrom(proto)
    (clip,) = [n for n in exposed.graph.node if n.op_type == "Clip"]
    exposed.graph.output[0].name = clip.output[0]
    exposed.graph.output[0].type.Clear()
    highs = np.max([run(exposed, feed)[0].max(axis=(0, 2, 3)) for feed in case.feeds], axis=0)
    grown = highs / np.asarray(stats.row_highs).clip(1e-30)
    cut = np.asarray(stats.row_highs) == 6
    assert cut.any()
    assert not cut.all()
    assert (highs[cut] == 6).all()
    np.testing.assert_allclose(grown[cut], 1)
    assert (highs <= 6 * (1 + 1e-6)).all()
    assert grown.max() > 2


def test_a_clip_that_calibration_has_not_seen_holds_its_channels() -> None:
    pooled = "r = Clip(c, zero, six) p = AveragePool<kernel_shape = [2, 2]>(r) y = Conv(p, v)"
    case = cnn(START + pooled, {}, "float[1, 6, 7, 7] y")
    ready = normalized(case.model, Recipe())
    _, plan = planned(case, calibrate=True)
    stats = statistics(ready, plan.observe, case.feeds)
    assert {"r", "p"} <= stats.keys()
    assert Equalize(plan, {name: found for name, found in stats.items() if name != "r"}).run(ready).edits == 0
    assert Equalize(plan, stats).run(ready).edits > 0


def test_no_range_grows() -> None:
    for case in NETWORKS.values():
        proto, _ = equalized(case)
        before, after = normalized(case.model, Recipe()), onnxshot.graph.load.load_model(proto)
        _, plan = planned(case)
        old, new = (statistics(m, plan.observe, case.feeds) for m in (before, after))
        for name in plan.observe:
            span = old[name].high - old[name].low
            assert new[name].high <= old[name].high + 1e-4 * span
            assert new[name].low >= old[name].low - 1e-4 * span


@pytest.mark.parametrize("name", NETWORKS)
def test_the_factors_of_every_tensor_that_changed_are_told(name: str) -> None:
    case = NETWORKS[name]
    ready, plan = planned(case, calibrate=True)
    stats = statistics(ready, plan.observe, case.feeds)
    found = plan_candidates.equalized(ready, plan, stats)
    assert found is not None
    model, factors = found
    again = statistics(model, plan.observe, case.feeds)
    for tensor, before in stats.items():
        for row in ("row_lows", "row_highs"):
            wanted, scale = np.asarray(getattr(before, row)), factors.get(tensor, np.ones(1, np.float32))
            np.testing.assert_allclose(getattr(again[tensor], row), wanted * scale, rtol=1e-4, atol=1e-4)
    assert all((values >= 1).all() and (values > 1).any() for values in factors.values())
    assert set(factors) & set(stats)


def test_a_shared_weight_is_not_scaled_and_the_given_model_stays() -> None:
    case = cnn(
        START + "r = Relu(c) d = Conv<pads = [1, 1, 1, 1]>(r, u) e = Relu(d) f = Conv<pads = [1, 1, 1, 1]>(e, u) "
        "y = Conv(f, v)",
        {"u": spread(8, 8, 3, 3, seed=1)},
    )
    before = case.model.SerializeToString()
    ready = normalized(case.model, Recipe())
    _, plan = planned(case, calibrate=True)
    assert Equalize(plan, statistics(ready, plan.observe, case.feeds)).run(ready).edits == 0
    copy = plan_candidates.equalized(*planned(case, calibrate=True), statistics(ready, plan.observe, case.feeds))
    assert copy is None
    assert case.model.SerializeToString() == before


def test_a_batch_of_several_tells_nothing_of_channels() -> None:
    case = cnn(START + "r = Relu(c) y = Conv(r, v)", {})
    text = "g (float[2, 3, 8, 8] x) => (float[2, 6, 8, 8] y) {" + START + "r = Relu(c) y = Conv(r, v)}"
    constants = {k: v for k, v in initializers(case.model).items() if k in ("w", "b", "v")}
    assert equalized(Case(model(text, constants), feeds(4, x=(2, 3, 8, 8))))[1] == 0


@st.composite
def networks(draw: st.DrawFn) -> Case:
    """A few blocks of 6 channels between a Conv of the input and one that gives out."""
    constants: dict[str, Any] = {"w": spread(6, 3, 3, 3), "b": vector(6), "v": weight(4, 6, 1, 1), **SIX}
    lines, last = ["t0 = Conv<pads = [1, 1, 1, 1]>(x, w, b)"], "t0"
    count = draw(st.integers(1, 5))
    for i in range(1, count + 1):
        kind = draw(st.sampled_from(["relu", "clip", "pool", "depthwise", "grouped", "residual", "shuffle", "leaky"]))
        constants |= {f"u{i}": spread(6, {"depthwise": 1, "grouped": 2}.get(kind, 6), 3, 3, seed=i), f"b{i}": vector(6)}
        conv = f"Conv<pads = [1, 1, 1, 1], group = {{}}>({last}, u{i}, b{i})"
        lines += {
            "relu": [f"t{i} = Relu({last})"],
            "clip": [f"t{i} = Clip({last}, zero, six)"],
            "leaky": [f"t{i} = LeakyRelu<alpha = 0.1>({last})"],
            "pool": [f"t{i} = MaxPool<kernel_shape = [2, 2]>({last})"],
            "depthwise": [f"t{i} = {conv.format(6)}"],
            "grouped": [f"t{i} = {conv.format(3)}"],
            "residual": [f"d{i} = {conv.format(1)}", f"t{i} = Add(d{i}, {last})"],
            "shuffle": [f"g{i} = Gather<axis = 1>({last}, order)", f"t{i} = {conv.format(1).replace(last, f'g{i}')}"],
        }[kind]
        last = f"t{i}"
    constants["order"] = np.asarray([3, 0, 4, 1, 5, 2])
    size = draw(st.integers(7, 9))
    body = "\n".join([*lines, f"y = Conv({last}, v)"])
    return Case(
        model(f"g (float[1, 3, {size}, {size}] x) => (float[1, 4, h, w2] y) {{ {body} }}", constants),
        feeds(3, x=(1, 3, size, size)),
    )


@settings(max_examples=15)
@given(networks())
def test_the_answers_of_any_small_network_stay(case: Case) -> None:
    proto, _ = equalized(case)
    for feed in case.feeds:
        (wanted,), (got,) = run(case.model, feed), run(proto, feed)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-5 * float(np.abs(wanted).max()))


def test_a_channel_50_times_the_others_does_not_cost_them_their_precision() -> None:
    w = weight(8, 3, 3, 3)
    w /= np.abs(w).max(axis=(1, 2, 3), keepdims=True)
    w[3] *= 50
    v = weight(6, 8, 1, 1, seed=3)
    v /= np.abs(v).max(axis=(0, 2, 3), keepdims=True)
    v[:, 3] /= 50  # every channel counts alike
    # Behind the first Conv, so that the channels are of an activation that is quantized.
    case = cnn(START + "r = Relu(c) y = Conv(r, v)", {"w": w, "v": v, "b": np.zeros(8, np.float32)})
    proto, edits = equalized(case)
    assert edits >= 7
    found: list[Feed] = case.feeds
    plain, better = (
        sqnr(case, onnxshot.quantize(m, found, settings=FAST, effort="fast").model.to_proto())
        for m in (case.model, proto)
    )
    assert better > plain + 6
