"""Features of very different size in one tensor: every mode keeps the small ones, and the float outputs stay."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from handmade import Case
from handmade.core import Feed, model, vector
from numpy.typing import NDArray
from planned_models import FAST, normalized, run, sqnr

import onnxshot
from onnxshot.graph.load import load_model
from onnxshot.maths.column_balance import balancing_factors, rows_differ
from onnxshot.passes.balance_columns import BalanceColumns, columns, products_of
from onnxshot.recipes.recipe import Recipe

K, H = 64, 128
BIG = np.where(np.arange(K) % 16 == 3, np.float32(640), np.float32(1))
MODES: dict[str, dict[str, Any]] = {
    "static": {},
    "dynamic": {"mode": "dynamic"},
    "included": {"include": ("*",)},
    "fast": {"effort": "fast", "include": ("[MCG][aoe][tnm]*",)},
    "weights": {"mode": "weights"},
    "blocks": {"mode": "weights", "bits": 8},
}
NOTE = "columns of very different size were balanced"


def table(rows: int, columns: int, seed: int, sizes: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Normal weights [rows, columns] whose rows are divided by `sizes`, so that every feature counts alike."""
    values = np.random.default_rng(seed).normal(size=(rows, columns)) / rows**0.5
    return (values if sizes is None else values / sizes[:, None]).astype(np.float32)


def features(*shape: int, sizes: NDArray[np.float32] = BIG, axis: int = -1) -> list[Feed]:
    rng, by = np.random.default_rng(0), np.ones(len(shape), np.int64)
    by[axis] = sizes.size
    return [{"x": (rng.random(shape) * sizes.reshape(by)).astype(np.float32)} for _ in range(16)]


def head(of: str = "p") -> str:
    return f"a = Relu({of}) q = MatMul(a, v) b = Relu(q) y = MatMul(b, u)"


HEAD = {"v": table(H, H, 1), "u": table(H, 32, 2)}


def products() -> Case:
    body = f"p = MatMul(x, w) {head()}"
    text = f"g (float[n, 64] x) => (float[n, 32] y) {{ {body} }}"
    return Case(model(text, {"w": table(K, H, 0, BIG), **HEAD}), features(6, K))


def sequences() -> Case:
    text = f"g (float[n, 5, 64] x) => (float[n, 5, 32] y) {{ m = MatMul(x, w) p = Add(m, c) {head()} }}"
    return Case(model(text, {"w": table(K, H, 0, BIG), "c": vector(H), **HEAD}), features(2, 5, K))


def turned() -> Case:
    text = f"g (float[n, 64] x) => (float[n, 32] y) {{ p = Gemm<transB = 1>(x, w, c) {head()} }}"
    weight = np.ascontiguousarray(table(K, H, 0, BIG).T)
    return Case(model(text, {"w": weight, "c": vector(H), **HEAD}), features(6, K))


def two_readers() -> Case:
    body = f"p1 = MatMul(x, w) p2 = MatMul(x, z) p = Mul(p1, p2) {head()} s = Tanh(x)"
    text = f"g (float[n, 64] x) => (float[n, 32] y, float[n, 64] s) {{ {body} }}"
    return Case(model(text, {"w": table(K, H, 0, BIG), "z": table(K, H, 3, BIG), **HEAD}), features(6, K))


def behind_a_norm() -> Case:
    body = f"n = LayerNormalization<axis = -1>(x, g, e) p = MatMul(n, w) {head()}"
    text = f"g (float[n, 64] x) => (float[n, 32] y) {{ {body} }}"
    constants = {"w": table(K, H, 0, BIG), "g": BIG, "e": vector(K), **HEAD}
    return Case(model(text, constants), features(6, K, sizes=np.ones(K, np.float32)))


def boxes_and_scores() -> Case:
    """Boxes come in pixels, scores out of the net."""
    sizes = np.concatenate([np.full(16, 640), np.ones(48)]).astype(np.float32)
    body = f"s = MatMul(f, t) r = Sigmoid(s) j = Concat<axis = 1>(x, r) p = MatMul(j, w) {head()}"
    text = f"g (float[n, 16] x, float[n, 32] f) => (float[n, 32] y) {{ {body} }}"
    feeds = features(6, 16, sizes=sizes[:16])
    for i, feed in enumerate(feeds):
        feed["f"] = np.random.default_rng(i).normal(size=(6, 32)).astype(np.float32)
    return Case(model(text, {"t": table(32, 48, 4), "w": table(K, H, 0, sizes), **HEAD}), feeds)


def constant_and_silent_columns() -> Case:
    case = products()
    for feed in case.feeds:
        feed["x"][:, 5], feed["x"][:, 7], feed["x"][:, 19] = 1.0, 0.0, 640.0
    return case


def ignored_column() -> Case:
    """A column of ids, which the weights do not read."""
    case = products()
    sizes = BIG.copy()
    for feed in case.feeds:
        feed["x"][:, 20] *= 1e5
    weight = table(K, H, 0, sizes)
    weight[20] = 0
    text = f"g (float[n, 64] x) => (float[n, 32] y) {{ p = MatMul(x, w) {head()} }}"
    return Case(model(text, {"w": weight, **HEAD}), case.feeds)


def attention() -> Case:
    body = """
        q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv) t = Transpose<perm = [0, 2, 1]>(k0)
        l = MatMul(q0, t) s = Softmax(l) p = MatMul(s, v0)"""
    text = f"g (float[n, 5, 64] x) => (float[n, 5, 32] y) {{ {body} {head()} }}"
    constants = {name: table(K, H, i, BIG) for i, name in enumerate(("wq", "wk", "wv"))}
    return Case(model(text, {**constants, **HEAD}), features(2, 5, K))


