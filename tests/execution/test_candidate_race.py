"""The race finds the closest candidate with as few samples as needed."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from handmade.core import model
from onnx import ModelProto
from planned_models import FAST

from onnxshot import memory
from onnxshot.calibration.readers import Sample
from onnxshot.comparison.balanced_sqnr import CandidateError
from onnxshot.execution import candidate_race
from onnxshot.execution.candidate_race import Judge, measure_candidates

SHAPE = (1, 8)


def race(
    reference: bytes,
    candidates: list[bytes],
    batches: Iterable[list[Sample]],
    *,
    threads: int,
    leads: Sequence[float] = (),
) -> tuple[int, list[CandidateError]]:
    """A race on batches of samples, which are numbered as they are drawn."""
    drawn: list[Sample] = []

    def numbers() -> Iterator[range]:
        for batch in batches:
            drawn.extend(batch)
            yield range(len(drawn) - len(batch), len(drawn))

    return Judge(reference, drawn, threads).race(candidates, numbers(), leads)


def with_noise(scale: float, bias: float = 0.0) -> bytes:
    """y = x + scale * x**2 + bias."""
    text = """g (float[1, 8] x) => (float[1, 8] y) {
        q = Mul(x, x) n = Mul(q, scale) z = Add(x, n) y = Add(z, bias) }"""
    made: ModelProto = model(text, {"scale": np.float32([scale]), "bias": np.float32([bias])})
    return bytes(made.SerializeToString())


def samples(count: int, loud: float = 1.0) -> list[Sample]:
    rng = np.random.default_rng(count)
    return [Sample(str(i), {"x": (loud * rng.standard_normal(SHAPE)).astype(np.float32)}) for i in range(count)]


def expected_db(given: list[Sample], scale: float) -> list[float]:
    xs = [sample.feed["x"].astype(np.float64) for sample in given]
    return [10 * np.log10((x**2).sum() / (scale**2 * (x**4).sum())) for x in xs]


def test_each_sample_and_all_together() -> None:
    given = samples(5)
    (found,) = measure_candidates(with_noise(0), [with_noise(0.1)], given, threads=FAST.threads)
    np.testing.assert_allclose(found.each_db, expected_db(given, 0.1), atol=1e-3)
    held = np.asarray([np.square(sample.feed["x"].astype(np.float64)).sum() for sample in given])
    weights = np.sqrt(held)
    assert found.typical_db == pytest.approx(np.average(expected_db(given, 0.1), weights=weights), abs=1e-3)
    xs = np.concatenate([sample.feed["x"].astype(np.float64) for sample in given])
    assert found.total.db == pytest.approx(10 * np.log10((xs**2).sum() / (0.01 * (xs**4).sum())), abs=1e-3)


def test_one_loud_sample_does_not_decide() -> None:
    """Its noise dominates the total; all other samples prefer the other candidate."""
    quiet, loud = samples(9), samples(1, loud=6.0)
    candidates = [with_noise(0.02), with_noise(0.0, bias=0.12)]
    best, found = race(with_noise(0), candidates, [[*quiet, *loud]], threads=2)
    assert found[0].total.db < found[1].total.db
    assert found[0].typical_db > found[1].typical_db
    assert best == 0


def test_a_sample_without_error_counts_no_more_than_100_db() -> None:
    (found,) = measure_candidates(with_noise(0), [with_noise(0)], samples(2), threads=1)
    assert found.each_db == (100.0, 100.0)


class Batches:
    """Batches that remember how many were drawn."""

    def __init__(self, *batches: list[Sample]) -> None:
        self.batches, self.drawn = batches, 0

    def __iter__(self) -> Iterator[list[Sample]]:
        for batch in self.batches:
            self.drawn += 1
            yield batch


def test_no_further_batch_is_drawn_once_the_best_is_clear() -> None:
    batches = Batches(samples(6), samples(7))
    best, found = race(with_noise(0), [with_noise(0.1), with_noise(0.01)], batches, threads=2)
    assert (best, batches.drawn) == (1, 1)
    assert [len(one.each_db) for one in found] == [6, 6]


def test_only_undecided_candidates_run_on_the_next_batch() -> None:
    """A constant error and one that grows with the square: which is larger differs from sample to sample."""
    batches = Batches(samples(6), samples(7), samples(50))
    candidates = [with_noise(0.1), with_noise(0.0, bias=0.17), with_noise(1.0)]
    best, found = race(with_noise(0), candidates, batches, threads=2)
    assert batches.drawn >= 2
    assert len(found[0].each_db) == len(found[1].each_db) > len(found[2].each_db) == 6
    means = [found[i].typical_db for i in (0, 1)]
    assert best == int(np.argmax(means))


def test_a_lead_must_be_exceeded() -> None:
    candidates = [with_noise(0.1), with_noise(0.05)]  # 6 dB better
    for lead, expected in ((5.9, 1), (6.1, 0)):
        best, _ = race(with_noise(0), candidates, [samples(6)], threads=2, leads=[0.0, lead])
        assert best == expected


def test_the_first_of_equally_good_candidates_is_chosen() -> None:
    batches = Batches(samples(3), samples(4))
    best, _ = race(with_noise(0), [with_noise(0.1), with_noise(0.0999)], batches, threads=2)
    assert batches.drawn == 1
    equal, _ = race(with_noise(0), [with_noise(0.1), with_noise(0.1)], batches, threads=2)
    assert (best, equal) == (1, 0)


def test_almost_empty_samples_hardly_count() -> None:
    """A text detector finds something on 4 of 24 pictures; its outputs on the others are almost zero."""
    given = [*samples(4, loud=3.0), *samples(20, loud=0.01)]
    candidates = [with_noise(0.1), with_noise(0.0, bias=0.0005)]  # of the square, and constant
    best, found = race(with_noise(0), candidates, [given], threads=2)
    assert np.mean(found[0].each_db) > np.mean(found[1].each_db) + 10  # the empty ones would decide
    assert found[0].total.db < found[1].total.db - 30
    assert best == 1 and found[0].weights[:4].min() > 0.1 > 20 * found[0].weights[4:].max()


def two_outputs(loud: float, quiet: float) -> bytes:
    """A loud and a quiet output of one input, each with a relative error."""
    text = """g (float[1, 8] x) => (float[1, 8] loud, float[1, 8] quiet) {
        loud = Mul(x, a) quiet = Mul(x, b) }"""
    constants = {"a": np.float32([1000 * (1 + loud)]), "b": np.float32([1 + quiet])}
    return bytes(model(text, constants).SerializeToString())


def test_a_loud_output_does_not_hide_a_quiet_one() -> None:
    candidates = [two_outputs(0.01, 0.9), two_outputs(0.05, 0.05)]
    best, found = race(two_outputs(0, 0), candidates, [samples(4)], threads=2)
    assert found[0].total.db > found[1].total.db + 10
    assert best == 1 and found[1].typical_db == pytest.approx(-20 * np.log10(0.05), abs=0.01)


def test_an_output_without_signal_does_not_divide_by_zero() -> None:
    text = """g (float[1, 8] x) => (float[1, 8] y, float[1, 8] none) {
        z = Add(x, e) none = Mul(z, o) y = Add(z, o) }"""
    made = [model(text, {"e": np.float32([e]), "o": np.float32([0])}).SerializeToString() for e in (0, 0.01)]
    (found,) = measure_candidates(made[0], made[1:], samples(4), threads=1)
    assert np.isfinite(found.typical_db) and found.typical_db == pytest.approx(found.total.db, abs=1.0)


class Counted(list[Sample]):
    """Samples that count how often each is read."""

    def __init__(self, given: list[Sample]) -> None:
        super().__init__(given)
        self.reads: list[int] = []

    def __getitem__(self, index: Any) -> Any:
        self.reads.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize("parted", [False, True])
def test_the_reference_runs_once_on_each_sample(parted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outputs are the same from memory, from the temporary file, and where models run one at a time."""
    given = Counted(samples(9))
    candidates = [with_noise(0.1), with_noise(0.05)]
    expected = [list(measure_candidates(with_noise(0), candidates, list.copy(given)[:n], threads=1)) for n in (5, 9)]
    runs: list[bytes] = []
    made = candidate_race.CandidateRunner.__init__

    def counted(self: Any, setup: Any, source: Any, **how: Any) -> None:
        runs.append(source)
        made(self, setup, source, **how)

    monkeypatch.setattr(candidate_race.CandidateRunner, "__init__", counted)
    if parted:
        monkeypatch.setattr(memory, "part_bytes", lambda: 100)
        monkeypatch.setattr(memory, "held_bytes", lambda: 4)
    judge = Judge(with_noise(0), given, threads=2)
    found = [list(judge.measure(candidates, range(n))) for n in (5, 9, 9)]
    assert found == [expected[0], expected[1], expected[1]]
    assert runs.count(with_noise(0)) == (2 if parted else 1), "large models are let go"
    best, errors = judge.race(candidates, [range(3), range(3, 9)])
    assert best == 1
    assert [len(one.each_db) for one in errors] == [3, 3]
    assert runs.count(with_noise(0)) == (2 if parted else 1)


def test_sessions_of_candidates_are_kept_for_further_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[bytes] = []
    made = candidate_race.CandidateRunner.__init__

    def counted(self: Any, setup: Any, source: Any, **how: Any) -> None:
        runs.append(source)
        made(self, setup, source, **how)

    monkeypatch.setattr(candidate_race.CandidateRunner, "__init__", counted)
    candidates = [with_noise(0.1), with_noise(0.0, bias=0.17), with_noise(1.0)]
    given = [*samples(6), *samples(7), *samples(50)]
    _, found = Judge(with_noise(0), given, threads=2).race(candidates, [range(6), range(6, 13), range(13, 63)])
    assert len(found[0].each_db) > 6
    assert sorted(runs) == sorted([with_noise(0), *candidates])
