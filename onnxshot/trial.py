"""Try plans on calibration samples: rules say what should be better, the network's outputs say what is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxshot.calibration.readers import Sample
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.maths.metrics import SqnrSum
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
    judge = Runner(proto.SerializeToString(), threads=threads)
    wanted = [judge.run(s.feed) for s in samples]
    del judge
    scores = []
    for plan in plans:
        copy = load_model(proto)
        rewrite(copy, plan)
        runner = Runner(copy.to_proto().SerializeToString(), threads=threads)
        total = SqnrSum()
        for sample, expected in zip(samples, wanted, strict=True):
            for name, found in runner.run(sample.feed).items():
                if found.dtype.kind == "f" and found.shape == expected[name].shape:
                    total.add(expected[name], found)
        scores.append(total.db)
    best = max(range(len(scores)), key=lambda i: scores[i])
    return best if scores[best] >= scores[0] + _GAIN_DB else 0
