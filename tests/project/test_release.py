"""What is published: one version everywhere, metadata, the sdist and the wheel, the conda recipe, the CI of a forge."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import onnxshot

ROOT = Path(__file__).resolve().parents[2]
BUILT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT: dict[str, Any] = BUILT["project"]
RECIPE: dict[str, Any] = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text("utf-8"))
CI: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))


def test_one_place_states_the_version() -> None:
    assert "version" in PROJECT["dynamic"]
    assert BUILT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "onnxshot.__version__"}
    headings = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == onnxshot.__version__ == metadata.version("onnxshot") == RECIPE["context"]["version"]
    told = subprocess.run([sys.executable, "-m", "onnxshot", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout == f"onnxshot {onnxshot.__version__}\n"


def test_a_tag_is_the_version() -> None:
    found = subprocess.run(["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert [tag for tag in found.stdout.split() if tag.startswith("v")] in ([], [f"v{onnxshot.__version__}"])


def test_versions_of_python_are_those_that_ci_runs() -> None:
    lines = [text.rpartition(" :: ")[2] for text in PROJECT["classifiers"]]
    stated = [line for line in lines if re.fullmatch(r"3\.\d+", line)]
    assert stated == CI["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={stated[0]}"
    assert "Typed" in lines
    assert (ROOT / "onnxshot" / "py.typed").exists()
    classifiers = pytest.importorskip("trove_classifiers", reason="comes with no extra")
    assert set(PROJECT["classifiers"]) <= classifiers.classifiers


def test_the_ci_of_a_forge_runs_what_is_there() -> None:
    steps = [step for job in CI["jobs"].values() for step in job["steps"]]
    assert all(re.fullmatch(r"[\w/-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    scripts = [word for step in steps for word in step.get("run", "").split() if word.startswith(".ci/")]
    assert scripts == [".ci/static", ".ci/package"]
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)
    extras = re.findall(r"'\.\[(\w+)\]'", " ".join(step.get("run", "") for step in steps))
    assert set(extras) <= PROJECT["optional-dependencies"].keys()


def test_the_conda_recipe_asks_for_what_pyproject_asks_for() -> None:
    wanted = {re.sub(r"(?<=\w)(?=[<>=])", " ", text, count=1) for text in PROJECT["dependencies"]}
    python, *others = RECIPE["requirements"]["run"]
    assert set(others) == wanted
    assert f">={RECIPE['context']['python_min']}" == PROJECT["requires-python"]
    assert python == "python >=${{ python_min }}"
    (needed,) = BUILT["build-system"]["requires"]
    assert needed.replace(">=", " >=") in RECIPE["requirements"]["host"]
    ((name, place),) = PROJECT["scripts"].items()
    assert RECIPE["build"]["python"]["entry_points"] == [f"{name} = {place}"]
    assert RECIPE["about"]["summary"] == PROJECT["description"]
    assert RECIPE["about"]["license"] == PROJECT["license"]
    assert (ROOT / RECIPE["about"]["license_file"]).is_file()


def commands(text: str) -> list[str]:
    """Commands of a Dockerfile's RUN lines, with their lines joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [part.strip() for line in re.findall(r"^RUN (.+)$", joined, re.MULTILINE) for part in line.split("&&")]


def test_lines_of_the_dockerfile_are_valid() -> None:
    """Every line is an instruction; stages that are copied from exist; shell lines parse; flags of pip exist."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    known = "FROM|ARG|WORKDIR|COPY|RUN|ENV|USER|ENTRYPOINT|CMD"
    assert all(re.match(rf"({known}) \S", line) for line in lines if line.strip())
    stages = re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    assert set(re.findall(r"--from=(\w+)", text)) == set(stages)
    (minor,) = set(re.findall(r"^FROM python:(3\.\d+)-slim", text, re.MULTILINE))
    assert f"Programming Language :: Python :: {minor}" in PROJECT["classifiers"]
    options = subprocess.run([sys.executable, "-m", "pip", "install", "--help"], capture_output=True, text=True).stdout
    for command in commands(text):
        assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0, command
        if "pip install" in command:
            assert all(flag in options for flag in re.findall(r" (--[\w-]+)", command)), command
    (built,) = [line for line in lines if line.startswith("COPY pyproject")]
    assert set(built.split()[1:-1]) >= {"setup.py", "README.md", *PROJECT["license-files"]}
    needed = BUILT["build-system"]["requires"]
    assert any(f'"{needed[0]}"' in command for command in commands(text))


@pytest.mark.slow
def test_sdist_and_wheel_hold_what_they_should(tmp_path: Path) -> None:
    if shutil.which("twine", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") is None:
        pytest.skip("twine is not installed")
    if subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("git does not know this folder")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [ROOT / ".ci" / "package", tmp_path / "dist"], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = next((tmp_path / "dist").glob("*.whl"))
    shutil.unpack_archive(wheel, tmp_path / "unpacked", "zip")
    (info,) = (tmp_path / "unpacked").glob("*.dist-info")
    text = (info / "METADATA").read_text("utf-8")
    assert f"\nVersion: {onnxshot.__version__}\n" in text
    assert "\nClassifier: Typing :: Typed\n" in text
    # A check that cannot fail is none: without a file that belongs into it, the wheel is refused.
    (tmp_path / "unpacked" / "onnxshot" / "py.typed").unlink()
    (tmp_path / "unpacked" / "tests").mkdir()
    (tmp_path / "unpacked" / "tests" / "extra.py").touch()
    wheel.unlink()
    shutil.make_archive(str(wheel), "zip", tmp_path / "unpacked")
    Path(f"{wheel}.zip").rename(wheel)
    checked = [sys.executable, ROOT / ".ci" / "contents.py", tmp_path / "dist"]
    refused = subprocess.run(checked, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "onnxshot/py.typed is missing" in refused.stdout
    assert "tests/extra.py does not belong into it" in refused.stdout
