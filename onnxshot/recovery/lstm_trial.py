"""Try LSTMs in int8: quantize only them, and measure the error of the outputs on a few samples.

com.microsoft.DynamicQuantizeLSTM rounds the state at every step, and the errors feed back into the state. No rule
predicts their size, so they are measured.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from onnxshot.calibration.readers import Dataset, split
from onnxshot.calibration.sampling import spread
from onnxshot.errors import ModelError
from onnxshot.execution.candidate_race import Judge, candidate_of
from onnxshot.graph import Model
from onnxshot.graph.copies import copy_of
from onnxshot.graph.lean_model import LeanModel
from onnxshot.passes.quantize_dynamic import QuantizeDynamically
from onnxshot.planning.name_patterns import exact_patterns
from onnxshot.planning.node_recipe import NodeRecipes
from onnxshot.planning.plan import DYNAMIC, NodePlan, Plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.runtimes.ort_runtime import Runnable, Runner, is_large
from onnxshot.settings import Settings
from onnxshot.wording import worded

HOLDS_DB = 30.0
"""SQNR in dB of the outputs of a typical sample that int8 LSTMs must reach. Most int8 models have a lower one."""
_TRIED_ON = 8  # samples
_MOST_APART = 8  # LSTMs that are tried one by one where all together are too much


@dataclass(frozen=True, slots=True)
class LstmDecision:
    """What becomes of the LSTMs of a model.

    Attributes:
        portable: whether all stay standard operators, in float.
        note: the reason, for the user.
        left: patterns of the LSTMs that must stay float: those included by name, or where others are in int8.
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
    made = candidate_of(_quantized(model, rows_alone))
    refused = _refused(model, made)
    if refused:
        patterns = exact_patterns(model)
        left = tuple(dict.fromkeys(patterns.get(row.node, row.op) for row in rows if row.node in forced))
        return LstmDecision(True, f"LSTMs stay float: in int8 {refused}", left)
    avoid = worded("[[portable_ops=True]] avoids it")
    alone = f"the file is for ONNX Runtime alone: it holds com.microsoft.DynamicQuantizeLSTM ({avoid})"
    if all(row.node in forced for row in rows) or (data is None and recipe.mode == DYNAMIC):
        return LstmDecision(False, alone)
    asks = worded("[[include=LSTM]] quantizes them nevertheless")
    if data is None or reference is None:
        return LstmDecision(True, f"LSTMs stay float: there are no samples to try them on; {asks}")
    numbers = split(len(data))[0]
    samples = [numbers[i] for i in spread(len(numbers))[:_TRIED_ON]]
    judge = Judge(reference, data, settings.threads)
    try:
        (error,) = judge.measure([made], samples)
    except ModelError as e:
        if not is_large(made):
            raise
        # A model in parts is loaded only now.
        return LstmDecision(True, f"LSTMs stay float: in int8 {e}")
    found = error.typical_db
    if found < HOLDS_DB:
        patterns = exact_patterns(model)
        apart = 1 < len(rows) <= _MOST_APART and not forced and all(row.node in patterns for row in rows)
        kept, reached = _those_that_hold(model, plan, rows, judge, samples) if apart else ([], 0.0)
        if kept:
            floats = [row.node for row in rows if row not in kept]
            note = f"with all LSTMs in int8 the outputs have {found:.1f} dB, {reached:.1f} dB with these in float: "
            return LstmDecision(False, f"{note}{', '.join(floats)}; {alone}", tuple(patterns[name] for name in floats))
        return LstmDecision(True, f"LSTMs stay float: with only them in int8 the outputs have {found:.1f} dB; {asks}")
    return LstmDecision(False, f"LSTMs are in int8: with only them in int8 the outputs have {found:.1f} dB; {alone}")


def _those_that_hold(
    model: Model, plan: Plan, rows: list[NodePlan], judge: Judge, samples: list[int]
) -> tuple[list[NodePlan], float]:
    """The LSTMs that reach `HOLDS_DB` together in int8, and the dB they reach; none and 0 where no one does.

    Errors of each alone, the smallest first, are added up to the most that is allowed; what that gives is measured.
    """

    def made(some: list[NodePlan]) -> Runnable:
        return candidate_of(_quantized(model, replace(plan, nodes=tuple(some))))

    each = [error.typical_db for error in judge.measure([made([row]) for row in rows], samples)]
    order = sorted(range(len(rows)), key=lambda i: -each[i])
    noise = itertools.accumulate(10 ** (-each[i] / 10) for i in order)
    kept = [rows[i] for i, sum_ in zip(order, noise, strict=True) if sum_ <= 10 ** (-HOLDS_DB / 10)]
    while kept:
        (together,) = judge.measure([made(kept)], samples)
        if together.typical_db >= HOLDS_DB:
            return kept, together.typical_db
        kept.pop()
    return [], 0.0


def _quantized(model: Model, plan: Plan) -> Model:
    copy = copy_of(model)
    QuantizeDynamically(plan).run(copy)
    return copy


def _refused(model: Model, made: Runnable) -> str:
    """Why ONNX Runtime does not load the model with these LSTMs in int8; empty where it does, or loads it in parts."""
    try:
        Runner(made, threads=1)
    except ModelError as e:
        try:
            Runner(LeanModel.of(model), threads=1)
        except ModelError:
            return ""  # the float model does not load either, so the LSTMs are not the reason
        return str(e)
    return ""
