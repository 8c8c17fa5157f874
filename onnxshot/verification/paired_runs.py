"""Run two models on the same samples, and give the outputs of both, sample by sample."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from onnxshot.calibration.checks import refuse_not_finite
from onnxshot.calibration.readers import Dataset, Sample
from onnxshot.comparison.comparison_setup import CandidateRunner, ComparisonSetup
from onnxshot.runtimes.base import Loaded
from onnxshot.runtimes.ort_runtime import Feed, Runner
from onnxshot.runtimes.parallel import in_order
from onnxshot.runtimes.spool import Spool
from onnxshot.verification.output_errors import Outputs


def run_both(
    float_runner: Runner,
    other: Loaded | CandidateRunner,
    samples: Iterable[Sample],
    workers: int,
    setup: ComparisonSetup,
) -> Iterator[tuple[Sample, Outputs, Outputs]]:
    """The outputs of both models on every sample, in order. A Dataset is read in the threads that run it."""
    if float_runner.in_parts > 1 or (isinstance(other, CandidateRunner) and other.in_parts > 1):
        yield from _run_in_parts(float_runner, other, samples, workers, setup)
        return
    get: Callable[[Any], Sample] = samples.__getitem__ if isinstance(samples, Dataset) else lambda sample: sample
    items: Iterable[Any] = range(len(samples)) if isinstance(samples, Dataset) else samples

    def look(item: Any) -> tuple[Sample, Outputs, Outputs]:
        sample = get(item)
        wanted = float_runner.run(sample.feed)
        refuse_not_finite(sample, wanted)
        return sample, wanted, other.run(setup.feed(sample.feed, wanted))

    yield from in_order(look, items, workers)


def _run_in_parts(
    float_runner: Runner,
    other: Loaded | CandidateRunner,
    samples: Iterable[Sample],
    workers: int,
    setup: ComparisonSetup,
) -> Iterator[tuple[Sample, Outputs, Outputs]]:
    """The same of models in parts. The float model runs on many samples before the other does; its outputs wait."""
    drawn = iter(samples if not isinstance(samples, Dataset) else map(samples.__getitem__, range(len(samples))))
    read, shown = deque[Sample](), deque[tuple[Sample, list[str]]]()

    def given() -> Iterator[Feed]:
        for sample in drawn:
            read.append(sample)
            yield sample.feed

    with Spool() as waiting:

        def replies() -> Iterator[Feed]:
            for number, wanted in enumerate(float_runner.run_all(given(), workers)):
                sample = read.popleft()
                refuse_not_finite(sample, wanted)
                for name, value in wanted.items():
                    waiting.put((number, name), value)
                shown.append((sample, list(wanted)))
                yield setup.feed(sample.feed, wanted)

        feeds = replies()
        found = other.run_all(feeds, workers) if isinstance(other, CandidateRunner) else map(other.run, feeds)
        for number, got in enumerate(found):
            sample, names = shown.popleft()
            yield sample, {name: waiting.get((number, name)) for name in names}, got
            for name in names:
                waiting.drop((number, name))
