"""Gather the statistics of the tensors that a plan quantizes: from a file, the cache, or a pass over the samples."""

from __future__ import annotations

from onnxshot.execution.statistics_source import RunStatistics, from_data, from_file
from onnxshot.planning.plan import Plan
from onnxshot.recovery.improver import may_equalize
from onnxshot.report.timings import Timed, untimed
from onnxshot.stages.open_samples import Samples
from onnxshot.stages.prepare_model import Prepared


def observe(prepared: Prepared, plan: Plan, samples: Samples, timed: Timed = untimed) -> RunStatistics | None:
    """Return statistics of every tensor that the plan observes; None where it observes none or there are no samples.

    Raises:
        CalibrationError: the statistics file is of another model or other samples, or a tensor never had a value.
    """
    data = samples.data
    if not plan.observe:
        return None
    if samples.stats is not None:
        with timed("calibrate"):
            return from_file(samples.stats, prepared.model, plan, data)
    if data is None:
        return None
    with timed("calibrate"):
        keep = may_equalize(prepared.recipe, prepared.trained)
        return from_data(prepared.model, plan, prepared.recipe, data, prepared.settings, keep=keep, choosing=True)
