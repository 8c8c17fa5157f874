"""Equalized and smoothed channels are compared at their old scale, if the weights show the factors."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from fixture_data import fixture
from fixture_runs import PROVEN, QUICK, data_of
from handmade.core import feeds, model, vector, weight
from numpy.typing import NDArray

import onnxshot
from onnxshot import memory
from onnxshot.difference.compare_layers import matched
from onnxshot.difference.read_layers import read_layers
from onnxshot.difference.rescaled_channels import ChannelFactors, factors_of
from onnxshot.report.report import Report

Array = NDArray[np.float32]
Constants = dict[str, NDArray[np.generic]]

CNN = """g (float[1, 4, 8, 8] x) => (float[1, 6] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)  r = Relu(a)
    b = Conv<pads = [1, 1, 1, 1]>(r, w2)  s = Add(b, r)  t = Relu(s)
    d = Conv<pads = [1, 1, 1, 1], group = 8>(t, w3)  e = Relu(d)
    p = GlobalAveragePool(e)  f = Flatten(p)  y = Gemm<transB = 1>(f, v)
}"""
FACTORS = np.exp(np.random.default_rng(3).uniform(0, 3, 8)).astype(np.float32)
OTHERS = np.exp(np.random.default_rng(4).uniform(0, 3, 8)).astype(np.float32)


def constants() -> Constants:
    return {
        "w1": weight(8, 4, 3, 3), "b1": vector(8), "w2": weight(8, 8, 3, 3, seed=1), "w3": weight(8, 1, 3, 3, seed=2),
        "v": weight(6, 8),
    }  # fmt: skip


def column(values: Array, rank: int = 4) -> Array:
    return values.reshape(-1, *[1] * (rank - 1))


def equalized() -> Constants:
    """The same network: channels of a, r, b, s and t times FACTORS, those of d and e times OTHERS."""
    c = constants()
    c["w1"], c["b1"] = c["w1"] * column(FACTORS), c["b1"] * FACTORS
    c["w2"] = c["w2"] * column(FACTORS) / FACTORS.reshape(1, -1, 1, 1)
    c["w3"] = c["w3"] * column(OTHERS) / column(FACTORS)
    c["v"] = c["v"] / OTHERS
    return c


def saved(path: Path, text: str, given: Constants) -> Path:
    onnx.save(model(text, given), str(path))
    return path


def both(folder: Path, text: str, before: Constants, after: Constants) -> tuple[Path, Path]:
    return saved(folder / "a.onnx", text, before), saved(folder / "b.onnx", text, after)


def factors(paths: tuple[Path, Path]) -> ChannelFactors:
    one, other = (read_layers(path) for path in paths)
    return factors_of(one, matched(one.layers, other.layers)[0])


def tensors(report: Report) -> dict[str, float]:
    return {row.tensor: row.sqnr_db for row in report.worst}


def test_factors_of_an_equalized_network_are_found_in_its_weights(tmp_path: Path) -> None:
    found = factors(both(tmp_path, CNN, constants(), equalized())).tensors
    assert set(found) >= {"r", "s", "t", "d", "e"}
    for name, wanted in (("r", FACTORS), ("s", FACTORS), ("t", FACTORS), ("d", OTHERS), ("e", OTHERS)):
        axis, got = found[name]
        assert axis == 1
        np.testing.assert_allclose(got, np.where(np.abs(wanted - 1) < 0.05, 1, wanted), rtol=1e-4)
    assert "y" not in found


def test_an_equalized_network_differs_in_no_tensor(tmp_path: Path) -> None:
    paths = both(tmp_path, CNN, constants(), equalized())
    report = onnxshot.compare(*paths, feeds(x=(1, 4, 8, 8)), settings=PROVEN)
    assert min(tensors(report).values()) > 60
    assert {"r", "t", "e"} <= set(tensors(report))
    assert any("equalized" in note for note in report.notes)
    found = onnxshot.diff(*paths, feeds(x=(1, 4, 8, 8)), settings=PROVEN)
    assert all(row.sqnr_db is None or row.sqnr_db > 60 for row in found.layers)
    assert all(row.sqnr_db > 60 for row in found.worst)


def test_a_factor_that_nothing_undoes_is_an_error_and_shown_as_one(tmp_path: Path) -> None:
    wrong = constants()
    wrong["w1"], wrong["b1"] = wrong["w1"] * column(FACTORS), wrong["b1"] * FACTORS
    paths = both(tmp_path, CNN, constants(), wrong)
    assert factors(paths).tensors == {}
    report = onnxshot.compare(*paths, feeds(x=(1, 4, 8, 8)), settings=PROVEN)
    assert tensors(report)["r"] < 5


def test_weights_that_were_pruned_are_not_taken_for_scaled(tmp_path: Path) -> None:
    pruned = constants()
    for name in ("w1", "w2"):
        w = pruned[name]
        pruned[name] = np.where(np.abs(w) < np.quantile(np.abs(w), 0.5), 0, w).astype(np.float32)
    assert factors(both(tmp_path, CNN, constants(), pruned)).tensors == {}


NORMED = """g (float[1, 5, 16] x) => (float[1, 5, 8] y) {
    h = MatMul(x, u)  n = LayerNormalization(h, gamma, beta)  a = MatMul(n, w)  b = Relu(a)  y = MatMul(b, v)
}"""


def normed(scale: Array | None = None, undo: Array | None = None) -> Constants:
    one = np.ones(16, np.float32)
    scale, undo = one if scale is None else scale, one if undo is None else undo
    return {
        "u": weight(16, 16), "gamma": (np.abs(vector(16, 1)) + 0.5) * scale, "beta": vector(16, 2) * scale,
        "w": weight(16, 32, seed=1) * undo[:, None], "v": weight(32, 8),
    }  # fmt: skip


def test_a_smoothed_normalization_is_undone_where_the_product_behind_it_undoes_it(tmp_path: Path) -> None:
    scale = np.exp(np.random.default_rng(5).uniform(-2, 2, 16)).astype(np.float32)
    paths = both(tmp_path, NORMED, normed(), normed(scale, 1 / scale))
    axis, got = factors(paths).tensors["n"]
    assert axis == -1
    np.testing.assert_allclose(got, scale, rtol=1e-5)
    report = onnxshot.compare(*paths, feeds(x=(1, 5, 16)), settings=PROVEN)
    assert min(tensors(report).values()) > 60
    assert factors(both(tmp_path, NORMED, normed(), normed(scale))).tensors == {}


@pytest.mark.parametrize("name", ["digits_mobile", "digits_resnet"])  # the second has batch norms of its own
def test_what_quantize_has_equalized_is_compared_at_the_scale_of_the_input(name: str, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    made = onnxshot.quantize(fixture(name), **data_of(name), output=out, equalize=True, settings=QUICK)
    assert any("equalized" in note for note in made.report.notes)
    report = onnxshot.compare(fixture(name), out, **data_of(name), settings=PROVEN)
    assert min(tensors(report).values()) > 25, "8 bits keep each tensor so well; without the factors some are below 5"


FUSED = """g (float[1, 4, 8, 8] x) => (float[1, 8, 8, 8] y) { c = Conv<pads = [1, 1, 1, 1]>(x, w, b)  y = Relu(c) }"""
NORMALIZED = """g (float[1, 4, 8, 8] x) => (float[1, 8, 8, 8] y) {
    c = Conv<pads = [1, 1, 1, 1]>(x, w)  n = BatchNormalization<epsilon = 0.0>(c, g, h, m, v)  y = Relu(n)
}"""


def test_a_name_that_stands_for_another_value_after_fusing_is_no_error(tmp_path: Path) -> None:
    w, g, h, m, v = weight(8, 4, 3, 3), vector(8, 1, 2, 9), vector(8, 2), vector(8, 3), vector(8, 4, 0.5, 2)
    one = saved(tmp_path / "a.onnx", NORMALIZED, {"w": w, "g": g, "h": h, "m": m, "v": v})
    step = g / np.sqrt(v)
    given = {"w": (w * column(step)).astype(np.float32), "b": (h - m * step).astype(np.float32)}
    report = onnxshot.compare(one, saved(tmp_path / "b.onnx", FUSED, given), feeds(x=(1, 4, 8, 8)), settings=PROVEN)
    assert tensors(report)["c"] > 60
    given["w"] = given["w"] + weight(8, 4, 3, 3, seed=9)
    report = onnxshot.compare(one, saved(tmp_path / "b.onnx", FUSED, given), feeds(x=(1, 4, 8, 8)), settings=PROVEN)
    assert tensors(report)["c"] < 20, "an error is one by either meaning"


def test_factors_do_not_depend_on_the_memory_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows of three channels at once; the depthwise Conv has one row a group."""
    scale = np.exp(np.random.default_rng(5).uniform(-2, 2, 16)).astype(np.float32)
    cases = [(CNN, constants(), equalized()), (NORMED, normed(), normed(scale, 1 / scale))]
    whole = [factors(both(tmp_path, *case)) for case in cases]
    monkeypatch.setattr(memory, "held_bytes", lambda: 8 * 3 * 8 * 72)
    for case, wanted in zip(cases, whole, strict=True):
        found = factors(both(tmp_path, *case))
        for kind in ("tensors", "made", "read"):
            was, now = getattr(wanted, kind), getattr(found, kind)
            assert was.keys() == now.keys()
            for name in was:
                got, before = (pair[name][1] if kind == "tensors" else pair[name] for pair in (now, was))
                np.testing.assert_allclose(got, before, rtol=1e-12)


def test_what_cannot_be_read_is_compared_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise onnxshot.errors.ModelError("no layers")

    monkeypatch.setattr("onnxshot.difference.rescaled_channels.read_layers", refuse)
    paths = both(tmp_path, CNN, constants(), equalized())
    report = onnxshot.compare(*paths, feeds(x=(1, 4, 8, 8)), settings=PROVEN)
    assert tensors(report)["r"] < 20
