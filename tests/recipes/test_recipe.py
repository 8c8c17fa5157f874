import json
from typing import Any

import pytest
import yaml

from onnxshot.errors import UsageError
from onnxshot.recipes.recipe import Recipe


def test_it_goes_to_plain_values_and_back() -> None:
    given = Recipe(
        target="tensorrt", mode="weights", format="qoperator", activation_type="int8", weight_type="uint8",
        per_channel=False, method="mse", weight_method="mse", exclude=("head.*", "Softmax"), include=("Add",),
        concat_ratio=4.0,
    )  # fmt: skip
    for there_and_back in (
        given.to_dict(),
        json.loads(json.dumps(given.to_dict())),
        yaml.safe_load(yaml.safe_dump(given.to_dict())),
    ):
        assert Recipe.from_dict(there_and_back) == given
    assert Recipe.from_dict({}) == Recipe()
    assert Recipe.from_dict(Recipe().to_dict()) == Recipe()


def test_an_unknown_key_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="exlude is no key") as caught:
        Recipe.from_dict({"exlude": ["Conv"]})
    assert "exclude" in caught.value.hint


def test_one_pattern_may_stand_alone() -> None:
    """A string is one pattern, not a sequence of letters."""
    assert Recipe.from_dict({"exclude": "Conv"}).exclude == ("Conv",)
    assert Recipe.from_dict({"exclude": ["Conv"]}).exclude == ("Conv",)


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "fast"},
        {"format": "onnx"},
        {"weight_method": "entropy"},
        {"method": "max"},
        {"activation_type": "int5"},
        {"weight_type": "float16"},
        {"per_channel": "no"},
        {"concat_ratio": "wide"},
        {"concat_ratio": 0.5},
        {"exclude": [3]},
        {"target": 3},
    ],
    ids=str,
)
def test_a_bad_value_is_refused_with_what_is_allowed(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.from_dict(values)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_bits_are_blamed_before_the_mode_that_comes_with_them() -> None:
    with pytest.raises(UsageError, match=r"bits is 4, which does not go with precision"):
        Recipe(precision="fp16", mode="weights", bits=4)