def pictures() -> Case:
    """A 1x1 Conv on features of two sources."""
    body = "p = Conv(x, w, c) a = Relu(p) q = Conv(a, v) b = Relu(q) y = Conv(b, u)"
    weight = np.ascontiguousarray(table(K, 48, 0, BIG).T)[:, :, None, None]
    constants = {
        "w": weight, "c": vector(48), "v": table(48, 48, 1)[:, :, None, None], "u": table(48, 48, 2)[:, :, None, None],
    }  # fmt: skip
    text = f"g (float[n, 64, 6, 6] x) => (float[n, 48, 6, 6] y) {{ {body} }}"
    return Case(model(text, constants), features(1, K, 6, 6, axis=1))


def inside() -> Case:
    """Columns that a product makes unequal: its own weights take the factors."""
    sizes = np.where(np.arange(H) % 16 == 3, np.float32(300), np.float32(1))
    body = "p = MatMul(x, w) m = Add(p, c) a = Relu(m) q = MatMul(a, v) b = Relu(q) y = MatMul(b, u)"
    weight = (table(K, H, 0) * sizes).astype(np.float32)
    constants = {"w": weight, "c": vector(H) * sizes, "v": table(H, H, 1, sizes), "u": table(H, 32, 2)}
    text = f"g (float[n, 64] x) => (float[n, 32] y) {{ {body} }}"
    return Case(model(text, constants), features(6, K, sizes=np.ones(K, np.float32)))


CASES: list[Callable[[], Case]] = [
    products, sequences, turned, two_readers, behind_a_norm, boxes_and_scores, constant_and_silent_columns,
    ignored_column, attention, pictures, inside,
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_small_columns_beside_large_ones_survive_in_every_mode(build: Callable[[], Case], mode: str) -> None:
    case, options = build(), MODES[mode]
    result = onnxshot.quantize(case.model, case.feeds, settings=FAST, **options)
    quantized = result.model.to_proto()
    stays = build is pictures and mode in ("dynamic", "weights", "blocks")  # Convs are not multiplied in int8 there
    ops = {node.op_type for node in quantized.graph.node}
    assert stays or ops & {"MatMulInteger", "DequantizeLinear", "MatMulNBits"}
    assert sqnr(case, quantized) > 28


def test_without_samples_the_weights_say_which_inputs_are_large() -> None:
    case = products()
    result = onnxshot.quantize(case.model, mode="dynamic", settings=FAST)
    assert any(n.startswith(NOTE) and "without samples" in n for n in result.report.notes)
    assert sqnr(case, result.model.to_proto()) > 28
    plain = onnxshot.quantize(case.model, mode="dynamic", smooth=False, settings=FAST)
    assert sqnr(case, plain.model.to_proto()) < 10


def test_features_that_the_weights_ignore_cost_little_where_they_are_taken_for_large_ones() -> None:
    case = products()
    even = [{"x": feed["x"] / BIG} for feed in case.feeds]
    small = Case(case.model, even)
    balanced, plain = (
        sqnr(small, onnxshot.quantize(case.model, mode="dynamic", settings=FAST, **options).model.to_proto())
        for options in ({}, {"smooth": False})
    )
    assert balanced > plain - 1.5


def test_even_columns_and_a_switch_change_nothing() -> None:
    case = products()
    even = np.random.default_rng(0).normal(size=(K, H)).astype(np.float32)
    assert not rows_differ(even)
    assert rows_differ(table(K, H, 0, BIG))
    x = np.concatenate([feed["x"] for feed in case.feeds])
    assert balancing_factors(np.abs(x).max(axis=0).astype(np.float64), x, [even]) is None, "the weights would lose"
    off = onnxshot.quantize(case.model, case.feeds, settings=FAST, smooth=False)
    assert not any(n.startswith(NOTE) for n in off.report.notes)


def test_factors_are_powers_of_two_and_make_columns_alike() -> None:
    x = np.concatenate([feed["x"] for feed in features(6, K)])
    found = balancing_factors(np.abs(x).max(axis=0).astype(np.float64), x, [table(K, H, 0, BIG)])
    assert found is not None
    assert (np.log2(found) == np.rint(np.log2(found))).all()
    assert np.abs(x / found).max(axis=0).max() < 8 * np.abs(x / found).max(axis=0).min()


def test_a_weight_that_another_input_reads_too_is_left_alone() -> None:
    text = "g (float[n, 64] x, float[n, 64] z) => (float[n, 128] y) { p = MatMul(x, w) q = MatMul(z, w) y = Add(p, q) }"
    ready = load_model(model(text, {"w": table(K, H, 0, BIG)}))
    assert products_of(ready) == {}


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_the_float_outputs_stay(build: Callable[[], Case]) -> None:
    case = build()
    ready = normalized(case.model, Recipe())
    rng = np.random.default_rng(1)
    found = products_of(ready)
    factors = {t.name: np.exp2(rng.integers(-9, 9, columns(users[0]))) for t, users in found.items()}
    assert BalanceColumns({n: f.astype(np.float32) for n, f in factors.items()}).run(ready).edits == len(found)
    for feed in case.feeds[:2]:
        for a, b in zip(run(case.model, feed), run(ready.to_proto(), feed), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4 * np.abs(a).max())
