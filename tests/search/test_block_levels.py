"""Levels of weights in blocks: which ones a recipe allows, and the order in which groups are raised."""

from itertools import pairwise

import numpy as np
import pytest
from fixture_runs import QUICK
from handmade.core import model

from onnxshot.passes.tie_weights import ties_of
from onnxshot.recipes.recipe import Recipe
from onnxshot.search.block_levels import FLOAT_RULE, Stored, ladder, layers_of, level_rules, said, steps, stored_at
from onnxshot.stages.prepare_model import prepare_model
from onnxshot.targets import target_named


def _said(target: str = "ort", **options: object) -> list[str]:
    recipe = Recipe.from_dict({"target": target, "mode": "weights", **options})
    return [said(rule) for rule in level_rules(target_named(target), recipe)]


def test_levels_begin_at_what_was_asked_for() -> None:
    assert _said(bits=4, block=32, asymmetric=False) == ["4 bits, block 32", "4 bits, block 16", "8 bits, block 128",
                                                         "float"]  # fmt: skip
    assert _said(bits=8) == ["8 bits, block 128", "float"]
    assert _said(bits=8, block=64) == ["8 bits, block 64", "float"]
    assert _said(weight_type="int4", block=16) == [
        "4 bits, block 16", "4 bits, block 16, zero points", "8 bits, block 128", "float",
    ]  # fmt: skip
    every = _said(bits=4)
    assert every[0] == "4 bits, block 128"
    assert every[-2:] == ["8 bits, block 128", "float"]
    assert "4 bits, block 32, zero points" in every


def test_levels_are_those_of_the_target() -> None:
    assert not any("zero points" in level for level in _said("tensorrt", bits=4))
    assert all("block 16" not in level for level in _said("openvino", bits=4)), "slower than larger blocks there"
    assert _said("openvino", bits=4)[-1] == "float"


def test_a_ladder_has_only_levels_that_pay() -> None:
    """Loss saved per byte falls from step to step, and no left-out level lies below a step."""
    given = [(100, 8.0), (110, 7.9), (120, 4.0), (130, 6.0), (200, 0.5), (210, 0.45), (400, 0.0)]
    losses = {size: loss for size, loss in given}
    stored = [Stored({"bits": 4, "block": size, "asymmetric": False}, size, loss) for size, loss in given]
    found = ladder(stored, lambda at: losses[at.bytes])
    assert [level.bytes for level in found] == [100, 120, 200, 210, 400]
    slopes = [(a.loss - b.loss) / (b.bytes - a.bytes) for a, b in pairwise(found)]
    assert slopes == sorted(slopes, reverse=True)


def test_groups_are_raised_by_loss_saved_per_byte() -> None:
    def rising(*levels: tuple[int, float]) -> list[Stored]:
        return [Stored({"bits": 4, "block": size, "asymmetric": False}, size, loss) for size, loss in levels]

    one, other = rising((10, 9.0), (20, 3.0), (40, 0.0)), rising((10, 4.0), (20, 0.0))
    ladders = [ladder(levels, lambda at: at.error) for levels in (one, other)]
    assert list(steps(ladders)) == [0, 1, 0]


@pytest.mark.parametrize("size", [16, 128])
def test_float_is_the_last_level(size: int) -> None:
    recipe = Recipe(mode="weights", bits=4, block=size)
    assert level_rules(target_named("ort"), recipe)[-1] == FLOAT_RULE


def test_a_tied_table_is_counted_once() -> None:
    table = np.random.default_rng(0).normal(0, 1, (512, 64)).astype(np.float32)
    body = "x = Gather(table, ids)\nturned = Transpose<perm = [1, 0]>(table)\nscores = MatMul(x, turned)"
    proto = model(f"g (int64[1,S] ids) => (float[1,S,512] scores) {{ {body} }}", {"table": table})
    recipe = Recipe(mode="weights", bits=4, block=32)
    prepared = prepare_model(proto, recipe, QUICK)
    plan, ties = prepared.plan(), ties_of(prepared.model, prepared.model.tied)
    group = tuple(layers_of(prepared.model, plan, recipe))
    (found,) = stored_at(group, [({"bits": 4}, plan)], {b: a for a, b, _ in ties if a is not b})
    assert [node.op for node in group] == ["Gather", "MatMul"]
    assert found.bytes == 512 * 2 * (16 + 4)
