import numpy as np
import pytest
from handmade.core import feeds, vector, weight
from planned_models import planned, small, statistics

from onnxshot.calibration.readers import Sample
from onnxshot.execution.candidate_race import Judge
from onnxshot.planning.plan import DYNAMIC16, FLOAT, STORED
from onnxshot.planning.scales import Evidence
from onnxshot.planning.trained_scales import NOTHING
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery.plan_trials import PlanTrials
from onnxshot.targets.ort import ORT


@pytest.mark.parametrize(("size", "forms"), [(256, (STORED, DYNAMIC16)), (128, (STORED,))])
def test_inputs_of_16_bits_are_a_form_of_large_products(size: int, forms: tuple[str, ...]) -> None:
    """One large input of a product leaves the others few of 8 bits: of 16 they are as accurate as in float."""
    text = f"g (float[4, {size}] x) => (float[4, {size}] y) {{ m = MatMul(x, w) y = Add(m, b) }}"
    w = weight(size, size, channel_axis=1)
    w[0] = 0.0
    case = small(text, {"w": w, "b": vector(size)}, x=(4, size))
    ready, plan = planned(case, mode="dynamic")
    given = [{"x": np.concatenate([np.full((4, 1), 3000, np.float32), feed["x"][:, 1:]], 1)}
             for feed in feeds(count=2, x=(4, size))]  # fmt: skip
    judge = Judge(case.model.SerializeToString(), [Sample(str(i), feed) for i, feed in enumerate(given)], 1)
    recipe = Recipe(mode="dynamic")
    trials = PlanTrials(ready, ORT, recipe, plan, Evidence({}), NOTHING, judge, (0, 1), given, 1, seconds=0.05)
    (group,) = trials.groups()
    assert tuple(trials.forms(group)) == forms
    if DYNAMIC16 in forms:
        (label,) = group.nodes
        assert trials.together(frozenset({(label, DYNAMIC16)})) > trials.together(frozenset()) + 20.0
        assert trials.recipe_of(frozenset({(label, DYNAMIC16)})).rules
        assert set(trials.times) >= {"", STORED, DYNAMIC16}


def test_weights_that_are_only_stored_go_to_float_where_such_weights_cost_too_much() -> None:
    text = "g (float[2, 32, 8, 8] x) => (float[2, 32, 4, 4] y) { a = Conv(x, v) b = Relu(a) y = Conv(b, w) }"
    case = small(text, {"v": weight(32, 32, 3, 3), "w": weight(32, 32, 3, 3, seed=1)}, x=(2, 32, 8, 8))
    ready, plan = planned(case, calibrate=True, layers={"a": {"mode": "stored"}})
    (stored,) = plan.stored
    judge = Judge(case.model.SerializeToString(), [Sample(str(i), feed) for i, feed in enumerate(case.feeds)], 1)
    found = Evidence(statistics(ready, plan.observe, case.feeds))
    trials = PlanTrials(ready, ORT, Recipe(), plan, found, NOTHING, judge, (0, 1), case.feeds, 1, seconds=0.05)
    assert stored not in {label for group in trials.groups() for label in group.nodes}
    trials.settle(100.0)
    assert trials.in_float == FLOAT
    assert stored in {label for group in trials.groups() for label in group.nodes}
    assert trials.none() < 1e-9
    (alone,) = (group for group in trials.groups() if stored in group.nodes)
    assert not trials.has_weights(alone) or len(alone.nodes) > 1, "it computes in float already"
