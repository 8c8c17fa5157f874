"""Observers: exact extremes, flat memory, and shards that merge to the bits of one run."""

import io
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from array_statistics import histogram_of, observe, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxshot.calibration.observers import Observers, glimpse
from onnxshot.calibration.sampling import MOST, lengths, spread, strides
from onnxshot.calibration.stats import BINS, NO_STATS, TensorStats, from_arrays, merge, to_arrays

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
samples = st.lists(
    st.one_of(
        st.lists(floats, max_size=20),
        st.lists(st.floats(-4, 4, width=32), max_size=20),
        st.lists(st.sampled_from([0.0, -0.0, 1e-45, 5.0]), max_size=4),
    ).map(lambda v: np.asarray(v, np.float32)),
    min_size=1,
    max_size=20,
)


def thinned(arrays: list[NDArray[np.float32]]) -> TensorStats:
    """Every third value is a pick; rows of one value and of all."""
    observers = Observers(1)
    for x in arrays:
        picks = x[::3]
        observers.add(replace(glimpse([x]), picks=picks, picked=np.asarray([picks.size])))
    return observers.stats()[0]


@given(samples, st.data())
@settings(max_examples=300)
def test_shards_merged_in_any_order_equal_one_run(arrays: list[NDArray[np.float32]], data: st.DataObject) -> None:
    together = thinned(arrays)
    order = data.draw(st.permutations(range(len(arrays))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(arrays)), max_size=3)))
    shards = []
    for start, stop in zip([0, *cuts], [*cuts, len(arrays)], strict=True):
        shards.append(thinned([arrays[i] for i in order[start:stop]]))
    left = NO_STATS
    for shard in shards:
        left = merge(left, shard)
    right = NO_STATS
    for shard in reversed(shards):
        right = merge(shard, right)
    assert left == right == together


@given(samples)
def test_the_histogram_is_that_of_all_values_at_once(arrays: list[NDArray[np.float32]]) -> None:
    everything = np.concatenate(arrays)
    stats = observe(*arrays)
    assert stats.histogram == histogram_of(everything)
    assert stats.count == stats.histogram.total == everything.size
    if everything.size:
        assert (stats.low, stats.high) == (float(everything.min()), float(everything.max()))
        h = stats.histogram
        assert 1 <= len(h.counts) <= BINS
        assert h.counts[0] > 0
        assert h.counts[-1] > 0
        assert h.first * h.width <= stats.low <= stats.high < (h.first + len(h.counts)) * h.width


@given(samples)
def test_bottoms_and_tops_are_the_extremes_of_every_sample(arrays: list[NDArray[np.float32]]) -> None:
    stats = observe(*arrays)  # of rank 1: one row
    filled = [x for x in arrays if x.size]
    if not filled:
        return
    for found, expected in ((stats.bottoms, [x.min() for x in filled]), (stats.tops, [x.max() for x in filled])):
        index = np.floor(np.asarray(expected, np.float64) * np.ldexp(1.0, -stats.histogram.width_log2)).astype(np.int64)
        at, counts = np.unique(index, return_counts=True)
        assert found.width_log2 == stats.histogram.width_log2
        assert (found.first + np.flatnonzero(found.counts)).tolist() == at.tolist()
        assert found.counts[found.counts > 0].tolist() == counts.tolist()


def test_a_histogram_uses_most_of_its_bins() -> None:
    for scale in (1e-30, 1.0, 3.0, 1e30):
        values = np.random.default_rng(0).uniform(-scale, scale, 100_000).astype(np.float32)
        assert BINS / 2 <= len(observe(values).histogram.counts) <= BINS


def test_bins_grow_with_the_range_and_keep_their_counts() -> None:
    small, large = observe(np.linspace(0, 1, 100, dtype=np.float32)), observe(np.asarray([1000.0], np.float32))
    both = merge(small, large).histogram
    assert both.total == 101
    assert both.width == 0.5
    assert both.counts[:2].tolist() == [50, 49]


def test_extremes_and_their_means_are_exact() -> None:
    x = np.random.default_rng(1).standard_normal(300_000).astype(np.float32)
    x[12_345], x[98_765] = 77.0, -55.5  # the subsample need not see them
    stats = observe(x, (x / 2).astype(np.float32), subsample=True)
    assert (stats.low, stats.high) == (-55.5, 77.0)
    assert (stats.mean_low, stats.mean_high) == ((-55.5 - 27.75) / 2, (77.0 + 38.5) / 2)
    assert stats.count == 600_000
    assert stats.samples == 2
    assert 2 * 3_500 < stats.histogram.total <= 2 * MOST


