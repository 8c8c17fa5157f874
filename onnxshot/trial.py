"""Try plans on calibration samples: rules say what should be better, the network's outputs say what is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from numpy.typing import NDArray

from onnxshot.calibration.readers import Sample
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.maths.metrics import SqnrSum
from onnxshot.parallel import in_order
from onnxshot.plan import Plan
from onnxshot.targets.ort_runtime import Runner

MAX_BYTES = 200_000_000
"""Weights of a model that is still tried: the model is copied for every plan."""
_SIDE_BY_SIDE = 50_000_000  # bytes of weights
_GAIN_DB = 1.0  # a later plan must be this much better: the first is the one the rules prefer

Rewrite = Callable[[Model, Plan], object]
_Outputs = Mapping[str, NDArray[Any]]


def best_plan(
    model: Model, plans: Sequence[Plan], rewrite: Rewrite, samples: Sequence[Sample], *, threads: int
) -> int:
    """Index of the plan whose model comes closest to the float one, by SQNR of all outputs over the samples.

    The first plan wins unless another gains 1 dB. `rewrite` applies a plan to a copy of the model.
    """
    scores = list(sqnrs(model, plans, rewrite, samples, threads=threads))
    best = max(range(len(scores)), key=lambda i: scores[i])
    return best if scores[best] >= scores[0] + _GAIN_DB else 0


def sqnrs(
    model: Model, plans: Iterable[Plan], rewrite: Rewrite, samples: Sequence[Sample], *, threads: int
) -> Iterator[float]:
    """SQNR in dB of all outputs over the samples against the float model, plan by plan; plans are drawn as they run.

    Held at any time: a few copies of the model, and the outputs of the samples as often.
    """
    proto = model.to_proto()

    def models() -> Iterator[bytes]:
        yield proto.SerializeToString()
        for plan in plans:
            copy = load_model(proto)
            rewrite(copy, plan)
            yield copy.to_proto().SerializeToString()

    # Models run beside each other, and one is run while the next is rewritten; large ones would be too much memory.
    workers = threads if model.weight_bytes() <= _SIDE_BY_SIDE else 1
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
