"""The model that results are compared with: the given file, run in ONNX Runtime unchanged."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnxshot.calibration.readers import Dataset, Sample, open_data
from onnxshot.errors import CalibrationError, ModelError, OnnxshotError
from onnxshot.graph import Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.save import write
from onnxshot.graph.weights import EXTERNAL_LIMIT
from onnxshot.rewriting.model_inputs import input_specs
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.verification.normalization_check import check_same_outputs

_NAMED = 3  # inputs in a message


@dataclass(frozen=True, slots=True)
class Reference:
    """The model that results are compared with.

    Attributes:
        model: Path of the given file, or a model given in memory. If ONNX Runtime does not run it, the normalized
            model.
        note: Why it is not the given model, or why it could not be checked; else empty.
    """

    model: Path | LeanModel
    note: str = ""

    def at(self, path: Path) -> Path:
        """Path of a file with this model: the given file, or `path`, which is written now."""
        if isinstance(self.model, Path):
            return self.model
        if self.model.weight_bytes > EXTERNAL_LIMIT:
            write(self.model.to_graph(), path)
        else:
            path.write_bytes(self.model.to_proto().SerializeToString())
        return path


def given(source: str | Path | ModelProto) -> Path | LeanModel:
    """The model as ONNX Runtime takes it.

    A path stays a path, so that external data is found and nothing large is held.
    """
    return LeanModel.of(source) if isinstance(source, ModelProto) else Path(source)


def reference_of(
    source: str | Path | ModelProto, model: Model, data: Dataset | None, *, check: bool, threads: int = 2
) -> Reference:
    """Choose the reference for the results made from a model.

    Memory: one session after the other, and two if their outputs differ.

    Args:
        source: The model as it was given.
        model: The same model, normalized and otherwise unchanged.
        data: Its samples; None to use a random sample if something must be checked.
        check: Run both models on the first sample and compare them. Pass False if Q/DQ pairs were removed.
        threads: CPU threads of each session.

    Raises:
        ModelError: Normalization changed what a node computes, by more than rounding. Or there are samples, and ONNX
            Runtime does not know an operator of the model.
        CalibrationError: The model, as it was given and normalized, does not run on the first sample.
    """
    as_given = given(source)
    if data is None and not check:
        return Reference(as_given)  # nothing will be compared
    try:
        runner = Runner(as_given, threads=threads)
    except ModelError as e:
        if data is not None and check:
            _refuse_unknown(source, model, e)
        return _normalized(model, e)
    sample = data[0] if data is not None else _random(runner, model)
    if sample is None:
        return Reference(as_given, "not compared with the model as it was given: it does not run on random samples")
    try:
        wanted = runner.run(sample.feed)
    except ModelError as e:
        if data is not None and data.random:
            raise _unfit(sample, e) from e
        reference = _normalized(model, e)
        if data is not None:
            # where the normalized model fails too, the sample does not fit: a clip too short, an id outside of a table
            Runner(reference.model, threads=threads).run(sample.feed)
        return reference
    del runner
    if check:
        check_same_outputs(as_given, LeanModel.of(model), sample, wanted, threads=threads)
    return Reference(as_given)


def _refuse_unknown(source: str | Path | ModelProto, model: Model, error: ModelError) -> None:
    """Raise ModelError, naming the node, if the model does not load because of an unknown operator."""
    found = re.search(r"([\w.]*):(\w+)\(-?\d+\) is not a registered", error.message)
    if found is None:
        return
    node = next((node for _, node in model.walk() if node.op == found[2]), None)
    if node is None:
        return  # normalization removed the operator
    with contextlib.suppress(ModelError):
        Runner(LeanModel.of(model), threads=1)
        return
    name = source if isinstance(source, str | Path) else "the model"
    what = f"{name} has an operator that ONNX Runtime does not know: node {node.label!r} ({found[1]}.{found[2]})"
    raise ModelError(what, "samples cannot be run: leave [[calib]] out, or export it with operators of ONNX") from error


def _normalized(model: Model, error: ModelError) -> Reference:
    note = f"compared with the normalized model, not with the model as it was given: {error.message}"
    return Reference(LeanModel.of(model), note)


def _unfit(sample: Sample, error: ModelError) -> CalibrationError:
    """The error for a model that loads but does not run on random data. Names the inputs that likely cause it."""
    described = {name: f"{name!r} ({value.dtype} {list(value.shape)})" for name, value in sample.feed.items()}
    whole = [name for name, value in sample.feed.items() if value.dtype.kind in "iub"]
    some = ", ".join(described[name] for name in (whole or list(described))[:_NAMED])
    more = len(whole or described) - _NAMED
    some += f" and {more} more" if more > 0 else ""
    known = "which whole numbers it takes" if whole else "which sizes and values it takes"
    what = f"the model does not run on random data for input {some}, as it does not say {known}: {error.message}"
    return CalibrationError(what, "give real samples with [[calib=DATA]]")


def _random(runner: Runner, model: Model) -> Sample | None:
    """A random sample that the given model runs on; None if there is none."""
    try:
        sample = open_data("random", input_specs(model), limit=1)[0]
        runner.run(sample.feed)
    except OnnxshotError:
        return None
    return sample