@given(st.integers(0, 10**7))
def test_the_stride_visits_every_column_and_bounds_the_subsample(size: int) -> None:
    step, length = int(strides(np.asarray([size]))[0]), int(lengths(np.asarray([size]))[0])
    assert length == len(range(0, size, step))
    assert length <= MOST + 1
    if size <= MOST:
        assert step == 1
    primes = [p for p in range(2, 8192) if all(p % q for q in range(2, int(p**0.5) + 1))]
    following = [p for p in primes if p > size // (MOST + 1)][:3]
    if size > MOST and any(size % p for p in following):
        assert step == next(p for p in following if size % p)
        assert np.gcd(step, size) == 1


@pytest.mark.parametrize("shape", [(1, 64, 56, 56), (1, 56, 56, 64), (8, 128, 768), (1, 1000, 1000), (1, 31, 37, 41)])
def test_the_subsample_sees_every_channel_alike(shape: tuple[int, ...]) -> None:
    step = int(strides(np.asarray([np.prod(shape)]))[0])
    for axis in range(len(shape)):
        if shape[axis] == 1:
            continue
        broadcast = [shape[axis] if i == axis else 1 for i in range(len(shape))]
        index = np.broadcast_to(np.arange(shape[axis], dtype=np.float32).reshape(broadcast), shape).reshape(-1)
        seen = np.bincount(index[::step].astype(int), minlength=shape[axis])
        assert seen.min() > 0
        assert seen.max() <= 1.5 * seen.mean() + 2


@given(st.integers(1, 400), st.data())
def test_every_beginning_of_the_order_is_spread_over_all(n: int, data: st.DataObject) -> None:
    order = spread(n)
    assert sorted(order) == list(range(n))
    first = sorted(order[: data.draw(st.integers(1, n))])
    # No gap is longer than twice what even spacing over a power of two would leave.
    gaps = np.diff([*first, n])
    assert gaps.max() <= 2 * -(-2 * n // len(first))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (1, 40, 30, 30)])
def test_values_that_are_not_finite_are_told(bad: float, shape: tuple[int, ...]) -> None:
    x = np.ones(shape, np.float32)
    assert glimpse([x]).finite
    x.reshape(-1)[0] = bad
    assert not glimpse([x]).finite
    assert glimpse([np.ones(3, np.float32), x]).first(1).finite
    # Reductions that have passed over the NaN, as those of a runtime may, are told by a pick that is beyond them.
    seen = glimpse([np.arange(5, dtype=np.float32)])
    assert not replace(seen, tops=np.asarray([3.0], np.float32)).finite


def test_an_empty_tensor_is_finite_and_has_no_extremes() -> None:
    seen = glimpse([np.zeros((0, 4), np.float32), np.zeros((2, 3, 0), np.float32), np.ones(2, np.float32)])
    assert seen.finite
    assert seen.lows.tolist() == [np.inf, np.inf, 1.0]
    assert seen.highs.tolist() == [-np.inf, -np.inf, 1.0]
    observers = Observers(3)
    observers.add(seen)
    assert observers.stats()[:2] == [NO_STATS, NO_STATS]
    assert observers.stats()[2].count == 2


def test_rows_are_the_first_two_axes() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    seen = glimpse([x, x[0], x[0, 0], x[0, 0, 0], x[0, 0, 0, 0]])
    assert seen.rows.tolist() == [6, 12, 4, 1, 1]
    ends = np.cumsum(seen.rows)
    np.testing.assert_array_equal(seen.tops[: ends[0]], x.max(axis=(2, 3)).reshape(-1))
    np.testing.assert_array_equal(seen.bottoms[ends[0] : ends[1]], x[0].min(axis=2).reshape(-1))
    np.testing.assert_array_equal(seen.tops[ends[1] : ends[2]], x[0, 0].max(axis=1))


def test_lengths_types_and_layouts_may_differ_between_samples() -> None:
    """onnxruntime 18792: histogram methods crashed on samples of different length."""
    stats = observe(
        np.zeros((0, 4), np.float32),
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.asarray(7.5, np.float16),
        np.arange(24, dtype=np.float64).reshape(2, 3, 4).transpose(2, 0, 1),
        np.asarray([True, False]),
    )
    assert (stats.count, stats.samples, stats.low, stats.high) == (33, 4, 0.0, 23.0)
    assert stats.histogram.zeros == 3


def test_memory_is_flat_in_the_number_of_samples() -> None:
    """onnxruntime 10503: calibration kept every activation of every sample."""
    rng = np.random.default_rng(2)
    observers = Observers(1)
    x = rng.standard_normal((10, 10_000)).astype(np.float32)
    for _ in range(16):
        observers.add(glimpse([x]))
    tracemalloc.start()
    for _ in range(48):
        observers.add(glimpse([(x * rng.uniform(0.5, 2.0)).astype(np.float32)]))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 64_000


def test_stats_survive_a_file_without_pickle() -> None:
    stats = {
        "conv1/Relu:0": observe(np.random.default_rng(3).standard_normal((1, 8, 1000)).astype(np.float32)),
        "empty": NO_STATS,
        "huge.ü": observe(np.asarray([-3e38, 3e38, 1e-45], np.float32)),
    }
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **to_arrays(stats))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        assert from_arrays(arrays) == stats
    assert from_arrays(to_arrays({})) == {}


def test_arrays_that_do_not_fit_each_other_are_refused() -> None:
    arrays = to_arrays({"a": observe(np.ones(3, np.float32)), "b": observe(np.ones(4, np.float32))})
    for key in ("integers", "extremes", "sums", "histograms", "counts"):
        with pytest.raises(ValueError, match="statistics"):
            from_arrays({**arrays, key: arrays[key][:1]})
    with pytest.raises(ValueError, match="statistics"):
        from_arrays({**arrays, "channels": np.ones(2, np.float32)})


def test_channel_extremes_are_exact_and_merge() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((n, 3, 5)).astype(np.float32) for n in (2, 4))
    together, left, right = (observe(*given, channels=True) for given in ((first, second), (first,), (second,)))
    expected = np.abs(np.concatenate([first, second])).max(axis=(0, 1))
    assert together.channel_absmax == tuple(expected.tolist())
    assert merge(left, right) == merge(right, left) == together
    assert merge(together, NO_STATS) == together
    assert from_arrays(to_arrays({"a": together, "b": left}))["a"] == together
    assert observe(first).channel_absmax == ()


