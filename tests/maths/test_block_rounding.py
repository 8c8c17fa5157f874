"""GPTQ for blocks compared with rounding to nearest, exhaustive search and the closed form of its targets."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxshot.maths.affine import dequantize, quantize
from onnxshot.maths.block_rounding import round_blocks, spread_of
from onnxshot.maths.block_scales import fit_blocks
from onnxshot.maths.quant_scheme import INT4, INT8, UINT4, UINT8, NotFinite, PerBlock, QuantScheme

Floats = NDArray[np.float64]

SCHEMES = [
    QuantScheme(dtype, symmetric, PerBlock(1, 16))
    for dtype, symmetric in ((INT4, True), (UINT4, True), (UINT4, False), (INT8, True), (UINT8, False))
]


def correlated(rng: np.random.Generator, columns: int, rows: int = 400) -> Floats:
    """Correlated inputs [rows, columns] of different magnitude."""
    factors = rng.standard_normal((rows, max(1, columns // 3))) @ rng.standard_normal((max(1, columns // 3), columns))
    return (factors + 0.3 * rng.standard_normal((rows, columns))) * np.exp(rng.uniform(-1, 1, columns))


def error(weight: Floats, made: Floats, moments: Floats) -> float:
    return float(np.einsum("nk,kl,nl->", weight - made, moments, weight - made))


@settings(max_examples=30, deadline=None)
@given(st.integers(12, 90), st.integers(0, 2**32 - 1), st.sampled_from(SCHEMES))
def test_outputs_change_less_than_by_rounding_to_nearest(columns: int, seed: int, scheme: QuantScheme) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((16, columns))
    x = correlated(rng, columns)
    moments = x.T @ x / len(x)
    codes, params = round_blocks(weight, spread_of(moments, 16), scheme)
    assert codes.dtype == scheme.dtype.storage
    assert codes.shape == weight.shape
    assert (codes.astype(int) >= scheme.dtype.qmin).all()
    assert (codes.astype(int) <= scheme.dtype.qmax).all()
    plain = fit_blocks(weight, scheme, moments.diagonal())
    nearest = error(weight, dequantize(quantize(weight, plain), plain), moments)
    # Greedy, and damped: with few columns there is little to gain.
    assert error(weight, dequantize(codes, params), moments) <= nearest * (1.1 if columns < 32 else 1.0)


def test_the_gain_is_large_for_correlated_inputs() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 200))
    x = correlated(rng, 200)
    moments = x.T @ x / len(x)
    for scheme in SCHEMES:
        codes, params = round_blocks(weight, spread_of(moments, 16), scheme)
        plain = fit_blocks(weight, scheme, moments.diagonal())
        nearest = error(weight, dequantize(quantize(weight, plain), plain), moments)
        assert error(weight, dequantize(codes, params), moments) < 0.4 * nearest


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_without_correlation_it_rounds_to_nearest(scheme: QuantScheme) -> None:
    weight = np.random.default_rng(1).standard_normal((8, 40))
    codes, params = round_blocks(weight, spread_of(np.eye(40), 16), scheme)
    assert np.abs(dequantize(codes, params) - dequantize(quantize(weight, params), params)).max() < 1e-6
    plain = fit_blocks(weight, scheme)
    nearest = error(weight, dequantize(quantize(weight, plain), plain), np.eye(40))
    assert error(weight, dequantize(codes, params), np.eye(40)) <= nearest * (1 + 1e-6)


def test_it_is_close_to_exhaustive_search_over_integers() -> None:
    rng = np.random.default_rng(2)
    scheme = QuantScheme(INT4, True, PerBlock(1, 16))
    ratios = []
    for _ in range(10):
        weight, x = rng.standard_normal((1, 5)), correlated(rng, 5)
        moments = x.T @ x / len(x)
        codes, params = round_blocks(weight, spread_of(moments, 16), scheme)
        scale = float(params.scale[0, 0])
        near = np.floor(weight[0] / scale)
        best = min(
            error(weight, np.clip(near + step, -8, 7)[None] * scale, moments)
            for step in itertools.product((-1, 0, 1, 2), repeat=5)
        )
        ratios.append(error(weight, dequantize(codes, params), moments) / best)
    assert np.median(ratios) < 2.5


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_weights_on_a_grid_are_exact(scheme: QuantScheme) -> None:
    rng = np.random.default_rng(3)
    qmin, qmax = scheme.limits
    zero = scheme.midpoint if scheme.symmetric else (qmin + qmax) // 2 + 1
    steps = rng.integers(qmin, qmax + 1, (6, 40)) - zero
    for first in range(0, 40, 16):
        steps[:, first : first + 2] = (qmin - zero, qmax - zero)
    weight = steps * 0.25
    x = correlated(rng, 40)
    codes, params = round_blocks(weight, spread_of(x.T @ x, 16), scheme)
    assert (dequantize(codes, params) == weight).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from(SCHEMES), st.booleans())
def test_no_single_change_of_an_integer_helps(columns: int, seed: int, scheme: QuantScheme, signed: bool) -> None:
    rng = np.random.default_rng(seed)
    weight, x = rng.standard_normal((4, columns)), correlated(rng, columns)
    spread = spread_of(x.T @ x, 16, rows=len(x))
    moments = spread.moments.astype(np.float64)
    codes, params = round_blocks(weight, spread, scheme, signed_scales=signed)
    floats = dequantize(codes, params).astype(np.float64)
    before = np.einsum("nk,kl,nl->n", weight - floats, moments, weight - floats)
    worst = 1.0
    for k, by in itertools.product(range(columns), (-1, 1)):
        moved = codes[:, k].astype(int) + by
        allowed = (moved >= scheme.dtype.qmin) & (moved <= scheme.dtype.qmax)
        other = floats.copy()
        other[:, k] += by * params.scale[:, k // 16]
        after = np.einsum("nk,kl,nl->n", weight - other, moments, weight - other)
        worst = min(worst, float((after[allowed] / np.maximum(before[allowed], 1e-12)).min(initial=1.0)))
    assert worst > 0.6  # a few sweeps come close to a local optimum


def test_few_rows_shrink_the_moments_towards_their_diagonal() -> None:
    x = correlated(np.random.default_rng(6), 20, 30)
    moments = x.T @ x
    diagonal = moments.diagonal().mean()
    few = spread_of(moments, 16, rows=30).moments
    share = few[0, 1] / (moments[0, 1] / diagonal)
    assert share == pytest.approx(1 - 0.8 * 20 / 50, rel=1e-2)
    assert few.diagonal() == pytest.approx(moments.diagonal() / diagonal, rel=0.1)
    many = spread_of(moments, 16, rows=10**9).moments
    assert many[0, 1] == pytest.approx(moments[0, 1] / diagonal, rel=1e-2)


def test_with_few_rows_shrunk_moments_give_better_outputs_on_others() -> None:
    rng = np.random.default_rng(7)
    weight, few = rng.standard_normal((32, 96)), rng.standard_normal((40, 96))
    scheme, judge = SCHEMES[2], np.eye(96)  # independent inputs: what 40 rows say of pairs is chance
    errors = []
    for count in (None, 40):
        codes, params = round_blocks(weight, spread_of(few.T @ few, 16, rows=count), scheme)
        errors.append(error(weight, dequantize(codes, params), judge))
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e25])
def test_units_of_inputs_and_weights_do_not_matter(scale: float) -> None:
    rng = np.random.default_rng(8)
    weight, x = rng.standard_normal((4, 48)), correlated(rng, 48)
    moments = x.T @ x
    plain, _ = round_blocks(weight, spread_of(moments, 16), SCHEMES[2])
    codes, params = round_blocks(weight * scale, spread_of(moments * scale, 16), SCHEMES[2])
    assert (codes.astype(int) == plain.astype(int)).mean() > 0.98
    assert np.isfinite(params.scale).all()


def test_inputs_that_are_always_zero_and_a_short_last_block() -> None:
    rng = np.random.default_rng(4)
    weight, x = rng.standard_normal((4, 37)), correlated(rng, 37)
    x[:, ::3] = 0.0
    for moments in (x.T @ x, np.zeros((37, 37))):
        codes, params = round_blocks(weight, spread_of(moments, 16), SCHEMES[2])
        assert params.scale.shape == (4, 3)
        assert np.abs(dequantize(codes, params) - weight).max() < 4 * params.scale.max()


def test_what_is_refused() -> None:
    moments = np.eye(20)
    spread = spread_of(moments, 16)
    with pytest.raises(ValueError, match="spread"):
        round_blocks(np.ones((2, 21)), spread, SCHEMES[0])
    with pytest.raises(ValueError, match="spread"):
        round_blocks(np.ones((2, 20)), spread_of(moments, 32), SCHEMES[0])
    with pytest.raises(NotFinite):
        round_blocks(np.full((2, 20), np.nan), spread, SCHEMES[0])
    moments[2, 3] = np.inf
    with pytest.raises(NotFinite):
        spread_of(moments, 16)
