"""Try plans on calibration samples: rules say what should be better, the network's outputs say what is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from onnxshot.calibration.readers import Sample
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.maths.metrics import SqnrSum
from onnxshot.parallel import at_once, in_order
from onnxshot.plan import Plan
from onnxshot.targets.ort_runtime import Runner

MAX_BYTES = 200_000_000
"""Weights of a model that is still tried: the model is copied for every plan."""
_GAIN_DB = 1.0  # a later plan must be this much better: the first is the one the rules prefer


def best_plan(
    model: Model,
    plans: Sequence[Plan],
    rewrite: Callable[[Model, Plan], object],
    samples: Sequence[Sample],
    *,
    threads: int,
) -> int:
    """Index of the plan whose model comes closest to the float one, by SQNR of all outputs over the samples.

    The first plan wins unless another gains 1 dB. `rewrite` applies a plan to a copy of the model.
    """
    proto = model.to_proto()

    def rewritten(plan: Plan) -> bytes:
        copy = load_model(proto)
        rewrite(copy, plan)
        return bytes(copy.to_proto().SerializeToString())

    sources = [proto.SerializeToString(), *map(rewritten, plans)]
    judge, *others = at_once(*(partial(Runner, source, threads=1) for source in sources))
    totals = [SqnrSum() for _ in plans]

    def run(sample: Sample) -> list[Mapping[str, NDArray[Any]]]:
        return [one.run(sample.feed) for one in (judge, *others)]

    for wanted, *candidates in in_order(run, samples, threads):
        for total, found in zip(totals, candidates, strict=True):
            for name, value in found.items():
                if value.dtype.kind == "f" and value.shape == wanted[name].shape:
                    total.add(wanted[name], value)
    scores = [total.db for total in totals]
    best = max(range(len(scores)), key=lambda i: scores[i])
    return best if scores[best] >= scores[0] + _GAIN_DB else 0