def test_a_glimpse_of_everything_has_every_value() -> None:
    x = np.random.default_rng(0).standard_normal((3, 50, 100)).astype(np.float32)
    assert whole(x).picks.tolist() == x.reshape(-1).tolist()
    assert observe(x).histogram.total == x.size > observe(x, subsample=True).histogram.total


def test_extremes_of_every_row_are_exact_and_merge() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 6, 4, 5)).astype(np.float32) * (i + 1) for i in range(20)]
    together = observe(*arrays)
    every = np.concatenate(arrays)
    assert together.row_lows == tuple(every.min(axis=(0, 2, 3)).tolist())
    assert together.row_highs == tuple(every.max(axis=(0, 2, 3)).tolist())
    left, right = observe(*arrays[:7]), observe(*arrays[7:])
    assert merge(left, right) == merge(right, left) == together
    assert merge(together, NO_STATS) == merge(NO_STATS, together) == together


def test_rows_with_a_batch_are_those_of_each_of_its_samples() -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 7)).astype(np.float32)
    stats = observe(x, -x)
    assert stats.row_highs == tuple(np.abs(x).max(axis=2).reshape(-1).tolist())
    assert stats.row_lows == tuple((-np.abs(x).max(axis=2)).reshape(-1).tolist())
    vector = observe(x[0, 0], x[0, 1])
    assert (vector.row_lows, vector.row_highs) == ((vector.low,), (vector.high,))


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_rows_are_kept_for_tensors_that_have_as_many_in_every_sample(rows: list[tuple[int, int]], seed: int) -> None:
    """Of three tensors seen together, one has always 4 rows; merged or not, each keeps its own, or none."""
    rng = np.random.default_rng(seed)
    shapes = [((1, a, 5), (2, 2, 3), (1, b, 2, 2)) for a, b in rows]
    seen = [[rng.standard_normal(shape).astype(np.float32) for shape in given] for given in shapes]

    def of(part: list[list[NDArray[np.float32]]]) -> list[TensorStats]:
        observers = Observers(3)
        for values in part:
            observers.add(glimpse(values))
        return observers.stats()

    together, cut = of(seen), len(seen) // 2
    for i, stats in enumerate(together):
        tables = [values[i].reshape(values[i].shape[0] * values[i].shape[1], -1) for values in seen]
        if len({len(table) for table in tables}) > 1:
            assert stats.row_lows == stats.row_highs == ()
        else:
            assert stats.row_lows == tuple(np.min([t.min(axis=1) for t in tables], axis=0).tolist())
            assert stats.row_highs == tuple(np.max([t.max(axis=1) for t in tables], axis=0).tolist())
        if cut:
            assert merge(of(seen[:cut])[i], of(seen[cut:])[i]) == stats
    assert from_arrays(to_arrays({str(i): stats for i, stats in enumerate(together)})) == {
        str(i): stats for i, stats in enumerate(together)
    }


def test_rows_of_a_file_that_do_not_fit_are_refused() -> None:
    arrays = to_arrays({"a": observe(np.ones((1, 3, 4), np.float32)), "b": observe(np.ones((1, 2, 4), np.float32))})
    assert arrays["rows"].shape == (2, 5)
    for rows in (arrays["rows"][:, :-1], arrays["rows"][:1], arrays["rows"].T):
        with pytest.raises(ValueError, match="statistics"):
            from_arrays({**arrays, "rows": rows})
