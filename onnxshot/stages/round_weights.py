"""Choose the integers of weights in blocks with data, where there is some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

from numpy.typing import NDArray
from onnx import helper

from onnxshot.calibration.readers import Dataset, split
from onnxshot.calibration.sampling import spread
from onnxshot.errors import ModelError
from onnxshot.execution.generated_samples import generated_samples
from onnxshot.graph import weights
from onnxshot.graph.lean_model import LeanModel
from onnxshot.passes.tie_weights import ties_of
from onnxshot.planning.block_schemes import scale_type, uses_operator
from onnxshot.planning.plan import WEIGHTS, Plan, RoundedBlocks
from onnxshot.recipes.plain_values import CHANNEL
from onnxshot.recovery.block_reconstruction import BlockRounding, rounded_weights
from onnxshot.recovery.block_trial import Scales
from onnxshot.report.timings import Timed, untimed
from onnxshot.stages.improve_plan import FinalPlan
from onnxshot.stages.open_samples import Samples
from onnxshot.stages.prepare_model import Prepared
from onnxshot.wording import worded

_LARGE_BYTES = 1 << 30  # of float weights: rounding those takes about two minutes of one core
_GENERATED_SHRINKAGE = 0.4  # between 0.3 and 0.5, which were equal on minilm with random tokens; 0.9 was 1 dB worse
_MOST = 1024  # samples that may be learned from; those that are enough are chosen by their rows

Feed = Mapping[str, NDArray[Any]]


def round_weights(final: FinalPlan, samples: Samples, timed: Timed = untimed) -> FinalPlan:
    """Return the plan with integers for weights in blocks, and with corrected biases.

    They are learned from the calibration samples; without data, from generated ones, where the model takes text or
    sound and is not large, or the effort is "best". In other cases, and with effort "fast", the plan is returned as it
    is: weights are rounded one by one when the file is written.

    Raises:
        ModelError: the model does not run on the samples.
    """
    data, prepared, plan = samples.data, final.prepared, final.plan
    wanted = any(plan.weights[label].in_blocks for label in plan.labels(WEIGHTS))
    if prepared.recipe.effort == "fast" or not wanted:
        return final
    if data is None or data.random or not len(data):
        with timed("round weights"):
            return _by_generated(final)
    numbers = split(len(data))[0]
    order = [numbers[i] for i in spread(len(numbers))[:_MOST]]
    with timed("round weights"):
        found = learned(prepared, plan, _Feeds(data, order))
    if not found.layers:
        return final
    notes = (*final.notes, found.said()) if found.said() else final.notes
    plan = replace(plan, rounded=as_planned(found), biases=found.biases)
    return replace(final, plan=plan, notes=notes, learned_on=found.samples)


def _by_generated(final: FinalPlan) -> FinalPlan:
    """Round by second moments of generated samples; the given plan where there are none, or they cost too much."""
    prepared, plan = final.prepared, final.plan
    if prepared.recipe.effort != "best" and prepared.model.weight_bytes() > _LARGE_BYTES:
        return final
    feeds, words = generated_samples(prepared.model)
    if not feeds:
        return final
    try:
        found = learned(prepared, plan, feeds, shrinkage=_GENERATED_SHRINKAGE)
    except ModelError:  # the model does not run on what was made for it
        return final
    if not found.layers:
        return final
    note = f"no real samples were given: weights of {len(found.layers)} products were rounded by {words}"
    plan = replace(plan, rounded=as_planned(found))
    return replace(final, plan=plan, notes=(*final.notes, worded(f"{note}; real ones are better: [[calib=DATA]]")))


def learned(prepared: Prepared, plan: Plan, feeds: Sequence[Feed], shrinkage: float | None = None) -> BlockRounding:
    """Round the weights in blocks of a plan of a prepared model; `shrinkage` as in `rounded_weights`."""
    model, everywhere = prepared.model, prepared.target.everywhere
    kinds = {c.name: weights.elem_type(c) if everywhere else scale_type(c) for c in model.constants()}
    # DequantizeLinear is read by tools, and by this one, that take a negative scale for an error.
    signed = uses_operator(prepared.target, prepared.recipe) and prepared.recipe.block != CHANNEL
    ties = {other.name: table.name for table, other, _ in ties_of(model, model.tied) if other is not table}
    return rounded_weights(
        LeanModel.of(model), plan, feeds, prepared.settings, ties=ties, shrinkage=shrinkage,
        scales=lambda name: Scales(helper.tensor_dtype_to_np_dtype(kinds[name]), signed=signed),
    )  # fmt: skip


def as_planned(found: BlockRounding) -> dict[str, RoundedBlocks]:
    """The integers as a plan holds them."""
    return {name: RoundedBlocks(codes.params.scheme, codes.read) for name, codes in found.weights.items()}


class _Feeds(Sequence[Feed]):
    """Samples that are read when they are asked for. A slice reads them at once."""

    def __init__(self, data: Dataset, numbers: Sequence[int]) -> None:
        self._data, self._numbers = data, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Feed: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Feed]: ...

    def __getitem__(self, index: int | slice) -> Feed | Sequence[Feed]:
        if isinstance(index, slice):
            return [self._data[number].feed for number in self._numbers[index]]
        return self._data[self._numbers[index]].feed
