"""SmoothQuant of static products: the search, equal float outputs, the gain in int8, and the switch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from handmade import Case
from handmade.core import Feed, model, vector, weight
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from planned_models import FAST, initializers, maker, nodes_of, normalized, planned, run, small, sqnr, statistics

import onnxshot
from onnxshot.calibration.readers import Sample
from onnxshot.calibration.sample_parts import parts_of
from onnxshot.errors import UsageError
from onnxshot.graph import weights
from onnxshot.maths.affine import INT8, UINT8, PerChannel, PerTensor, QuantScheme
from onnxshot.maths.smoothquant import STRENGTHS, Rows, search_smoothing, smoothing_factors
from onnxshot.passes.apply_smoothquant import ApplySmoothQuant
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.plan import DYNAMIC, STATIC, Plan
from onnxshot.planning.scales import Evidence
from onnxshot.planning.smoothable import readers_of
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery import smoothquant_strength
from onnxshot.stages.make_quantized import make_quantized
from onnxshot.stages.open_samples import open_samples
from onnxshot.stages.prepare_model import prepare_model
from onnxshot.targets import target_named

K, ALL = 32, ("[MG][ae][tm][Mm]*",)  # MatMul and Gemm, as far as there are any
WEIGHTS = QuantScheme(INT8, symmetric=True, granularity=PerChannel(1))

# ---------------------------------------------------------------------------- maths


def rows_of(samples: list[NDArray[np.float32]]) -> Rows:
    numbers = np.repeat(np.arange(len(samples)), [len(s) for s in samples])
    low, high = (np.asarray([f(s, axis=0) for s in samples]) for f in (np.min, np.max))
    return Rows(np.concatenate(samples), numbers, low, high)


def activations(seed: int = 0, loud: float = 60.0) -> list[NDArray[np.float32]]:
    """Three samples of 24 rows; every eighth channel has larger values than the others."""
    rng = np.random.default_rng(seed)
    factors = np.where(np.arange(K) % 8 == 3, loud, 1.0)
    return [(rng.standard_normal((24, K)) * factors * size).astype(np.float32) for size in (1.0, 0.5, 2.0)]


def plain_error(
    samples: list[NDArray[np.float32]], tables: list[NDArray[np.float32]], factors: NDArray[Any], *, per_sample: bool
) -> float:
    """Error of the products in dB in plain numpy and float64: uint8 activations, int8 weights per output channel."""
    found, wanted = [], []
    everything = np.concatenate(samples) / factors
    for sample in samples:
        x = sample.astype(np.float64) / factors
        seen = x if per_sample else everything
        low, high = min(float(seen.min()), 0.0), max(float(seen.max()), 0.0)
        scale = (high - low) / 255
        zero = round(-low / scale)
        x = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
        out, exact = [], []
        for table in tables:
            w = table.astype(np.float64) * factors[:, None]
            step = np.abs(w).max(axis=0) / 127
            out.append(x @ (np.rint(w / step) * step))
            exact.append(sample.astype(np.float64) @ table)
        found.append(np.concatenate(out, axis=1))
        wanted.append(np.concatenate(exact, axis=1))
    noise = np.square(np.concatenate(found) - np.concatenate(wanted)).sum(axis=1)
    energy = np.square(np.concatenate(wanted)).sum(axis=1)
    return float(-10 * np.log10(np.mean(noise / (energy + 0.1 * np.median(energy)))))


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_search_takes_the_strength_that_plain_numpy_finds_best(per_sample: bool) -> None:
    samples, tables = activations(), [weight(K, 16, channel_axis=1), weight(K, 40, seed=2, channel_axis=1)]
    strengths = (0.3, 0.45, 0.6, 0.75, 0.9)
    scheme = QuantScheme(UINT8)
    found = search_smoothing(
        rows_of(samples), tables, scheme, [WEIGHTS] * 2, per_sample=per_sample, strengths=strengths
    )
    x_absmax = np.abs(np.concatenate(samples)).max(axis=0)
    w_absmax = np.max([np.abs(t).max(axis=1) for t in tables], axis=0)
    tried = {0.0: np.ones(K, np.float32)} | {s: smoothing_factors(x_absmax, w_absmax, s) for s in strengths}
    errors = {s: plain_error(samples, tables, f.astype(np.float64), per_sample=per_sample) for s, f in tried.items()}
    assert found.strength == max(errors, key=lambda s: errors[s])
    assert found.db == pytest.approx(errors[found.strength], abs=0.1)
    assert found.plain_db == pytest.approx(errors[0.0], abs=0.1)
    assert found.db > found.plain_db + 6
    assert found.noise_removed == pytest.approx(10 ** (-found.plain_db / 10) - 10 ** (-found.db / 10))
    np.testing.assert_array_equal(found.factors, tried[found.strength])


def test_wide_weights_are_measured_by_a_projection() -> None:
    samples, tables = activations(), [weight(K, 300, channel_axis=1), weight(K, 70, seed=2, channel_axis=1)]
    found = search_smoothing(rows_of(samples), tables, QuantScheme(UINT8), [WEIGHTS] * 2)
    for strength, db in ((0.0, found.plain_db), (found.strength, found.db)):
        ones = np.ones(K, np.float32)
        x_absmax = np.abs(np.concatenate(samples)).max(axis=0)
        w_absmax = np.max([np.abs(t).max(axis=1) for t in tables], axis=0)
        factors = smoothing_factors(x_absmax, w_absmax, strength) if strength else ones
        assert db == pytest.approx(plain_error(samples, tables, factors.astype(np.float64), per_sample=False), abs=0.5)


def test_an_even_activation_and_an_odd_weight_are_left_alone() -> None:
    """Where only the weight has rows of large values, moving outliers into it adds error."""
    table = weight(K, 16) * np.where(np.arange(K) == 5, 100, 1)[:, None].astype(np.float32)
    found = search_smoothing(rows_of(activations(loud=1.0)), [table], QuantScheme(UINT8), [WEIGHTS], strengths=(0.1,))
    assert found.strength == 0
    assert (found.factors == 1).all()
    assert found.db == found.plain_db


def test_silent_channels_zero_rows_and_silence_break_nothing() -> None:
    samples = activations()
    for sample in samples:
        sample[:, 4] = 0
    table = weight(K, 16)
    table[7] = 0
    cases = [(samples, table), (samples, np.zeros_like(table)), ([np.zeros_like(s) for s in samples], table)]
    for given, w in cases:
        found = search_smoothing(rows_of(given), [w], QuantScheme(UINT8), [replace(WEIGHTS, granularity=PerTensor())])
        assert np.isfinite(found.factors).all()
        assert (found.factors > 1 / 65).all()
        assert (found.factors < 65).all()
        assert np.isfinite([found.db, found.plain_db]).all()


def test_rows_are_widened_on_the_side_that_they_go_further_on() -> None:
    rows = Rows(np.zeros((1, 3), np.float32), np.zeros(1, np.int64), np.float32([[-1, -3, 0]]), np.float32([[2, 1, 0]]))
    wide = rows.widened(np.float32([5, 2, 4]))
    assert wide.low.tolist() == [[-1, -3, 0]]
    assert wide.high.tolist() == [[5, 1, 4]]
    assert wide.absmax.tolist() == [5, 3, 4]


# ---------------------------------------------------------------------------- pass


LOUD = np.where(np.arange(K) % 8 == 3, 40, 1).astype(np.float32)
CONSTANTS: dict[str, Any] = {
    "g": (vector(K, 1, 0.5, 1.5) * LOUD).astype(np.float32), "beta": (vector(K, 2) * LOUD).astype(np.float32),
    "w": weight(K, K, channel_axis=1), "v": weight(K, K, seed=1, channel_axis=1), "t": weight(K, K, seed=2),
    "b": vector(K), "zero": np.zeros(2, np.int64),
}  # fmt: skip
NORMED = "n = LayerNormalization<axis = -1>(x, g, beta) "
GRAPHS: dict[str, tuple[str, int]] = {  # name -> (body, how many Muls are inserted)
    "one for several products": (NORMED + "p = MatMul(n, w) q = MatMul(n, v) s = Add(p, q) y = Add(s, n)", 1),
    "folded": (NORMED + "p = MatMul(n, w) q = MatMul(n, v) y = Add(p, q)", 0),
    "folded without a bias": ("n = LayerNormalization<axis = -1>(x, g) y = MatMul(n, w)", 0),
    "folded into Mul and Add": ("m = Mul(x, g) n = Add(m, beta) p = MatMul(n, w) q = MatMul(n, v) y = Add(p, q)", 0),
    "a Mul that is read twice": ("m = Mul(x, g) n = Add(m, beta) p = MatMul(n, w) y = Add(p, m)", 1),
    "a sum of two": ("m = Mul(x, g) a = Sigmoid(m) n = Add(m, a) y = MatMul(n, w)", 1),
    "given out": (NORMED + "y = MatMul(n, w)", 1),
    "one weight, twice": (NORMED + "p = MatMul(n, w) q = MatMul(n, w) m = Mul(p, q) y = Add(m, n)", 1),
    "a turned Gemm": ("m = Mul(x, g) n = Reshape(m, two) p = Gemm<transB = 1>(n, t, b) y = Reshape(p, three)", 1),
}


def case_of(name: str) -> Case:
    body, _ = GRAPHS[name]
    constants = {**CONSTANTS, "two": np.asarray([-1, K]), "three": np.asarray([1, -1, K])}
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    outputs = f"float[1, 12, {K}] y" + (f", float[1, 12, {K}] n" if name == "given out" else "")
    text = f"h (float[1, 12, {K}] x) => ({outputs}) {{ {body} }}"
    rng = np.random.default_rng(3)
    feeds: list[Feed] = [{"x": rng.standard_normal((1, 12, K)).astype(np.float32)} for _ in range(6)]
    return Case(model(text, {k: v for k, v in constants.items() if k in words}), feeds)


def smoothed(case: Case) -> tuple[ModelProto, Plan, list[str]]:
    """The smoothed float model, the plan it was made for, and the tensors that were divided."""
    ready, plan = planned(case, calibrate=True, include=ALL)
    samples = [Sample(str(i), feed) for i, feed in enumerate(case.feeds)]
    found = smoothquant_strength.search(ready, plan, STATIC, samples, {}, threads=1)
    factors = {name: s.factors for name, s in found.items() if s.strength}
    assert ApplySmoothQuant(factors, plan.labels(STATIC)).run(ready).edits == len(factors)
    return ready.to_proto(), plan, list(factors)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_float_answers_stay_and_no_more_is_inserted_than_must(name: str) -> None:
    case = case_of(name)
    proto, _, divided = smoothed(case)
    assert divided, "there was nothing to test"
    before = normalized(case.model, Recipe()).to_proto()
    assert len(proto.graph.node) - len(before.graph.node) == GRAPHS[name][1]
    for feed in case.feeds:
        exact = ReferenceEvaluator(case.model).run(None, feed)
        for wanted, got, other in zip(run(case.model, feed), run(proto, feed), exact, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5 * float(np.abs(wanted).max()))
            np.testing.assert_allclose(got, other, rtol=2e-5, atol=2e-5 * float(np.abs(wanted).max()))


def test_products_that_read_one_tensor_share_the_division_and_what_weights_they_shared() -> None:
    proto, _, divided = smoothed(case_of("one weight, twice"))
    (name,) = divided
    products = nodes_of(proto, "MatMul")
    assert len({p.input[0] for p in products}) == 1
    assert len({p.input[1] for p in products}) == 1
    division = maker(proto, products[0].input[0])
    assert division.op_type == "Mul"
    assert division.input[0] == name
    values = initializers(proto)
    np.testing.assert_allclose(values[products[0].input[1]] * values[division.input[1]][:, None], CONSTANTS["w"], 1e-6)


def test_a_weight_that_two_tensors_meet_is_divided_for_both_or_not_at_all() -> None:
    """A copy of the weight for every input would make files two to three times larger."""
    body = "r = Relu(n) p = MatMul(n, w) q = MatMul(r, w) y = Add(p, q)"
    text = f"h (float[1, 12, {K}] x) => (float[1, 12, {K}] y) {{ {NORMED} {body} }}"
    feeds = case_of("folded").feeds
    stored = {name: CONSTANTS[name] for name in ("g", "beta", "w")}
    case = Case(model(text, stored), feeds)
    ready, plan = planned(case, calibrate=True, include=ALL)
    assert readers_of(ready, plan, STATIC) == {}
    factors = np.linspace(0.5, 4, K).astype(np.float32)
    for names, edits in ((("n",), 0), (("n", "r"), 2)):
        ready, plan = planned(case, calibrate=True, include=ALL)
        change = ApplySmoothQuant(dict.fromkeys(names, factors), plan.labels(STATIC)).run(ready)
        assert change.edits == edits and len(change.skips) == 1 - edits // 2
        proto = ready.to_proto()
        assert len({node.input[1] for node in nodes_of(proto, "MatMul")}) == 1
        for wanted, got in zip(run(case.model, feeds[0]), run(proto, feeds[0]), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5 * float(np.abs(wanted).max()))


def test_a_normalization_takes_the_division_and_its_own_constants_stay_for_others() -> None:
    text = f"h (float[1, 12, {K}] x) => (float[1, 12, {K}] y) {{ {NORMED}"
    text += "o = LayerNormalization<axis = -1>(x, g, beta) p = MatMul(n, w) y = Add(p, o) }"
    case = Case(model(text, {k: CONSTANTS[k] for k in ("g", "beta", "w")}), case_of("folded").feeds)
    proto, _, _ = smoothed(case)
    scales = [initializers(proto)[n.input[1]] for n in nodes_of(proto, "LayerNormalization")]
    assert len(scales) == 2
    assert sum(np.array_equal(s, CONSTANTS["g"]) for s in scales) == 1
    for feed in case.feeds:
        (wanted,), (got,) = run(case.model, feed), run(proto, feed)
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5 * float(np.abs(wanted).max()))


def test_what_int8_ops_make_is_quantized_where_it_is_made() -> None:
    text = f"h (float[1, 12, {K}] x) => (float[1, 12, {K}] y) {{ p = MatMul(x, w) y = MatMul(p, v) }}"
    case = Case(model(text, {k: CONSTANTS[k] for k in ("w", "v")}), case_of("folded").feeds)
    ready, plan = planned(case, include=ALL)
    assert [t.name for t in readers_of(ready, plan, STATIC)] == ["x"]


# ---------------------------------------------------------------------------- a run


def encoder(loud: float = 40.0, blocks: int = 2) -> Case:
    """Encoder blocks with post-normalization, some of whose channels have larger values than the others.

    From 16 times on, columns are balanced before anything is planned.
    """
    rng = np.random.default_rng(5)
    factors = np.where(np.arange(K) % 8 == 3, loud, 1).astype(np.float32)
    constants: dict[str, NDArray[Any]] = {"half": np.float32(0.5), "one": np.float32(1), "root": np.float32(2**0.5)}
    lines, last = [], "x"
    for i in range(blocks):
        sizes = {"q": (K, K), "k": (K, K), "v": (K, K), "o": (K, K), "u": (K, 4 * K), "d": (4 * K, K)}
        for letter, shape in sizes.items():
            table = weight(*shape, seed=10 * i + len(constants), channel_axis=1)
            if letter in "qkvu":
                table /= factors[:, None]  # every channel counts alike
            constants[f"{letter}{i}w"] = table.astype(np.float32)
        constants |= {f"g{i}": factors * vector(K, i, 0.8, 1.2), f"e{i}": vector(K, i + 7), f"h{i}": factors}
        lines.append(f"""
            n{i} = LayerNormalization<axis = -1>({last}, g{i}, e{i})
            q{i} = MatMul(n{i}, q{i}w) k{i} = MatMul(n{i}, k{i}w) v{i} = MatMul(n{i}, v{i}w)
            t{i} = Transpose<perm = [0, 2, 1]>(k{i}) a{i} = MatMul(q{i}, t{i}) s{i} = Softmax(a{i})
            c{i} = MatMul(s{i}, v{i}) o{i} = MatMul(c{i}, o{i}w) r{i} = Add(o{i}, n{i})
            m{i} = LayerNormalization<axis = -1>(r{i}, h{i}, e{i})
            u{i} = MatMul(m{i}, u{i}w) z{i} = Relu(u{i}) d{i} = MatMul(z{i}, d{i}w) y{i} = Add(d{i}, m{i})""")
        last = f"y{i}"
    constants |= {"w": (weight(K, 8, channel_axis=1) / factors[:, None]).astype(np.float32)}
    text = f"enc (float[1, n, {K}] x) => (float[1, n, 8] y) {{ {''.join(lines)} y = MatMul({last}, w) }}"
    used = {name: values for name, values in constants.items() if f"{name})" in text or f"{name}," in text}
    feeds: list[Feed] = [{"x": rng.standard_normal((1, 6 + i % 4, K)).astype(np.float32)} for i in range(24)]
    return Case(model(text, used), feeds)


def done(case: Case, **options: Any) -> tuple[onnxshot.Result, float]:
    result = onnxshot.quantize(case.model, case.feeds, settings=FAST, **{"include": ALL, **options})
    return result, sqnr(case, result.model.to_proto())


NOTE = "outliers of activations were moved into the weights of products that gain accuracy by it"


def test_an_encoder_with_loud_channels_keeps_its_precision() -> None:
    case = encoder(15.0)
    plain, before = done(case, smooth=False)
    result, after = done(case)
    assert after > before + 4
    assert NOTE in result.report.notes
    assert NOTE not in plain.report.notes
    products = 13
    divisions = [n for n in nodes_of(result.model.to_proto(), "Mul") if n.name.endswith("smooth")]
    assert 0 < len(divisions) <= products // smoothquant_strength._PRODUCTS_PER_MUL
    assert sqnr(case, result.model.to_proto(), optimize=False) > before + 3


def test_the_switch_and_fast_leave_it_out_and_even_channels_gain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = done(encoder(loud=1.0))
    assert NOTE not in result.report.notes

    def called(*_: object, **__: object) -> None:
        raise AssertionError("it was switched off")

    monkeypatch.setattr(smoothquant_strength, "search", called)
    done(encoder(blocks=1), smooth=False)
    done(encoder(blocks=1), effort="fast")


def test_smoothing_that_makes_the_outputs_worse_is_not_kept_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    case = encoder(loud=1.0, blocks=1)
    quiet = np.arange(K) % 8 == 5
    worst = np.where(quiet, 1e-3, 1).astype(np.float32)
    monkeypatch.setattr(smoothquant_strength, "worthwhile_factors", lambda *_: {"n0": worst, "m0": worst})
    tried, kept = done(case)
    assert NOTE not in tried.report.notes
    forced, spoiled = done(case, smooth=True)
    assert NOTE in forced.report.notes
    assert spoiled < kept


def test_what_was_found_is_made_again_from_the_recipe() -> None:
    case = encoder(15.0)
    prepared = prepare_model(case.model, Recipe(include=ALL), FAST)
    with open_samples(prepared, case.feeds, None) as samples:
        made = make_quantized(prepared, samples)
    decided = made.final.decided
    assert decided.smooth is True
    assert decided.equalize is False
    again, _ = done(case, **{k: v for k, v in decided.to_dict().items() if k != "include"})
    first, second = initializers(made.model.to_proto()), initializers(again.model.to_proto())
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_dynamic_products_have_their_strength_searched_too() -> None:
    case = encoder()
    plain, before = done(case, include=(), effort="fast")
    assert not done(case, include=(), smooth=False)[0].plan.smoothing, "it was switched off"
    result, after = done(case, include=())
    if not plain.plan.smoothing:
        pytest.fail("there was nothing to test")
    changed = [n for n, f in result.plan.smoothing.items() if not np.array_equal(f, plain.plan.smoothing.get(n, 0))]
    assert bool(changed) == (NOTE in result.report.notes)
    assert after > before - 0.3
    ready, plan = planned(case, calibrate=True)
    samples = [Sample(str(i), feed) for i, feed in enumerate(case.feeds)]
    given = Evidence(statistics(ready, plan.observe, case.feeds, plan.watched))
    found = smoothquant_strength.strengths(ready, plan, plan, given, samples, FAST)
    assert found.keys() == plan.smoothing.keys()
    name = next(n for n, s in found.items() if s)
    searched = make_plan(ready, target_named("ort"), Recipe(), replace(given, strengths={name: found[name]}))
    without = make_plan(ready, target_named("ort"), Recipe(), replace(given, strengths={name: 0.0}))
    assert name not in without.smoothing
    assert searched.smoothing.keys() == plan.smoothing.keys()
    tables = [n.inputs[1] for t, ns in readers_of(ready, plan, DYNAMIC).items() if t.name == name for n in ns]
    w_absmax = np.max([np.abs(np.asarray(weights.read(t))).max(axis=1) for t in tables], axis=0)
    x_absmax = np.asarray(given.stats[name].channel_absmax, np.float32)
    np.testing.assert_array_equal(searched.smoothing[name], smoothing_factors(x_absmax, w_absmax, found[name]))


def test_dynamic_products_are_divided_by_maxima_of_the_samples_that_chose_too() -> None:
    """A channel that is loud in choosing samples alone is divided as much as if ranges had come from all samples."""
    case = encoder(10.0)
    parts = parts_of(len(case.feeds))
    loudest = parts.choosing[-1]
    case.feeds[loudest]["x"] *= np.where(np.arange(K) == 7, 50, 1).astype(np.float32)
    result, _ = done(case, include=())
    assert result.report.samples["calibration"] == len(parts.ranging) + len(parts.choosing)
    name, factors = next(iter(result.plan.smoothing.items()))
    ready, plan = planned(case, calibrate=True)
    ours = sorted([*parts.ranging, *parts.choosing])
    ranged, every = (
        np.asarray(statistics(ready, [name], [case.feeds[i] for i in some], [name])[name].channel_absmax)
        for some in (parts.ranging, ours)
    )
    assert every[7] > 1.2 * ranged[7]
    tables = [n.inputs[1] for t, ns in readers_of(ready, plan, DYNAMIC).items() if t.name == name for n in ns]
    w_absmax = np.max([np.abs(np.asarray(weights.read(t))).max(axis=1) for t in tables], axis=0)
    tried = [smoothing_factors(every.astype(np.float32), w_absmax, s) for s in STRENGTHS]
    assert min(float(np.abs(np.log(one / factors)).max()) for one in tried) < 1e-3


def test_statistics_of_more_samples_count() -> None:
    """Maxima of a channel in samples that were not searched count: the channel is divided by a larger factor."""
    case = case_of("one for several products")
    ready, plan = planned(case, calibrate=True, include=ALL)
    samples = [Sample(str(i), feed) for i, feed in enumerate(case.feeds)]
    stats = statistics(ready, ["n"], case.feeds, ["n"])
    peaks = np.asarray(stats["n"].channel_absmax)
    peaks[0] *= 30
    known = {"n": replace(stats["n"], channel_absmax=tuple(peaks))}
    few, more = (smoothquant_strength.search(ready, plan, STATIC, samples, s, threads=1)["n"] for s in (stats, known))
    assert more.factors[0] / more.factors[1] > 5 * few.factors[0] / few.factors[1]


def test_the_recipe_refuses_other_values() -> None:
    with pytest.raises(UsageError, match="smooth is 'yes'"):
        Recipe(smooth="yes")  # type: ignore[arg-type]


def test_inputs_of_static_products_are_watched_by_channel_whatever_the_cache_holds() -> None:
    """A target without dynamic ops had channels of them only where a run for another target had left them."""
    text = "g (float[n, 5, 128] x) => (float[n, 5, 64] y) { r = Relu(x)  y = MatMul(r, w) }"
    case = small(text, {"w": weight(128, 64, channel_axis=1)}, x=(2, 5, 128))
    found = onnxshot.calibrate(case.model, case.feeds, recipe=Recipe(target="tensorrt"), settings=FAST)
    assert len(found.tensors["r"].channel_absmax) == 128
