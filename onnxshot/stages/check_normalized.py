"""Check that normalizing kept the outputs, and find the model that results are compared with."""

from __future__ import annotations

from onnxshot.calibration.readers import Dataset
from onnxshot.report.timings import Timed, untimed
from onnxshot.stages.prepare_model import Prepared
from onnxshot.verification.reference import Reference, reference_of


def check_normalized(prepared: Prepared, data: Dataset | None, timed: Timed = untimed) -> Reference:
    """Return the model that results are compared with.

    Runs the given and the normalized model on the first sample.

    Raises:
        ModelError: normalizing has changed the outputs.
    """
    source, settings = prepared.source, prepared.settings
    check = settings.verify and not prepared.requantized
    with timed("normalize"):
        return reference_of(source, prepared.model, data, check=check, threads=settings.threads)
