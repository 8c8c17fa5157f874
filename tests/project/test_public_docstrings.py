"""`help` of every public name says what it takes, gives and raises, with an example."""

import inspect

import pytest

import onnxshot

NAMES = [name for name in onnxshot.__all__ if not inspect.ismodule(getattr(onnxshot, name))]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented_in_full(name: str) -> None:
    value = getattr(onnxshot, name)
    text = inspect.getdoc(value) or ""
    assert "\nExample:\n    " in text
    if inspect.isclass(value):
        assert "\nAttributes:\n" in text or name == "RecipeOptions"  # its fields are those of Recipe
        return
    gives = () if inspect.signature(value).return_annotation == "None" else ("Returns",)
    for heading in ("Args", *gives, *(() if name == "doctor" else ("Raises",))):
        assert f"\n{heading}:\n" in text
    listed = text.partition("\nArgs:\n")[2].partition("\nRaises:\n")[0].partition("\nReturns:\n")[0]
    own = inspect.signature(value).parameters.keys() - set(onnxshot.RecipeOptions.__annotations__)
    described = {line.strip().partition(":")[0].strip("*") for line in listed.splitlines()}
    described = {name for names in described for name in names.split(", ")}
    assert own - {"options"} <= described


@pytest.mark.parametrize("name", ["quantize", "tune", "sensitivity", "quantize_folder"])
def test_help_lists_every_option_with_its_default(name: str) -> None:
    listed = inspect.signature(getattr(onnxshot, name)).parameters
    assert "options" not in listed
    recipe = onnxshot.Recipe()
    for option in onnxshot.RecipeOptions.__annotations__:
        assert listed[option].default == getattr(recipe, option)
    assert str(listed["effort"].annotation) == "typing.Literal['fast', 'balanced', 'best']"
