"""Recipe files: arguments with defaults, files that extend others, and reports that hold a recipe."""

import json
from pathlib import Path

import pytest

from onnxshot.errors import UsageError
from onnxshot.recipes.files import load_recipe, load_stages
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import PruneStage, Stages

TWO = """
# the share of zeros is ${documented:nowhere}
stages:
  - prune: {sparsity: ${sparsity:0.5}, scope: ${scope:null}, layers: {"conv${first:1}*": 0.25}}
  - quantize:
      effort: ${effort:fast}
      exclude: ${exclude:[]}
"""


def written(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_arguments_have_defaults(tmp_path: Path) -> None:
    assert load_stages(written(tmp_path, TWO)) == Stages(
        (PruneStage(0.5, layers={"conv1*": 0.25}), Recipe(effort="fast"))
    )


def test_arguments_are_set_and_keep_their_yaml_type(tmp_path: Path) -> None:
    given = {"sparsity": "0.6", "scope": "erk", "first": "2", "effort": "best", "exclude": "[Softmax, 'a b']"}
    assert load_stages(written(tmp_path, TWO), given) == Stages(
        (PruneStage(0.6, scope="erk", layers={"conv2*": 0.25}), Recipe(effort="best", exclude=("Softmax", "a b")))
    )
    quoted = written(tmp_path, 'stages: [{prune: {pattern: "${pattern:2:4}"}}]')
    assert load_stages(quoted) == Stages((PruneStage(pattern="2:4"),))
    assert load_stages(quoted, {"pattern": "1:4"}) == Stages((PruneStage(pattern="1:4"),))


def test_an_unknown_argument_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no argument 'sparsty'") as caught:
        load_stages(written(tmp_path, TWO), {"sparsty": "0.6"})
    assert caught.value.hint == "arguments: effort, exclude, first, scope, sparsity"
    with pytest.raises(UsageError, match="it has none"):
        load_stages(written(tmp_path, "effort: best"), {"effort": "fast"})


def test_an_argument_without_a_default_must_be_set(tmp_path: Path) -> None:
    path = written(tmp_path, "effort: ${effort}")
    with pytest.raises(UsageError, match="argument 'effort' has no value"):
        load_stages(path)
    assert load_recipe(path, {"effort": "best"}) == Recipe(effort="best")


def test_a_bad_value_of_an_argument_is_named_by_the_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"stages\[0\]\.prune\.sparsity is 6"):
        load_stages(written(tmp_path, TWO), {"sparsity": "6"})


def test_a_file_extends_another(tmp_path: Path) -> None:
    written(tmp_path, "effort: ${effort:best}\nexclude: [Softmax]\ntarget: ort", "base/flat.yaml")
    path = written(tmp_path, "extends: base/flat.yaml\nexclude: [Conv]")
    assert load_recipe(path) == Recipe(effort="best", exclude=("Conv",))
    assert load_recipe(path, {"effort": "fast"}) == Recipe(effort="fast", exclude=("Conv",))


def test_stages_of_a_file_come_after_those_it_extends(tmp_path: Path) -> None:
    written(tmp_path, "stages: [{prune: {sparsity: 0.5}}]", "base/first.yaml")
    written(tmp_path, "extends: first.yaml", "base/second.yaml")
    path = written(tmp_path, "extends: base/second.yaml\nstages: [quantize: {effort: best}]")
    assert load_stages(path) == Stages((PruneStage(0.5), Recipe(effort="best")))


@pytest.mark.parametrize("chain", [["a.yaml"], ["a.yaml", "b.yaml", "c.yaml"]])
def test_a_circle_is_refused(tmp_path: Path, chain: list[str]) -> None:
    for name, following in zip(chain, [*chain[1:], chain[0]], strict=True):
        written(tmp_path, f"extends: ./{following}", name)
    with pytest.raises(UsageError, match=" -> ".join([*chain, "a.yaml"])):
        load_stages(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: [a, b]", "extends is"),
        ("extends: missing.yaml", "missing.yaml cannot be read"),
        ("[1, 2]", "holds a list"),
        ("stages: [", "cannot be read"),
        ("", "holds a NoneType"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_stages(written(tmp_path, text))


def test_what_is_no_utf_8_is_told_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes("# größer\neffort: ".encode() + b"\xff\n")
    with pytest.raises(UsageError, match=r"r\.yaml cannot be read: line 2: it is not UTF-8"):
        load_stages(tmp_path / "r.yaml")


def test_a_key_is_told_by_the_file_it_stands_in_and_another_by_its_own(tmp_path: Path) -> None:
    base = written(tmp_path, "stages: [{prune: {pattern: '2:4'}}]", "base.yaml")
    path = written(tmp_path, "extends: base.yaml\nstages: [quantize: {}, shrink: {target_flops: 0.9}]")
    with pytest.raises(UsageError) as caught:
        load_stages(path)
    assert caught.value.message == f"{path}: stages[1] cuts channels after the 2:4 zeros of stages[0] of {base}"


def test_a_report_holds_a_recipe(tmp_path: Path) -> None:
    stages = Stages((PruneStage(0.5), Recipe(effort="best")))
    report = written(tmp_path, json.dumps({"stages": [{"name": "input"}], "recipe": stages.to_dict()}), "report.json")
    assert load_stages(report) == stages
    with pytest.raises(UsageError, match="holds stages: prune, quantize"):
        load_recipe(report)
