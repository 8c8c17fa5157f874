"""Whether LSTMs in int8 hold: they alone are put into it, and a few samples say what that does to the outputs.

com.microsoft.DynamicQuantizeLSTM rounds the state at every step, and errors go round: nothing but a run can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnxshot import trial
from onnxshot.calibration.readers import Dataset, Sample, split
from onnxshot.calibration.sampling import spread
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.passes.dynamic import QuantizeDynamically
from onnxshot.planning.asked import Asked
from onnxshot.planning.plan import DYNAMIC, Plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.settings import Settings

HOLDS_DB = 30.0
"""SQNR of the outputs, typical of a sample, that LSTMs in int8 must keep: most int8 results have more noise."""
_TRIED_ON = 8  # samples


@dataclass(frozen=True, slots=True)
class Settled:
    """portable: the LSTMs must stay standard operators; note: why, or what the file is for."""

    portable: bool
    note: str


def settle(
    model: Model, plan: Plan, recipe: Recipe, reference: Path | bytes | None, data: Dataset | None, settings: Settings
) -> Settled | None:
    """Whether the LSTMs of the plan may be in int8; None where it has none, or they were asked for by name.

    reference: the model that was given. Without samples they are where the mode is dynamic, which was asked for.
    """
    forced = {node.label for node in Asked(model, recipe).forced}
    rows = [row for row in plan.nodes if row.op == "LSTM" and row.how == DYNAMIC]
    if not rows:
        return None
    alone = "the file is for ONNX Runtime alone: it holds com.microsoft.DynamicQuantizeLSTM (--portable-ops avoids it)"
    if all(row.node in forced for row in rows) or (data is None and recipe.mode == DYNAMIC):
        return Settled(False, alone)
    asks = "--include LSTM quantizes all the same"
    if data is None or reference is None or model.weight_bytes() > trial.MAX_BYTES:
        why = "there are no samples to try them on" if data is None else "the model is too large to try them"
        return Settled(True, f"LSTMs stay float: {why}; {asks}")
    numbers = split(len(data))[0]
    samples = [data[numbers[i]] for i in spread(len(numbers))[:_TRIED_ON]]
    found = _typical_db(model, replace(plan, nodes=tuple(rows)), reference, samples, settings)
    if found < HOLDS_DB:
        return Settled(True, f"LSTMs stay float: int8 ones alone leave {found:.1f} dB of the outputs; {asks}")
    return Settled(False, f"LSTMs are in int8: they alone keep {found:.1f} dB of the outputs; {alone}")


def _typical_db(
    model: Model, plan: Plan, reference: Path | bytes, samples: Sequence[Sample], settings: Settings
) -> float:
    copy = load_model(model.to_proto())
    QuantizeDynamically(plan).run(copy)
    made = [bytes(copy.to_proto().SerializeToString())]
    (found,) = trial.tried(reference, made, samples, threads=settings.threads)
    return found.typical_db
