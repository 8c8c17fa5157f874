"""Whether LSTMs in int8 hold: they alone are put into it, and a few samples say what that does to the outputs.

com.microsoft.DynamicQuantizeLSTM rounds the state at every step, and errors go round: nothing but a run can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnxshot.calibration.readers import Dataset, Sample, split
from onnxshot.calibration.sampling import spread
from onnxshot.errors import ModelError
from onnxshot.execution import candidate_race
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.passes.quantize_dynamic import QuantizeDynamically
from onnxshot.planning.name_patterns import exact_patterns
from onnxshot.planning.node_recipe import NodeRecipes
from onnxshot.planning.plan import DYNAMIC, Plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.runtimes.ort_runtime import session
from onnxshot.settings import Settings

HOLDS_DB = 30.0
"""SQNR of the outputs, typical of a sample, that LSTMs in int8 must keep: most int8 results have more noise."""
_TRIED_ON = 8  # samples


@dataclass(frozen=True, slots=True)
class Settled:
    """What was found.

    Attributes:
        portable: the LSTMs must stay standard operators.
        note: why, or what the file is for.
        left: patterns of nodes that must stay float, though they were asked for.
    """

    portable: bool
    note: str
    left: tuple[str, ...] = ()


def settle(
    model: Model, plan: Plan, recipe: Recipe, reference: Path | bytes | None, data: Dataset | None, settings: Settings
) -> Settled | None:
    """Whether the LSTMs of the plan may be in int8; None where it has none, or they were asked for by name.

    reference: the model that was given. Without samples they are where the mode is dynamic, which was asked for.
    """
    forced = {node.label for node in NodeRecipes(model, recipe).forced}
    rows = [row for row in plan.nodes if row.op == "LSTM" and row.how == DYNAMIC]
    if not rows:
        return None
    rows_alone = replace(plan, nodes=tuple(rows))
    refused = _refused(model, rows_alone)
    if refused:
        patterns = exact_patterns(model)
        left = tuple(dict.fromkeys(patterns.get(row.node, row.op) for row in rows if row.node in forced))
        return Settled(True, f"LSTMs stay float: in int8 {refused}", left)
    alone = "the file is for ONNX Runtime alone: it holds com.microsoft.DynamicQuantizeLSTM (--portable-ops avoids it)"
    if all(row.node in forced for row in rows) or (data is None and recipe.mode == DYNAMIC):
        return Settled(False, alone)
    asks = "--include LSTM quantizes all the same"
    if data is None or reference is None or model.weight_bytes() > candidate_race.MAX_BYTES:
        why = "there are no samples to try them on" if data is None else "the model is too large to try them"
        return Settled(True, f"LSTMs stay float: {why}; {asks}")
    numbers = split(len(data))[0]
    samples = [data[numbers[i]] for i in spread(len(numbers))[:_TRIED_ON]]
    found = _typical_db(model, rows_alone, reference, samples, settings)
    if found < HOLDS_DB:
        return Settled(True, f"LSTMs stay float: int8 ones alone leave {found:.1f} dB of the outputs; {asks}")
    return Settled(False, f"LSTMs are in int8: they alone keep {found:.1f} dB of the outputs; {alone}")


def _typical_db(
    model: Model, plan: Plan, reference: Path | bytes, samples: Sequence[Sample], settings: Settings
) -> float:
    (found,) = candidate_race.measure_candidates(reference, [_made(model, plan)], samples, threads=settings.threads)
    return found.typical_db


def _made(model: Model, plan: Plan) -> bytes:
    copy = load_model(model.to_proto())
    QuantizeDynamically(plan).run(copy)
    return bytes(copy.to_proto().SerializeToString())


def _refused(model: Model, plan: Plan) -> str:
    """Why ONNX Runtime does not load the model with these LSTMs in int8; empty where it does, or is not asked."""
    if model.weight_bytes() > candidate_race.MAX_BYTES:
        return ""
    made = _made(model, plan)
    try:
        session(made, threads=1)
    except ModelError as e:
        try:
            session(bytes(model.to_proto().SerializeToString()), threads=1)
        except ModelError:
            return ""  # it is not for the LSTMs
        return str(e)
    return ""
