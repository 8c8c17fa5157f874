"""Scales of blocks compared with plain numpy: what is stored, what it costs in weighted error, and hostile values."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxshot.maths.affine import dequantize, quantize, weight_params
from onnxshot.maths.block_scales import fit_blocks
from onnxshot.maths.quant_scheme import (
    INT4,
    INT8,
    UINT4,
    UINT8,
    NotFinite,
    PerBlock,
    PerChannel,
    QuantParams,
    QuantScheme,
)

Floats = NDArray[np.floating]

SCHEMES = [
    QuantScheme(dtype, symmetric, PerBlock(1, size))
    for dtype, symmetric, size in itertools.product((INT4, UINT4, INT8, UINT8), (True, False), (16, 32))
]
TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def error(weight: Floats, params: QuantParams, importance: Floats | None = None) -> float:
    """Weighted sum of squared errors, in float64."""
    made = dequantize(quantize(weight.astype(np.float32), params), params).astype(np.float64)
    counts = np.ones(weight.shape) if importance is None else np.broadcast_to(importance, weight.shape)
    return float((counts * (weight - made) ** 2).sum())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_errors_are_less_than_those_of_whole_ranges(scheme: QuantScheme) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((24, 75)).astype(np.float32) ** 3
    importance = np.exp(rng.uniform(-3, 3, 75)).astype(np.float32)
    assert error(weight, fit_blocks(weight, scheme)) < error(weight, weight_params(weight, scheme))
    plain = error(weight, weight_params(weight, scheme), importance)
    assert error(weight, fit_blocks(weight, scheme, importance), importance) < plain
    assert error(weight, fit_blocks(weight, scheme, importance), importance) < error(
        weight, fit_blocks(weight, scheme), importance
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("scale_type", TYPES)
def test_weights_on_a_grid_are_exact(scheme: QuantScheme, scale_type: type) -> None:
    rng = np.random.default_rng(1)
    qmin, qmax = scheme.limits
    zero = scheme.midpoint if scheme.symmetric else (qmin + qmax) // 2 + 1
    steps = rng.integers(qmin, qmax + 1, (6, 40)) - zero
    for first in range(0, 40, 16):  # both ends of the range occur in every block
        steps[:, first : first + 2] = (qmin - zero, qmax - zero)
    weight = (steps * np.exp2(rng.integers(-6, 6, (6, 1)))).astype(np.float32)
    params = fit_blocks(weight, scheme, scale_type=scale_type)
    assert (dequantize(quantize(weight, params), params) == weight).all()


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (3, 21), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from(SCHEMES),
    st.sampled_from(TYPES),
)
def test_any_finite_weight_gets_normal_scales(weight: Floats, scheme: QuantScheme, scale_type: type) -> None:
    params = fit_blocks(weight, scheme, scale_type=scale_type)
    blocks = -(-21 // scheme.granularity.size)
    assert params.scale.shape == params.zero_point.shape == (3, blocks)
    assert params.scale.dtype == np.float32
    assert (params.scale.astype(scale_type).astype(np.float32) == params.scale).all()
    about = ml_dtypes.finfo(scale_type)
    assert (params.scale >= float(about.smallest_normal)).all()
    assert (params.scale <= float(about.max)).all()
    zero = params.zero_point.astype(np.int32)
    assert (zero >= scheme.dtype.qmin).all()
    assert (zero <= scheme.dtype.qmax).all()
    if scheme.symmetric:
        assert (zero == scheme.midpoint).all()
    assert (quantize(np.zeros_like(weight), params).astype(np.int32)[:, 0] == zero[:, 0]).all()  # zeros stay zeros
    if scale_type is np.float32:
        energy = float(np.square(weight, dtype=np.float64).sum())
        plain = error(weight, weight_params(weight, scheme))
        assert error(weight, params) <= plain * (1 + 1e-3) + 1e-11 * energy + 1e-70


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_signed_scales_give_the_larger_side_the_one_more_step(scheme: QuantScheme) -> None:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    plain, signed = fit_blocks(weight, scheme), fit_blocks(weight, scheme, signed_scales=True)
    if scheme.symmetric:
        assert (signed.scale < 0).any()
        assert error(weight, signed) < error(weight, plain) * (0.97 if scheme.dtype.bits == 4 else 1.0)
        turned = fit_blocks(-weight, scheme, signed_scales=True)
        assert error(-weight, turned) == pytest.approx(error(weight, signed), rel=1e-5)
    else:
        assert (signed.scale == plain.scale).all()
    assert (plain.scale > 0).all()


def test_blocks_of_zeros_and_of_one_value() -> None:
    weight = np.zeros((2, 64), np.float32)
    weight[0, 32:], weight[1, 32:] = 0.3, -0.3
    for scheme in SCHEMES:
        params = fit_blocks(weight, scheme)
        assert np.allclose(dequantize(quantize(weight, params), params), weight, rtol=1e-6, atol=0), scheme


def test_float16_scales_of_too_large_and_too_small_weights() -> None:
    scheme = QuantScheme(INT4, True, PerBlock(1, 16))
    weight = np.repeat([[1e9], [1e-9]], 16, axis=1).astype(np.float32)
    params = fit_blocks(weight, scheme, scale_type=np.float16)
    assert params.scale[0, 0] == 65504
    assert params.scale[1, 0] >= np.finfo(np.float16).smallest_normal
    assert (dequantize(quantize(weight, params), params)[1] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    scheme = SCHEMES[0]
    weight = np.ones((2, 40), np.float32)
    importance = np.ones(40, np.float32)
    importance[3] = bad
    with pytest.raises(NotFinite):
        fit_blocks(weight, scheme, importance)
    weight[1, 39] = bad
    with pytest.raises(NotFinite):
        fit_blocks(weight, scheme)


def test_importance_of_zero_everywhere_counts_as_equal() -> None:
    weight = np.random.default_rng(2).standard_normal((3, 32)).astype(np.float32)
    for scheme in SCHEMES[:4]:
        none, zeros = fit_blocks(weight, scheme), fit_blocks(weight, scheme, np.zeros(32, np.float32))
        assert (none.scale == zeros.scale).all()


def test_it_splits_large_weights_without_a_difference() -> None:
    rng = np.random.default_rng(3)
    scheme = QuantScheme(UINT4, False, PerBlock(1, 16))
    weight = rng.standard_normal((2, 70001)).astype(np.float32)
    params = fit_blocks(weight, scheme)
    for part in (slice(0, 16), slice(65536, 65552), slice(69984, 70001)):
        alone = fit_blocks(weight[:, part], scheme)
        blocks = slice(part.start // 16, part.start // 16 + alone.scale.shape[1])
        assert np.allclose(params.scale[:, blocks], alone.scale, rtol=1e-6)
        assert (params.zero_point[:, blocks].astype(int) == alone.zero_point.astype(int)).all()


def test_empty_weights() -> None:
    assert fit_blocks(np.zeros((0, 64), np.float32), SCHEMES[0]).scale.shape == (0, 4)
    assert fit_blocks(np.zeros((4, 0), np.float32), SCHEMES[0]).scale.shape == (4, 0)


def test_other_granularities_are_refused() -> None:
    for granularity in (PerChannel(0), PerBlock(0, 32)):
        with pytest.raises(ValueError, match="PerBlock"):
            fit_blocks(np.zeros((2, 32), np.float32), QuantScheme(INT4, True, granularity))
