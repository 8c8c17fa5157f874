"""The README holds what the program holds, and its examples run."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

import onnxshot
from onnxshot.calibration.preprocess import load_preset, preset_names
from onnxshot.calibration.ranges import METHODS
from onnxshot.cli.app import app
from onnxshot.recipes.files import load_stages
from onnxshot.recipes.stages import PruneStage, kind_of
from onnxshot.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
YAML = re.findall(r"^```yaml\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_examples_run(number: int, tmp_path: Path) -> None:
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    done = subprocess.run([sys.executable, "-c", PYTHON[number]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_preset_example_loads(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(next(text for text in YAML if "kind:" in text))
    preset = load_preset(str(tmp_path / "p.yaml"))
    assert preset is not None
    assert preset.size == (256, 192)


def test_recipe_example_loads(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(next(text for text in YAML if "stages:" in text))
    stages = load_stages(tmp_path / "r.yaml", {"sparsity": "0.6"}).stages
    assert [kind_of(stage) for stage in stages] == ["shrink", "prune", "quantize"]
    assert isinstance(stages[1], PruneStage)
    assert stages[1].sparsity == 0.6


def test_commands_are_single_lines_and_ci_runs_the_second() -> None:
    commands = re.findall(r"^```sh\n(.*?)\n```", README, re.DOTALL | re.MULTILINE)
    assert len(commands) == 2
    assert not any("\n" in command for command in commands)
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def _commands(group: Any) -> Iterator[tuple[str, Any]]:
    """Every command by its full name, those of groups included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", found) for inner, found in _commands(command))
        else:
            yield name, command


def test_every_option_is_in_the_readme() -> None:
    told: dict[str, str] = {}
    for row in README.splitlines():
        if row.startswith("| `-"):
            _, names, commands, *_ = row.split("|")
            told |= dict.fromkeys(re.findall(r"--[a-z-]+", names), commands)
    for name, command in _commands(typer.main.get_command(app)):
        assert f"`onnxshot {name}" in README
        for option in (o for p in command.params for o in p.opts if o.startswith("--")):
            assert name in told[option] or "all" in told[option], f"{name} {option}"


@pytest.mark.parametrize("kind", [onnxshot.Goal, onnxshot.Recipe, onnxshot.Report, onnxshot.Settings])
def test_every_field_is_in_the_readme(kind: type) -> None:
    assert [f.name for f in fields(kind) if f"`{f.name}`" not in README] == []


def test_every_name_is_in_the_readme() -> None:
    names = [*preset_names(), *TARGETS, *METHODS, "ONNXSHOT_CACHE", "ONNXSHOT_DEBUG"]
    assert [name for name in names if f"`{name}`" not in README] == []
