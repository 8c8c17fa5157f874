"""Observers: exact extremes, flat memory, and shards that merge to the bits of one run."""

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxshot.calibration.observers import NotFinite, Observer, stride
from onnxshot.calibration.stats import (
    BINS,
    NO_STATS,
    TensorStats,
    from_arrays,
    histogram_of,
    merge,
    merge_histograms,
    to_arrays,
)

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
samples = st.lists(
    st.one_of(
        st.lists(floats, max_size=20),
        st.lists(st.floats(-4, 4, width=32), max_size=20),
        st.lists(st.sampled_from([0.0, -0.0, 1e-45, 5.0]), max_size=4),
    ).map(lambda v: np.asarray(v, np.float32)),
    min_size=1,
    max_size=8,
)


def observe(arrays: list[NDArray[np.float32]], most: int = 16384) -> TensorStats:
    observer = Observer(most)
    for x in arrays:
        observer.update(x)
    return observer.stats()


@given(samples, st.data())
@settings(max_examples=300)
def test_shards_merged_in_any_order_equal_one_run(arrays: list[NDArray[np.float32]], data: st.DataObject) -> None:
    whole = observe(arrays, most=7)
    order = data.draw(st.permutations(range(len(arrays))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(arrays)), max_size=3)))
    shards = []
    for start, stop in zip([0, *cuts], [*cuts, len(arrays)], strict=True):
        shards.append(observe([arrays[i] for i in order[start:stop]], most=7))
    left = NO_STATS
    for shard in shards:
        left = merge(left, shard)
    right = NO_STATS
    for shard in reversed(shards):
        right = merge(shard, right)
    assert left == right == whole


@given(samples)
def test_the_histogram_is_that_of_all_values_at_once(arrays: list[NDArray[np.float32]]) -> None:
    everything = np.concatenate(arrays)
    stats = observe(arrays)
    assert stats.histogram == histogram_of(everything)
    assert stats.count == stats.histogram.total == everything.size
    if everything.size:
        assert (stats.low, stats.high) == (float(everything.min()), float(everything.max()))
        h = stats.histogram
        assert 1 <= len(h.counts) <= BINS
        assert h.counts[0] > 0
        assert h.counts[-1] > 0
        assert h.range[0] <= stats.low <= stats.high < h.range[1]
        assert h.zeros == int((everything == 0).sum())
        np.testing.assert_array_equal(np.histogram(everything.astype(np.float64), h.edges())[0], h.counts)


def test_a_histogram_uses_most_of_its_bins() -> None:
    for scale in (1e-30, 1.0, 3.0, 1e30):
        values = np.random.default_rng(0).uniform(-scale, scale, 100_000).astype(np.float32)
        assert BINS / 2 <= len(histogram_of(values).counts) <= BINS


def test_bins_grow_with_the_range_and_keep_their_counts() -> None:
    small, large = (
        histogram_of(np.linspace(0, 1, 100, dtype=np.float32)),
        histogram_of(np.asarray([1000.0], np.float32)),
    )
    both = merge_histograms(small, large)
    assert both.total == 101
    assert both.width == 0.5
    assert both.counts[:2].tolist() == [50, 49]


def test_extremes_and_their_means_are_exact() -> None:
    x = np.random.default_rng(1).standard_normal(300_000).astype(np.float32)
    x[12_345], x[98_765] = 77.0, -55.5  # the subsample need not see them
    stats = observe([x, (x / 2).astype(np.float32)])
    assert (stats.low, stats.high) == (-55.5, 77.0)
    assert (stats.mean_low, stats.mean_high) == ((-55.5 - 27.75) / 2, (77.0 + 38.5) / 2)
    assert stats.count == 600_000
    assert stats.samples == 2
    assert 2 * 15_000 < stats.histogram.total <= 2 * 16_384


@given(st.integers(1, 10**7), st.integers(1, 20_000))
def test_the_stride_is_coprime_and_bounds_the_subsample(size: int, most: int) -> None:
    step = stride(size, most)
    assert np.gcd(step, size) == 1
    assert -(-size // step) <= most
    assert step <= -(-size // most) + 60


@pytest.mark.parametrize("shape", [(1, 64, 56, 56), (1, 56, 56, 64), (8, 128, 768), (1, 1000, 1000)])
def test_the_subsample_sees_every_channel_alike(shape: tuple[int, ...]) -> None:
    for axis in range(len(shape)):
        if shape[axis] == 1:
            continue
        broadcast = [shape[axis] if i == axis else 1 for i in range(len(shape))]
        index = np.broadcast_to(np.arange(shape[axis], dtype=np.float32).reshape(broadcast), shape).reshape(-1)
        seen = np.bincount(index[:: stride(index.size, 16384)].astype(int), minlength=shape[axis])
        assert seen.min() > 0
        assert seen.max() <= 1.5 * seen.mean() + 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_leave_no_trace(bad: float) -> None:
    observer = Observer()
    observer.update(np.ones(3, np.float32))
    before = observer.stats()
    with pytest.raises(NotFinite, match="NaN" if np.isnan(bad) else "infinity"):
        observer.update(np.asarray([1.0, bad], np.float32))
    assert observer.stats() == before


def test_lengths_types_and_layouts_may_differ_between_samples() -> None:
    """onnxruntime 18792: histogram methods crashed on samples of different length."""
    observer = Observer()
    observer.update(np.zeros((0, 4), np.float32))
    assert observer.stats() == NO_STATS
    observer.update(np.arange(6, dtype=np.int64).reshape(2, 3))
    observer.update(np.asarray(7.5, np.float16))
    observer.update(np.arange(24, dtype=np.float64).reshape(2, 3, 4).transpose(2, 0, 1))
    observer.update(np.asarray([True, False]))
    stats = observer.stats()
    assert (stats.count, stats.samples, stats.low, stats.high) == (33, 4, 0.0, 23.0)
    assert stats.histogram.zeros == 3


def test_memory_is_flat_in_the_number_of_samples() -> None:
    """onnxruntime 10503: calibration kept every activation of every sample."""
    rng = np.random.default_rng(2)
    observer = Observer()
    x = rng.standard_normal(100_000).astype(np.float32)
    observer.update(x)
    tracemalloc.start()
    for _ in range(50):
        observer.update(x * rng.uniform(0.5, 2.0))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 64_000


def test_stats_survive_a_file_without_pickle() -> None:
    stats = {
        "conv1/Relu:0": observe([np.random.default_rng(3).standard_normal(1000).astype(np.float32)]),
        "empty": NO_STATS,
        "huge.ü": observe([np.asarray([-3e38, 3e38, 1e-45], np.float32)]),
    }
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **to_arrays(stats))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        assert from_arrays(arrays) == stats
    assert from_arrays(to_arrays({})) == {}


def test_channel_extremes_are_exact_and_merge() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((n, 3, 5)).astype(np.float32) for n in (2, 4))
    whole, left, right = (Observer(channels=True) for _ in range(3))
    for observer, given_arrays in ((whole, (first, second)), (left, (first,)), (right, (second,))):
        for x in given_arrays:
            observer.update(x)
    expected = np.abs(np.concatenate([first, second])).max(axis=(0, 1))
    assert whole.stats().channel_absmax == tuple(expected.tolist())
    assert merge(left.stats(), right.stats()) == merge(right.stats(), left.stats()) == whole.stats()
    assert merge(whole.stats(), NO_STATS) == whole.stats()
    assert from_arrays(to_arrays({"a": whole.stats(), "b": left.stats()}))["a"] == whole.stats()
    without = Observer()
    without.update(first)
    assert without.stats().channel_absmax == ()
