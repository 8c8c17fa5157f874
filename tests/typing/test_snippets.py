"""mypy in strict mode accepts typical use, and refuses typical mistakes where they stand."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import get_type_hints

import pytest

import onnxshot
from onnxshot.recipes.layer_rule import LayerRule
from onnxshot.recipes.recipe_options import LayerOptions, RecipeOptions

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SNIPPETS = sorted(HERE.glob("*/*.py"))


def expected() -> set[tuple[str, int, str]]:
    lines = ((path, i, line) for path in SNIPPETS for i, line in enumerate(path.read_text("utf-8").splitlines(), 1))
    marks = ((path, i, re.search(r"# wrong: (\S+)$", line)) for path, i, line in lines)
    return {(path.name, i, found[1]) for path, i, found in marks if found}


def judged(folder: Path, *options: str, cache: Path) -> set[tuple[str, int, str]]:
    """The errors that mypy finds in the snippets: (file, line, code)."""
    pytest.importorskip("mypy")
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), *options, *map(str, SNIPPETS)],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "MYPYPATH": ""},
    )  # fmt: skip
    assert ran.returncode == 1, ran.stdout + ran.stderr
    found = [re.search(r"([^/:]+\.py):(\d+): error: .*\[([\w-]+)\]$", line) for line in ran.stdout.splitlines()]
    errors = {(match[1], int(match[2]), match[3]) for match in found if match}
    assert f"Found {len(errors)} errors in" in ran.stdout, ran.stdout  # no other file has any
    return errors


def test_there_are_ten_right_and_ten_wrong() -> None:
    wrong = {name for name, _, _ in expected()}
    assert wrong == {path.name for path in (HERE / "wrong").iterdir() if path.suffix == ".py"}
    assert len(wrong) == len(SNIPPETS) - len(wrong) == 10


@pytest.mark.slow
def test_mypy_judges_the_snippets_rightly(tmp_path: Path) -> None:
    """.ci/static runs it, behind the check of the package, whose cache makes it a matter of seconds."""
    shutil.copytree(ROOT / "onnxshot", tmp_path / "onnxshot", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "calibration", tmp_path / "onnxshot/calibration", dirs_exist_ok=True)
    config = str(ROOT / "pyproject.toml")
    assert judged(tmp_path, "--config-file", config, cache=ROOT / ".mypy_cache") == expected()


@pytest.mark.slow
def test_an_installed_wheel_is_typed(tmp_path: Path) -> None:
    """The wheel in an environment of its own: mypy follows it for its py.typed alone."""
    built = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT]
    subprocess.run(list(map(str, built)), check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    base = str(tmp_path / "venv")
    site = Path(sysconfig.get_path("purelib", "venv", {"base": base, "platbase": base}))
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    own = Path(str(importlib.import_module("numpy").__file__)).parents[1]
    (site / "others.pth").write_text(f"{own}\n", encoding="utf-8")
    python = str(tmp_path / "venv/bin/python")
    assert judged(tmp_path, "--python-executable", python, cache=tmp_path / "cache") == expected()


@pytest.mark.parametrize(("options", "fields"), [(RecipeOptions, onnxshot.Recipe), (LayerOptions, LayerRule)])
def test_options_are_the_fields(options: type, fields: type) -> None:
    """Options take lists where a recipe, which is frozen, holds tuples."""
    asked, held = get_type_hints(options), get_type_hints(fields)
    assert asked.keys() == held.keys()
    differ = {name for name in held if asked[name] != held[name]}
    assert differ <= {"exclude", "include", "layers", "shapes"}
