"""Try plans on calibration samples: rules say what should be better, the network's outputs say what is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from onnxshot.calibration.readers import Sample
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.maths.metrics import SqnrSum
from onnxshot.parallel import in_order, shared_out
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
    wanted = list(_outputs(proto, samples, threads))
    scores = []
    for plan in plans:  # one after another: each keeps its weights and its activations in memory
        copy = load_model(proto)
        rewrite(copy, plan)
        total = SqnrSum()
        for expected, found in zip(wanted, _outputs(copy.to_proto(), samples, threads), strict=True):
            for name, value in found.items():
                if value.dtype.kind == "f" and value.shape == expected[name].shape:
                    total.add(expected[name], value)
        scores.append(total.db)
    best = max(range(len(scores)), key=lambda i: scores[i])
    return best if scores[best] >= scores[0] + _GAIN_DB else 0


def _outputs(proto: ModelProto, samples: Sequence[Sample], threads: int) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The outputs of a model on every sample, in order."""
    workers, each = shared_out(threads, len(samples))
    runner = Runner(proto.SerializeToString(), threads=each)
    return in_order(lambda sample: runner.run(sample.feed), samples, workers)
