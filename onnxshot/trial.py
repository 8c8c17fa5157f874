"""Try candidates on calibration samples: rules say what should be better, the network's outputs say what is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from numpy.typing import NDArray

from onnxshot.calibration.readers import Sample
from onnxshot.maths.metrics import SqnrSum
from onnxshot.parallel import in_order
from onnxshot.targets.ort_runtime import Runner

MAX_BYTES = 200_000_000
"""Weights of a model that is still tried: the model is copied for every candidate."""
_SIDE_BY_SIDE = 50_000_000  # bytes of a model above which no other is run beside it

_Outputs = Mapping[str, NDArray[Any]]


def sqnrs(
    reference: bytes, candidates: Iterable[bytes], samples: Sequence[Sample], *, threads: int
) -> Iterator[float]:
    """SQNR of all float outputs against those of the reference, in dB, of each candidate; all are serialized models.

    Models run beside each other, and one is run while the next is made: candidates are drawn as they run. Held at any
    time: a few models, and the outputs of the samples as often. Raises ModelError where one does not run.
    """

    def models() -> Iterator[bytes]:
        yield reference
        yield from candidates

    workers = threads if len(reference) <= _SIDE_BY_SIDE else 1
    work = partial(_outputs, samples=samples, threads=max(1, threads // workers))
    with closing(in_order(work, models(), workers)) as found:
        wanted = next(found)
        for outputs in found:
            yield _sqnr_db(wanted, outputs)


def _outputs(model: bytes, samples: Sequence[Sample], threads: int) -> list[_Outputs]:
    """The outputs of a model on every sample, in order."""
    runner = Runner(model, threads=threads)
    return [runner.run(sample.feed) for sample in samples]


def _sqnr_db(wanted: Sequence[_Outputs], found: Sequence[_Outputs]) -> float:
    """SQNR of all float outputs over the samples."""
    total = SqnrSum()
    for expected, outputs in zip(wanted, found, strict=True):
        for name, value in outputs.items():
            if value.dtype.kind == "f" and value.shape == expected[name].shape:
                total.add(expected[name], value)
    return total.db
