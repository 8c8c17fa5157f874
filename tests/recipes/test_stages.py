"""Recipes of stages: to plain values and back, and what is wrong is named by the path of its key."""

import json
from typing import Any

import pytest
import yaml

from onnxshot.errors import UsageError
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import PruneStage, ShrinkStage, Stages, kind_of

EVERY_KIND = Stages(
    (
        ShrinkStage(target_params=0.9, scope="heads", multiple=16, include=("a*",), importance="l2"),
        ShrinkStage(max_drop=0.5, evaluate="score.py:top1"),
        PruneStage(0.5, "block:4x1", "erk", {"conv1*": 0.3}, include=("Conv",), exclude=("head",), keep_zeros=True),
        PruneStage(pattern="2:4"),
        Recipe(effort="best", exclude=("Softmax",)),
    )
)


def test_they_go_to_plain_values_and_back() -> None:
    given = EVERY_KIND.to_dict()
    for there_and_back in (given, json.loads(json.dumps(given)), yaml.safe_load(yaml.safe_dump(given))):
        assert Stages.from_dict(there_and_back) == EVERY_KIND
    assert [kind_of(stage) for stage in EVERY_KIND.stages] == ["shrink", "shrink", "prune", "prune", "quantize"]


def test_keys_without_stages_are_one_quantize_stage() -> None:
    values = {"effort": "fast", "exclude": "Conv"}
    assert Stages.from_dict(values) == Stages((Recipe(effort="fast", exclude=("Conv",)),))
    assert Stages.from_dict(Stages.from_dict(values).to_dict()) == Stages.from_dict(values)
    assert Stages.from_dict({"stages": [{"quantize": None}]}) == Stages((Recipe(),))


def test_prune_with_pattern_channels_is_a_shrink_stage() -> None:
    (stage,) = Stages.from_dict({"stages": [{"prune": {"pattern": "channels", "sparsity": 0.25}}]}).stages
    assert stage == ShrinkStage(target_flops=0.75)
    (stage,) = Stages.from_dict({"stages": [{"prune": {"pattern": "channels", "target_latency": 0.8}}]}).stages
    assert stage == ShrinkStage(target_latency=0.8)


def test_half_is_a_quantize_stage_that_quantizes_nothing() -> None:
    stages = Stages.from_dict({"stages": [{"half": {}}, {"half": {"precision": "bf16"}}]}).stages
    assert stages == (Recipe(precision="fp16"), Recipe(precision="bf16"))


def test_to_emit_alone_is_no_compression() -> None:
    with pytest.raises(UsageError, match="stages only emit"):
        Stages.from_dict({"stages": [{"emit": {"to": "openvino"}}]})


def test_what_follows_from_the_pattern_and_the_data_is_filled_in() -> None:
    assert PruneStage(pattern="1:4").resolved(has_data=True) == PruneStage(0.75, "1:4", "auto")
    assert PruneStage(0.3).resolved(has_data=False) == PruneStage(0.3, scope="layer")
    with pytest.raises(UsageError, match="there are no samples"):
        PruneStage(0.3, scope="auto").resolved(has_data=False)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"prune": {"sparsity": 1.5}}, "stages[1].prune.sparsity is 1.5"),
        ({"prune": {"sparsity": "half"}}, "stages[1].prune.sparsity is 'half'"),
        ({"prune": {"sparsity": True}}, "stages[1].prune.sparsity is True"),
        ({"prune": None}, "stages[1].prune.sparsity is missing"),
        ({"prune": {"sparsity": 0.5, "scope": "best"}}, "stages[1].prune.scope is 'best'"),
        ({"prune": {"sparsity": 0.5, "layers": {"a": 2}}}, "stages[1].prune.layers.a is 2"),
        ({"prune": {"sparsity": 0.5, "layers": ["a"]}}, "stages[1].prune.layers is ['a']"),
        ({"prune": {"pattern": "2:4", "layers": {"a": 0.2}}}, "stages[1].prune.layers is given beside"),
        ({"prune": {"pattern": "2:4", "sparsity": 0.3}}, "sparsity is 0.3, beside the 0.5 of stages[1].prune.pattern"),
        ({"prune": {"pattern": 124}}, "stages[1].prune.pattern is 124"),
        ({"prune": {"sparsity": 0.5, "exclude": [3]}}, "stages[1].prune.exclude[0] is 3"),
        ({"prune": {"sparsity": 0.5, "keep_zeros": "yes"}}, "stages[1].prune.keep_zeros is 'yes'"),
        ({"prune": {"sparsty": 0.5}}, "stages[1].prune.sparsty is no key"),
        ({"prune": {"pattern": "channels", "sparsity": "x"}}, "stages[1].prune.sparsity is 'x'"),
        ({"prune": {"pattern": "channels", "keep_zeros": True}}, "stages[1].prune.keep_zeros is no key"),
        ({"prune": 0.5}, "stages[1].prune is 0.5"),
        ({"emit": {}}, "stages[1].emit.to is ()"),
        ({"emit": {"to": ["onnx"]}}, "stages[1].emit.to[0] is 'onnx'"),
        ({"emit": {"to": [3]}}, "stages[1].emit.to[0] is 3"),
        ({"half": {"precision": "fp8"}}, "stages[1].half.precision is 'fp8'"),
        ({"shrink": {}}, "stages[1].shrink.target_flops is missing"),
        ({"shrink": {"target_flops": 1.5}}, "stages[1].shrink.target_flops is 1.5"),
        ({"shrink": {"target_flops": 0.5, "target_params": 0.5}}, "is given beside stages[1].shrink.target_params"),
        ({"shrink": {"max_drop": 1}}, "shrink.max_drop is given without stages[1].shrink.evaluate"),
        ({"shrink": {"target_flops": 0.5, "multiple": 3}}, "stages[1].shrink.multiple is 3"),
        ({"shrink": {"target_flops": 0.5, "scope": "tails"}}, "stages[1].shrink.scope is 'tails'"),
        ({"quantize": {"effort": "much"}}, "stages[1].quantize.effort is 'much'"),
        ({"quantize": {"activation_type": "int5"}}, "stages[1].quantize.activation_type is 'int5'"),
        ({"quantise": {}}, "stages[1].quantise is no stage"),
        ({"prune": {"sparsity": 0.5}, "quantize": {}}, "stages[1] is {"),
        ("quantize", "stages[1] is 'quantize'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_by_its_path(stage: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Stages.from_dict({"stages": [{"quantize": {}}, stage]})
    assert said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stages": []}, "stages is empty"),
        ({"stages": {"prune": {"sparsity": 0.5}}}, "stages is {"),
        ({"stages": [{"quantize": {}}], "effort": "best"}, "effort is given beside stages"),
        (
            {"stages": [{"prune": {"pattern": "2:4"}}, {"quantize": {}}, {"shrink": {"target_flops": 0.9}}]},
            "stages[2] cuts channels after the 2:4 zeros of stages[0]",
        ),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Stages.from_dict(values)
    assert said in caught.value.message


def test_bits_mean_weights_in_blocks_where_no_mode_is_given() -> None:
    wanted = Recipe(mode="weights", bits=4)
    assert Stages.from_dict({"bits": 4}).stages == (wanted,)
    assert Stages.from_dict({"stages": [{"quantize": {"bits": 4}}]}).stages == (wanted,)
    assert Stages.from_dict({"bits": 4, "mode": "auto"}).stages == (Recipe(mode="auto", bits=4),)
    with pytest.raises(UsageError, match="bits is 4, which does not go with mode"):
        Stages.from_dict({"bits": 4, "mode": "static"})
