"""Try LSTMs in int8: quantize only them, and measure the error of the outputs on a few samples.

com.microsoft.DynamicQuantizeLSTM rounds the state at every step, and the errors feed back into the state. No rule
predicts their size, so they are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from onnxshot.runtimes.ort_runtime import Runnable, session
from onnxshot.settings import Settings

HOLDS_DB = 30.0
"""SQNR in dB of the outputs of a typical sample that int8 LSTMs must reach. Most int8 models have a lower one."""
_TRIED_ON = 8  # samples


@dataclass(frozen=True, slots=True)
class LstmDecision:
    """What becomes of the LSTMs of a model.

    Attributes:
        portable: whether they stay standard operators, in float.
        note: the reason, for the user.
        left: patterns of the LSTMs that must stay float although they were included by name.
    """

    portable: bool
    note: str
    left: tuple[str, ...] = ()


def try_lstms(
    model: Model, plan: Plan, recipe: Recipe, reference: Runnable | None, data: Dataset | None, settings: Settings
) -> LstmDecision | None:
    """Decide whether the LSTMs of a plan stay in int8; None where the plan has none in int8.

    LSTMs that were included by name stay in int8 without a trial. Without samples the others do in mode 'dynamic' only.

    Args:
        model: the normalized float model.
        plan: its plan.
        recipe: what was asked for.
        reference: path or bytes of the given model, which outputs are compared with.
        data: samples to measure on.
        settings: threads of the sessions.
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
        return LstmDecision(True, f"LSTMs stay float: in int8 {refused}", left)
    alone = "the file is for ONNX Runtime alone: it holds com.microsoft.DynamicQuantizeLSTM (--portable-ops avoids it)"
    if all(row.node in forced for row in rows) or (data is None and recipe.mode == DYNAMIC):
        return LstmDecision(False, alone)
    asks = "--include LSTM quantizes them nevertheless"
    if data is None or reference is None or model.weight_bytes() > candidate_race.MAX_BYTES:
        why = "there are no samples to try them on" if data is None else "the model is too large to try them"
        return LstmDecision(True, f"LSTMs stay float: {why}; {asks}")
    numbers = split(len(data))[0]
    samples = [data[numbers[i]] for i in spread(len(numbers))[:_TRIED_ON]]
    found = _typical_db(model, rows_alone, reference, samples, settings)
    if found < HOLDS_DB:
        return LstmDecision(True, f"LSTMs stay float: with only them in int8 the outputs have {found:.1f} dB; {asks}")
    return LstmDecision(False, f"LSTMs are in int8: with only them in int8 the outputs have {found:.1f} dB; {alone}")


def _typical_db(
    model: Model, plan: Plan, reference: Runnable, samples: Sequence[Sample], settings: Settings
) -> float:
    (found,) = candidate_race.measure_candidates(reference, [_made(model, plan)], samples, threads=settings.threads)
    return found.typical_db


def _made(model: Model, plan: Plan) -> bytes:
    copy = load_model(model.to_proto())
    QuantizeDynamically(plan).run(copy)
    return bytes(copy.to_proto().SerializeToString())


def _refused(model: Model, plan: Plan) -> str:
    """Why ONNX Runtime does not load the model with these LSTMs in int8; empty where it does, or was not tried."""
    if model.weight_bytes() > candidate_race.MAX_BYTES:
        return ""
    made = _made(model, plan)
    try:
        session(made, threads=1)
    except ModelError as e:
        try:
            session(bytes(model.to_proto().SerializeToString()), threads=1)
        except ModelError:
            return ""  # the float model does not load either, so the LSTMs are not the reason
        return str(e)
    return ""
