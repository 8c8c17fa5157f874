"""The recipes of docs/migrating.md are read, and mean what the tables say."""

import re
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from handmade import HANDMADE

import onnxshot
from onnxshot.errors import UsageError
from onnxshot.recipes.files import load_stages
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.sparsity_level import MOST_SPARSITY, at_level
from onnxshot.recipes.stages import PruneStage, ShrinkStage, Stage, Stages

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "migrating.md").read_text("utf-8")
EXPECTED = [
    Stages(
        (PruneStage(0.85, include=("*sections.0.0.conv1*", "*sections.0.0.conv2*")), Recipe(effort="best")),
    ),
    Stages((Recipe(format="qoperator", method="entropy", exclude=("conv1",)),)),
    Stages(
        (
            ShrinkStage(target_params=0.85, importance="l2"),
            Recipe(per_channel=False, weight_type="int8", format="qdq"),
        )
    ),
]


@pytest.mark.parametrize("number", range(3))
def test_recipes_are_read(number: int, tmp_path: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert len(blocks) == len(EXPECTED)
    (tmp_path / "r.yaml").write_text(blocks[number])
    assert load_stages(tmp_path / "r.yaml") == EXPECTED[number]


@pytest.mark.parametrize(
    ("stages", "names"),
    [
        # The names of nodes are those of another model.
        ((replace(EXPECTED[0].stages[0], include=("Conv",)), EXPECTED[0].stages[1]), ["pruned", "quantized"]),
        ((replace(EXPECTED[1].stages[0], exclude=("c1",)),), ["quantized"]),
        (EXPECTED[2].stages, ["shrunk", "quantized"]),
    ],
)
def test_recipes_run(stages: tuple[Stage, ...], names: list[str]) -> None:
    case = HANDMADE["resnet_block"]()
    quick = onnxshot.Settings(bench_seconds=0.01)
    found = onnxshot.compress(case.model, case.feeds, recipe=Stages(stages), settings=quick)
    onnx.checker.check_model(found.model.to_proto())
    assert [row.name for row in found.report.stages] == ["input", *names]


def test_the_slider_is_monotone() -> None:
    levels = [i / 20 for i in range(21)]
    stages = [at_level(level, {}).stages for level in levels]
    assert stages[0] == (Recipe(),)
    shares = [s[0].sparsity for s in stages[1:] if isinstance(s[0], PruneStage)]
    assert shares == sorted(shares)
    assert len(set(shares)) == 20
    assert shares[-1] == MOST_SPARSITY
    efforts = [s[-1].effort for s in stages if isinstance(s[-1], Recipe)]
    assert efforts == ["balanced"] * 10 + ["best"] * 11


def test_options_of_the_slider() -> None:
    assert at_level(1, {"effort": "fast", "target": "openvino"}).stages[-1] == Recipe(target="openvino", effort="fast")


@pytest.mark.parametrize("level", [-0.1, 1.1, float("nan"), True, "half"])
def test_a_level_that_is_none(level: float) -> None:
    with pytest.raises(UsageError, match="the optim level is"):
        at_level(level, {})


def test_the_slider_makes_zeros_and_stands_alone() -> None:
    case, quick = HANDMADE["resnet_block"](), onnxshot.Settings(bench_seconds=0.01)
    half = onnxshot.compress(case.model, case.feeds, optim_level=0.5, settings=quick).report
    none = onnxshot.compress(case.model, case.feeds, optim_level=0.0, settings=quick).report
    assert [row.name for row in none.stages] == ["input", "quantized"]
    assert half.sparsity == pytest.approx(0.35, abs=0.02)
    assert none.sparsity < 0.05
    with pytest.raises(UsageError, match="beside sparsity"):
        onnxshot.compress(case.model, case.feeds, optim_level=0.5, sparsity=0.5)
    with pytest.raises(UsageError, match="beside a recipe"):
        onnxshot.compress(case.model, case.feeds, optim_level=0.5, recipe=Recipe())
