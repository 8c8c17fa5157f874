"""Minimum and maximum of the float tensors of a model on samples."""

from collections.abc import Sequence

import onnx
from handmade.core import Feed
from pass_checks import loaded

from onnxshot.calibration.readers import Sample
from onnxshot.calibration.stats import Span
from onnxshot.execution.collect import extremes


def spans_of(proto: onnx.ModelProto, samples: Sequence[Feed]) -> dict[str, Span]:
    made = loaded(proto)
    names = [t.name for t in made.tensors().values() if made.elem_type(t) == onnx.TensorProto.FLOAT]
    names = [name for name in names if name not in {c.name for c in made.constants()}]
    return extremes(made, names, [Sample("", feed) for feed in samples])
