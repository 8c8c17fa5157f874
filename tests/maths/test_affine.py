"""Property tests of affine quantization: steps, zero, scales of extreme ranges, granularities, bias."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxshot.maths.affine import (
    FLOAT8E4M3FN,
    INT4,
    INT7,
    INT8,
    INT16,
    MIN_SCALE,
    UINT4,
    UINT8,
    UINT16,
    Granularity,
    NotFinite,
    PerBlock,
    PerChannel,
    PerTensor,
    QuantParams,
    QuantScheme,
    QuantType,
    dequantize,
    params_from_range,
    quantize,
    weight_params,
)
from onnxshot.maths.bias_quantization import bias_params, bias_safe_scale, quantize_bias

INTEGERS = (UINT8, INT8, INT7, UINT16, INT16, INT4, UINT4)
schemes = st.builds(QuantScheme, st.sampled_from(INTEGERS), st.booleans())
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@given(floats, floats, st.one_of(schemes, st.just(QuantScheme(FLOAT8E4M3FN, True))))
def test_every_scale_is_a_normal_float32_and_zero_is_exact(a: float, b: float, scheme: QuantScheme) -> None:
    params = params_from_range(min(a, b), max(a, b), scheme)
    assert params.scale.dtype == np.float32
    assert params.scale.shape == params.zero_point.shape == ()
    assert params.zero_point.dtype == scheme.dtype.storage
    assert MIN_SCALE <= float(params.scale) < np.inf
    with np.errstate(over="raise", divide="raise"):
        assert np.isfinite(np.float32(1.0) / params.scale)
    assert dequantize(quantize(np.zeros(3, np.float32), params), params).tolist() == [0.0, 0.0, 0.0]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), schemes)
def test_values_in_range_have_an_error_of_at_most_half_a_step(values: list[float], scheme: QuantScheme) -> None:
    x = np.asarray(values, np.float32)
    params = params_from_range(x.min(), x.max(), scheme)
    q = quantize(x, params)
    assert int(q.min()) >= scheme.limits[0]
    assert int(q.max()) <= scheme.limits[1]
    step = float(params.scale)
    # An asymmetric zero point is rounded, so one end may lie up to half a step outside of the codes.
    worst = step * (0.5 if scheme.symmetric else 1.0)
    error = np.abs(dequantize(q, params).astype(np.float64) - x)
    assert np.all(error <= worst + 1e-5 * np.abs(x) + 1e-5 * step)


def test_quantize_follows_quantizelinear() -> None:
    params = QuantParams(QuantScheme(UINT8), np.float32(2.0) * np.ones((), np.float32), np.asarray(128, np.uint8))
    x = np.asarray([0, 1, 3, 5, -1, 1000, -1000, np.inf, -np.inf], np.float32)
    assert quantize(x, params).tolist() == [128, 128, 130, 130, 128, 255, 0, 255, 0]  # halves go to even


@pytest.mark.parametrize(
    ("dtype", "limits", "zero"),
    [(INT8, (-127, 127), 0), (UINT8, (1, 255), 128), (INT4, (-7, 7), 0), (UINT4, (1, 15), 8), (INT7, (-63, 63), 0)],
)
def test_symmetric_schemes_are_balanced(dtype: QuantType, limits: tuple[int, int], zero: int) -> None:
    scheme = QuantScheme(dtype, symmetric=True)
    params = params_from_range(-1.0, 3.0, scheme)
    assert scheme.limits == limits
    assert int(params.zero_point) == zero
    assert float(params.scale) == pytest.approx(3.0 / (limits[1] - zero))
    x = np.asarray([-9, -3, 3, 9], np.float32)
    assert quantize(x, params).tolist() == [limits[0], limits[0], limits[1], limits[1]]


def test_all_zero_range_gets_scale_one() -> None:
    for dtype in (*INTEGERS, FLOAT8E4M3FN):
        params = params_from_range(0.0, 0.0, QuantScheme(dtype))
        assert float(params.scale) == 1.0


def test_a_range_that_is_not_finite_is_refused() -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(NotFinite):
            params_from_range(0.0, bad, QuantScheme(INT8))
        with pytest.raises(NotFinite):
            weight_params(np.asarray([[1.0, bad]], np.float32), QuantScheme(INT8, True, PerChannel(0)))


def test_float8_keeps_relative_precision() -> None:
    x = normal(0, (64, 64))
    params = weight_params(x, QuantScheme(FLOAT8E4M3FN, True, PerChannel(0)))
    q = quantize(x, params)
    assert q.dtype.name == "float8_e4m3fn"
    error = np.abs(dequantize(q, params) - x)
    assert np.all(error <= np.maximum(np.abs(x) / 16, params.scale[:, None] * 2.0**-9))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("chunk", [1 << 18, 32])
def test_per_channel_equals_per_tensor_of_each_channel(axis: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxshot.maths.affine.CHUNK", chunk)
    w = normal(1, (5, 6, 7)) * np.arange(1, 8, dtype=np.float32)
    for method in ("minmax", "mse"):
        params = weight_params(w, QuantScheme(INT8, True, PerChannel(axis)), method=method)
        real = np.moveaxis(dequantize(quantize(w, params), params), axis, 0)
        assert params.scale.shape == (w.shape[axis],)
        for i, channel in enumerate(np.moveaxis(w, axis, 0)):
            alone = weight_params(channel, QuantScheme(INT8, True), method=method)
            assert float(alone.scale) == float(params.scale[i])
            np.testing.assert_array_equal(real[i], dequantize(quantize(channel, alone), alone))


@pytest.mark.parametrize(("axis", "size"), [(0, 4), (1, 4), (1, 32), (2, 1), (-1, 3)])
@pytest.mark.parametrize("chunk", [1 << 18, 40])
def test_blocks_equal_per_tensor_of_each_block(
    axis: int, size: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxshot.maths.affine.CHUNK", chunk)
    w = normal(2, (6, 10, 5))
    for method in ("minmax", "mse"):
        params = weight_params(w, QuantScheme(UINT4, False, PerBlock(axis, size)), method=method)
        real = np.moveaxis(dequantize(quantize(w, params), params), axis, -1)
        rows, scales = np.moveaxis(w, axis, -1), np.moveaxis(params.scale, axis, -1)
        assert scales.shape[-1] == -(-rows.shape[-1] // size)
        for index in np.ndindex(scales.shape):
            block = slice(index[-1] * size, (index[-1] + 1) * size)
            alone = weight_params(rows[index[:-1]][block], QuantScheme(UINT4), method=method)
            assert float(alone.scale) == float(scales[index])
            codes = quantize(rows[index[:-1]][block], alone)
            np.testing.assert_array_equal(real[index[:-1]][block], dequantize(codes, alone))


@given(seeds, st.sampled_from([INT4, INT7, INT8]), st.sampled_from([PerTensor(), PerChannel(0), PerBlock(1, 16)]))
@settings(max_examples=30)
def test_mse_weights_are_never_worse_than_minmax(seed: int, dtype: QuantType, granularity: Granularity) -> None:
    w = np.random.default_rng(seed).standard_t(3, (8, 48)).astype(np.float32)
    scheme = QuantScheme(dtype, True, granularity)
    errors = []
    for method in ("mse", "minmax"):
        params = weight_params(w, scheme, method=method)
        errors.append(float(np.square(dequantize(quantize(w, params), params) - w, dtype=np.float64).sum()))
    assert errors[0] <= errors[1] * (1 + 1e-5)


def test_mse_weights_help_at_four_bits() -> None:
    w = normal(3, (16, 4096))
    w[:, 0] = 12.0
    scheme = QuantScheme(INT4, True, PerChannel(0))
    errors = {}
    for method in ("mse", "minmax"):
        params = weight_params(w, scheme, method=method)
        errors[method] = float(np.square(dequantize(quantize(w, params), params) - w).sum())
    assert errors["mse"] < 0.6 * errors["minmax"]


def test_channels_of_zeros_get_the_smallest_scale_of_the_others() -> None:
    w = np.zeros((3, 4), np.float32)
    w[1], w[2] = 127.0, 254.0
    assert weight_params(w, QuantScheme(INT8, True, PerChannel(0))).scale.tolist() == [1.0, 1.0, 2.0]


weight_rows = st.lists(st.floats(-(2.0**66), 2.0**66, width=32), min_size=1, max_size=6)


@given(weight_rows, st.floats(width=32, min_value=2.0**-27, max_value=2.0**27), st.data())
@settings(max_examples=300)
def test_bias_fits_int32_within_one_step(rows: list[float], x_scale: float, data: st.DataObject) -> None:
    """onnxruntime issue 21000: a tiny scale made the int32 bias overflow; issue 24815: a scalar bias crashed."""
    w = np.asarray(rows, np.float32)[:, None] * np.ones((1, 3), np.float32)
    shape = data.draw(st.sampled_from([(), (1,), (len(rows),)]))
    size = int(np.prod(shape))
    bias = np.asarray(data.draw(st.lists(floats, min_size=size, max_size=size)), np.float32).reshape(shape)
    granularity: Granularity = PerChannel(0) if data.draw(st.booleans()) else PerTensor()
    params = weight_params(w, QuantScheme(INT8, True, granularity))
    safe = bias_safe_scale(params.scale, x_scale, bias)
    assert safe.shape == params.scale.shape
    assert safe.dtype == np.float32
    assert np.all(safe >= params.scale)
    q = quantize_bias(bias, x_scale, safe)
    bias_scheme = bias_params(x_scale, safe)
    assert q.dtype == np.int32
    assert q.shape == np.broadcast_shapes(bias.shape, safe.shape)
    assert np.all(bias_scheme.scale >= MIN_SCALE)
    step = bias_scheme.scale.astype(np.float64)
    assert np.all(np.abs(q * step - bias) <= step)
    if q.ndim == bias_scheme.scale.ndim:
        assert np.all(np.abs(dequantize(q, bias_scheme).astype(np.float64) - bias) <= step)


def test_a_scale_that_is_large_enough_is_not_raised() -> None:
    scale = np.asarray([0.01, 0.02], np.float32)
    np.testing.assert_array_equal(bias_safe_scale(scale, 0.05, np.ones(2, np.float32)), scale)


def test_pairs_of_7_bit_weights_do_not_saturate_on_avx2() -> None:
    """vpmaddubsw adds two neighbouring products of uint8 and int8 in 16 bits: 255 * (|a| + |b|) stays below 2^15."""
    weight = normal(4, (32, 64))
    sizes = np.abs(quantize(weight, weight_params(weight, QuantScheme(INT7, True, PerChannel(0)))).astype(np.int32))
    assert (255 * (sizes[:, :-1] + sizes[:, 1:])).max() < 2**15
    full = np.abs(quantize(weight, weight_params(weight, QuantScheme(INT8, True, PerChannel(0)))).astype(np.int32))
    assert (255 * (full[:, :-1] + full[:, 1:])).max() >= 2**15, "weights of 8 bits may"


def test_empty_and_scalar_tensors() -> None:
    empty = np.zeros((0, 3), np.float32)
    params = weight_params(empty, QuantScheme(INT8, True, PerChannel(1)), method="mse")
    assert quantize(empty, params).shape == (0, 3)
    one = np.asarray(2.5, np.float32)
    params = weight_params(one, QuantScheme(INT8, True))
    assert float(dequantize(quantize(one, params), params)) == 2.5
