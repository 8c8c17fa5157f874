"""A calibration pass: reproducible statistics, refused values, and early stopping."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from array_statistics import observe
from handmade.core import model, weight
from numpy.typing import NDArray

from onnxshot.calibration.enough_samples import LEAST, Settling
from onnxshot.calibration.observers import Glimpse, glimpse
from onnxshot.calibration.outliers import Outliers, is_blank
from onnxshot.calibration.readers import InputSpec, Sample, open_data
from onnxshot.errors import CalibrationError, ModelError
from onnxshot.execution.collect import collect
from onnxshot.graph import Model, shape_inference
from onnxshot.graph.load import load_model
from onnxshot.runtimes.parallel import in_order, run_concurrently

NET = "g (float[N, 16] x) => (float[N, 8] y) { h = MatMul(x, w)  a = Relu(h)  y = MatMul(a, v) }"
NAMES = ["x", "h", "a", "y"]


def net() -> Model:
    ready = load_model(model(NET, {"w": weight(16, 16), "v": weight(16, 8)}))
    shape_inference.infer(ready)
    return ready


def samples(n: int, rows: int = 4) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [Sample(f"s{i}", {"x": rng.standard_normal((rows, 16)).astype(np.float32)}) for i in range(n)]


def test_threads_and_order_do_not_change_a_bit() -> None:
    given = samples(40)
    one = collect(net(), NAMES, given, threads=1).stats
    assert one == collect(net(), NAMES, given, threads=4).stats
    assert one == collect(net(), NAMES, given[::-1], threads=2).stats


def test_the_statistics_match_the_tensors() -> None:
    given = samples(20)
    found = collect(net(), NAMES, given, channels=["a"]).stats
    w = weight(16, 16)
    expected = observe(*(s.feed["x"] for s in given))
    assert found["x"] == expected
    hidden = [np.maximum(s.feed["x"] @ w, 0) for s in given]
    assert found["a"].low == 0.0
    assert found["a"].high == pytest.approx(max(x.max() for x in hidden), rel=1e-6)
    assert found["a"].channel_absmax == pytest.approx(np.concatenate(hidden).max(axis=0), rel=1e-6)
    assert found["a"].histogram.zeros == sum(int((x == 0).sum()) for x in hidden)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_tensor_and_sample(bad: float) -> None:
    given = samples(12)
    given[7].feed["x"][2, 3] = bad
    of_sample, of_tensor = "sample 's7' holds NaN or infinity in", "tensor {} is NaN or infinite on sample 's7'"
    with pytest.raises(CalibrationError, match=of_sample if bad != -np.inf else of_tensor.format("'x'")):
        collect(net(), NAMES, given)
    with pytest.raises(CalibrationError, match=of_sample if bad != -np.inf else of_tensor.format("'h'")):
        collect(net(), ["h", "a"], given)


def test_a_nan_in_an_unobserved_tensor_does_not_stop_the_pass() -> None:
    text = "g (float[N, 16] x) => (float[N, 16] y, float[N, 16] z) { a = Relu(x)  z = Sqrt(x)  y = MatMul(a, w) }"
    found = collect(load_model(model(text, {"w": weight(16, 16)})), ["a"], samples(4))
    assert found.stats["a"].count == 4 * 4 * 16


def test_a_sample_the_model_does_not_run_on_stops_the_pass() -> None:
    given = samples(6)
    given[3] = Sample("s3", {"x": np.zeros((4, 15), np.float32)})
    with pytest.raises(ModelError):
        collect(net(), NAMES, given)
    assert not [t for t in threading.enumerate() if t.name.startswith("onnxshot")]


def test_it_stops_once_the_ranges_have_settled_and_spreads_over_all_samples() -> None:
    given = samples(300, rows=64)
    found = collect(net(), NAMES, given, settle=True)
    assert LEAST <= len(found.used) < 300
    assert any(note.startswith(f"{len(found.used)} of 300 samples were enough") for note in found.notes)
    gaps = np.diff(sorted(found.used))
    assert gaps.max() <= 4 * 300 / len(found.used)
    again = collect(net(), NAMES, [given[i] for i in found.used], threads=1)
    assert again.stats == found.stats, "samples that were read ahead leave no trace"
    assert len(collect(net(), NAMES, given).used) == 300


def stream(arrays: Sequence[NDArray[np.float32]]) -> int:
    """The sample at which a run over these stops; 0 if it does not."""
    settling = Settling(1)
    for number, x in enumerate(arrays, start=1):
        if settling.add(glimpse([x])):
            return number
    return 0


def normal(n: int, scale: float = 1.0) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    return [(scale * rng.standard_normal((1, 8, 400))).astype(np.float32) for _ in range(n)]


def test_a_quiet_stream_settles_soon_at_any_scale() -> None:
    stop = stream(normal(400))
    assert LEAST <= stop <= 96
    assert stream(normal(400, 1e-20)) == stream(normal(400, 1e20)) == stop


def test_a_late_outlier_among_the_samples_keeps_it_going() -> None:
    stop = stream(normal(400))
    for late in (stop - 1, stop - 3):
        arrays = normal(400)
        arrays[late] = arrays[late] * np.float32(5)
        assert stream(arrays) > stop, "the outlier is in the window that is judged"
    arrays = normal(400)
    arrays[stop] = arrays[stop] * np.float32(5)
    assert stream(arrays) == stop, "one after the stop cannot be known of"


def test_a_stream_that_grows_never_settles() -> None:
    assert stream([x * np.float32(1.02**i) for i, x in enumerate(normal(400))]) == 0


def test_the_rule_is_the_noise_that_clipping_would_add() -> None:
    """Constant ranges until a checkpoint, then one value beyond: the rule against its definition, by hand."""
    for beyond, settles in ((0.0, True), (0.02, True), (2.0, False)):
        arrays = [np.linspace(-1, 1, 4000, dtype=np.float32).reshape(1, 4, 1000) for _ in range(48)]
        arrays[30][0, 0, 0] = -1 - beyond
        added = 10 * np.log10(1 + beyond**2 / (8 * 4000) / ((2 / 255) ** 2 / 12))
        assert (added <= 0.05) == settles
        assert (stream(arrays) == 48) == settles, "quiet at 32 and at 48"


def test_an_outlier_is_named_with_its_tensor() -> None:
    given = samples(20)
    given[11].feed["x"] *= 7
    notes = collect(net(), NAMES, given).notes
    assert len(notes) == 1
    assert notes[0].startswith("sample 's11' is an outlier: ")
    times = float(notes[0].split(": ")[1].split()[0])
    assert times > 2
    assert "and 2 more" in notes[0]
    assert collect(net(), NAMES, samples(20)).notes == ()


def test_few_samples_have_no_outlier() -> None:
    outliers = Outliers(1)
    for i in range(7):
        outliers.add(one(100.0 if i == 3 else 1.0), str(i))
    assert outliers.found() == {}
    outliers.add(one(1.0), "7")
    assert outliers.found() == {"3": [(0, 100.0)]}


def test_an_outlier_is_one_beside_the_samples_of_another_pass_too() -> None:
    given = samples(20)
    given[11].feed["x"] *= 7
    given[3].feed["x"] *= 6
    known = collect(net(), NAMES, given[:8]).stats
    assert collect(net(), NAMES, given[8:]).notes, "alone it is one"
    assert collect(net(), NAMES, given[8:], beside=known).notes == (), "and not beside sample 3"
    plain = collect(net(), NAMES, given[4:11]).stats
    alone, both = (collect(net(), NAMES, given[11:13], beside=beside).notes for beside in (None, plain))
    assert (len(alone), len(both)) == (0, 1), "two samples alone are too few"
    assert both[0].startswith("sample 's11' is an outlier: ")


def one(value: float) -> Glimpse:
    return glimpse([np.asarray([value, 0.0], np.float32)])


def test_blank_samples_are_named() -> None:
    given = samples(10)
    given[4].feed["x"][:] = 0.25
    assert collect(net(), NAMES, given).notes == ("blank samples, one value throughout: 's4'",)
    mask = {"ids": np.asarray([[3, 4]]), "mask": np.ones((1, 2), np.int64)}
    assert not is_blank(mask), "a mask of ones is no blank sample"
    assert is_blank({"x": np.zeros((2, 2)), "length": np.asarray(3)})


def test_samples_of_a_caller_are_asked_for_one_at_a_time() -> None:
    class Fussy(Sequence):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.busy = False

        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: int) -> dict[str, NDArray[np.float32]]:
            assert not self.busy
            self.busy = True
            x = np.full((1, 16), index, np.float32)
            x[0, 0] = 0
            self.busy = False
            return {"x": x}

    with open_data(Fussy(), [InputSpec("x", np.dtype(np.float32), ("N", 16))]) as data:
        assert collect(net(), ["x"], data, threads=4).stats["x"].high == 29.0


def test_results_come_in_order_and_few_wait() -> None:
    drawn: list[int] = []

    def numbers() -> object:
        for i in range(50):
            drawn.append(i)
            yield i

    results = in_order(lambda i: i * i, numbers(), 3)  # type: ignore[arg-type, var-annotated]
    first = [next(results) for _ in range(5)]
    assert first == [0, 1, 4, 9, 16]
    assert len(drawn) <= 5 + 3 + 1
    assert list(results) == [i * i for i in range(5, 50)]
    assert run_concurrently(lambda: 1, lambda: 2) == [1, 2]


def test_an_error_comes_out_where_it_belongs() -> None:
    def work(i: int) -> int:
        if i == 3:
            raise KeyError("three")
        return i

    results = in_order(work, range(100), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)


def test_statistics_of_a_folder_do_not_depend_on_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(12):
        np.save(tmp_path / f"{i}.npy", rng.standard_normal((1, 16)).astype(np.float32))
    with open_data(tmp_path, [InputSpec("x", np.dtype(np.float32), ("N", 16))]) as data:
        runs = [collect(net(), NAMES, data, threads=n).stats for n in (1, 2, 5)]
    assert runs[0] == runs[1] == runs[2]
