"""Check that normalizing kept the outputs, and find the model that results are compared with."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from onnxshot.calibration.readers import Dataset
from onnxshot.report.timings import Timed, untimed
from onnxshot.stages.prepare_model import Prepared
from onnxshot.verification import proof
from onnxshot.verification.reference import Reference, reference_of


def check_normalized(prepared: Prepared, data: Dataset | None, timed: Timed = untimed) -> Reference | None:
    """Return the model that results are compared with; None for one in memory that is too large to be run.

    Runs the given and the normalized model on the first sample, unless the model exceeds the limits of the proof.

    Raises:
        ModelError: normalizing has changed the outputs.
    """
    source, settings = prepared.source, prepared.settings
    if prepared.model.weight_bytes() >= proof.MAX_BYTES:
        return None if isinstance(source, ModelProto) else Reference(Path(source))
    check = settings.verify and not prepared.requantized and prepared.is_small
    with timed("normalize"):
        return reference_of(source, prepared.model, data, check=check, threads=settings.threads)
