"""The stages, called one by one, are what `quantize` does; each gives a value and leaves the values before it alone."""

from dataclasses import replace
from pathlib import Path

import pytest
from handmade import HANDMADE
from planned_models import FAST

from onnxshot import quantize
from onnxshot.errors import CalibrationError
from onnxshot.execution.statistics_source import RunStatistics
from onnxshot.graph import Model
from onnxshot.recipes.recipe import Recipe
from onnxshot.stages.check_normalized import check_normalized
from onnxshot.stages.improve_plan import improve_plan
from onnxshot.stages.make_quantized import make_quantized
from onnxshot.stages.observe import observe
from onnxshot.stages.open_samples import Samples, open_samples
from onnxshot.stages.prepare_model import prepare_model
from onnxshot.stages.rewrite_model import rewrite_model
from onnxshot.stages.settle_lstms import settle_lstms


def stored(model: Model) -> bytes:
    """The bytes of the file that is written: without inferred shapes."""
    model.forget_inferred()
    return bytes(model.to_proto().SerializeToString())


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_the_stages_one_by_one_make_the_bytes_of_quantize(effort: str) -> None:
    case, recipe = HANDMADE["mbconv_block"](), Recipe(effort=effort)
    prepared = prepare_model(case.model, recipe, FAST)
    with open_samples(prepared, case.feeds, None) as samples:
        reference = check_normalized(prepared, samples.data)
        prepared, notes = settle_lstms(prepared, samples.data, reference)
        assert notes == []
        plan = prepared.plan()
        assert not plan.params, "no scales before anything is observed"
        gathered = observe(prepared, plan, samples)
        assert isinstance(gathered, RunStatistics)
        final = improve_plan(prepared, plan, gathered, samples, reference)
        assert not plan.params, "the first plan stays as it was"
        assert final.plan.params
        rewritten = rewrite_model(final, samples)
    whole = quantize(case.model, case.feeds, recipe=recipe, settings=FAST)
    assert stored(rewritten.model) == stored(whole.model)
    assert rewritten.model is final.prepared.model, "rewriting changes the model in place"


def test_statistics_stand_for_samples(tmp_path: Path) -> None:
    case = HANDMADE["mbconv_block"]()
    first = quantize(case.model, case.feeds, effort="fast", settings=FAST)
    assert first.statistics is not None
    first.statistics.save(tmp_path / "s.npz")
    prepared = prepare_model(case.model, Recipe(effort="fast"), FAST)
    with open_samples(prepared, None, None, tmp_path / "s.npz") as samples:
        assert (samples.data, samples.recorded) == (None, True)
        made = make_quantized(prepared, samples)
    assert stored(made.model) == stored(first.model)
    assert made.report.samples["inferences"] == 0


def test_a_plan_that_needs_ranges_is_refused_without_samples() -> None:
    prepared = prepare_model(HANDMADE["mbconv_block"]().model, Recipe(), FAST)
    with pytest.raises(CalibrationError, match="give calib arrays"):
        open_samples(prepared, None, None)


def test_a_trial_is_made_of_the_same_samples_and_leaves_them_out_of_its_record() -> None:
    case = HANDMADE["mbconv_block"]()
    settings = replace(FAST, samples=2)
    prepared = prepare_model(case.model, Recipe(effort="fast"), settings)
    with open_samples(prepared, case.feeds, None) as samples:
        trial = Samples(samples.data, trial=True)
        assert samples.recorded
        assert samples.notes, "only some samples were read"
        assert not trial.recorded
        assert trial.notes == []
        made, other = (
            make_quantized(prepare_model(case.model, Recipe(effort="fast"), settings), given)
            for given in (samples, trial)
        )
    assert made.plan.params.keys() == other.plan.params.keys()
    assert not set(samples.notes) & set(other.report.notes)
