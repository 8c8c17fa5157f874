"""What is deployed around the package: the wheel, the image, the workflow."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixture_data import facts, fixture

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / "docs" / "github-actions.yml").read_text())
(JOB,) = WORKFLOW["jobs"].values()
RUNS = {step["name"]: step["run"] for step in JOB["steps"] if "run" in step}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder such as the workflow is meant for, and a command `onnxshot` on the path."""
    known = facts()["digits_mobile"]
    (tmp_path / "models").mkdir()
    shutil.copyfile(fixture("digits_mobile"), tmp_path / "models" / "net.onnx")
    shutil.copytree(fixture(known["calib"]), tmp_path / "calib")
    shutil.copyfile(fixture(known["preset"]), tmp_path / "calib.yaml")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "onnxshot"
    command.write_text(f"#!{sys.executable}\nfrom onnxshot.cli.app import entry\nentry()\n")
    command.chmod(0o755)
    return tmp_path


def run(repository: Path, step: str, **environment: str) -> int:
    """Exit code of a step, as a runner executes it."""
    path = f"{repository / 'bin'}{os.pathsep}{os.environ['PATH']}"
    values = {**os.environ, **JOB["env"], **environment, "PATH": path, "ONNXSHOT_CACHE": str(repository / "cache")}
    return subprocess.run(["bash", "-e", "-c", RUNS[step]], cwd=repository, env=values, capture_output=True).returncode


@pytest.mark.slow
def test_the_workflow_gates_a_model(repository: Path) -> None:
    assert run(repository, "quantize") == 0
    assert run(repository, "verify") == 0
    report = json.loads((repository / "out" / "report.json").read_text())
    assert report["sqnr_db"] > float(JOB["env"]["MIN_SQNR"])
    assert run(repository, "quantize", MIN_SQNR="150", MAX_SIZE="0.1") == 3
    assert json.loads((repository / "out" / "report.json").read_text())["goal"]["missed"]
    (repository / "out" / "bundle" / "report.json").write_text("{}")
    assert run(repository, "verify") == 4


def test_the_workflow_uploads_whatever_happens() -> None:
    assert True in WORKFLOW or "on" in WORKFLOW  # YAML 1.1 reads the key `on` as true
    upload = next(step for step in JOB["steps"] if "upload-artifact" in step.get("uses", ""))
    assert upload["if"] == "always()"
    assert all(re.fullmatch(r"[\w/-]+@v\d+", step["uses"]) for step in JOB["steps"] if "uses" in step)
    assert "onnxshot" in RUNS["install"]


def test_the_image_copies_what_its_build_reads() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (?!--)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept
    assert re.search(r"^USER onnxshot$", text, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["onnxshot"\]$', text, re.MULTILINE)
    assert "apt-get" not in text


@pytest.mark.slow
def test_a_wheel_installs_clean_and_quantizes(tmp_path: Path) -> None:
    """The pip commands of the Dockerfile, with the copied files alone, in a fresh environment."""
    source = tmp_path / "src"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "onnxshot", "calibration"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    place = tmp_path / "venv"
    (block,) = re.findall(
        r"^RUN (python -m venv .*?[^\\])\n\n", (ROOT / "Dockerfile").read_text(), re.DOTALL | re.MULTILINE
    )
    script = (
        block.replace("\\\n", " ").replace("/opt/onnxshot", str(place)).replace("python -m", f"{sys.executable} -m")
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    subprocess.run(["bash", "-e", "-c", script], cwd=source, env={**clean, "EXTRAS": ""}, check=True)
    known, out = facts()["digits_mobile"], tmp_path / "out.onnx"
    command = [place / "bin" / "onnxshot", "quantize", fixture("digits_mobile"), "--calib", fixture(known["calib"])]
    command += ["--preset", fixture(known["preset"]), "-o", out, "--json"]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sqnr_db"] > 25
    assert not list((place / "lib").rglob("torch"))


def test_every_folder_of_code_and_every_file_it_reads_is_installed() -> None:
    """A package that is missing in the list is missing in a plain install alone, which no other test here uses."""
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    inside = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "onnxshot").rglob("*.py")}
    beside = {"onnxshot." + ".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "calibration").rglob("*.py")}
    assert set(built["packages"]) == inside | beside
    data = {path.relative_to(ROOT) for top in ("onnxshot", "calibration") for path in (ROOT / top).rglob("*.*")}
    for path in sorted(p for p in data if p.suffix not in (".py", ".pyc", ".pyo")):
        package = ".".join(path.parent.parts if path.parts[0] == "onnxshot" else ("onnxshot", *path.parent.parts))
        globs = built["package-data"].get(package, [])
        assert any(path.match(glob) for glob in globs), f"{path} is not in package-data"


def test_the_lowest_versions_are_those_that_are_declared() -> None:
    root = Path(__file__).resolve().parents[2]
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in declared)  # type: ignore[union-attr]
    lines = [line for line in (root / "tests" / "lowest.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    assert pinned.keys() == wanted.keys()
    for name, version in pinned.items():
        assert f"{version}.".startswith(f"{wanted[name]}."), name


@pytest.mark.parametrize("name", [*sorted(p.name for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ""])
def test_forms_and_hooks_are_yaml(name: str) -> None:
    path = ROOT / ".github" / "ISSUE_TEMPLATE" / name if name else ROOT / ".pre-commit-config.yaml"
    found = yaml.safe_load(path.read_text("utf-8"))
    for hook in found.get("repos", [{"hooks": []}])[0]["hooks"]:
        assert (ROOT / hook["entry"]).is_file()
    for field in found.get("body", []):
        assert {"type", "id", "attributes"} <= set(field)


@pytest.mark.parametrize(
    ("known", "link", "picture"),
    [
        (
            {"GITHUB_SERVER_URL": "https://x.org", "GITHUB_REPOSITORY": "a/b", "GITHUB_REF_NAME": "v1.0"},
            "[limits](https://x.org/a/b/blob/v1.0/docs/limits.md)",
            "![p](https://x.org/a/b/raw/v1.0/docs/p.svg)",
        ),
        ({}, "limits", ""),
    ],
)
def test_an_index_shows_absolute_links_or_none(
    known: dict[str, str], link: str, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tomllib, "loads", lambda _: {"project": {}})  # no address but that of the environment
    build = runpy.run_path(str(ROOT / "setup.py"))
    base = build["address"](known)
    text = "![p](docs/p.svg)[limits](docs/limits.md) [up](#top) [x](https://x.org)"
    assert build["absolute"](text, base) == f"{picture}{link} [up](#top) [x](https://x.org)"
    shown = build["absolute"]((ROOT / "README.md").read_text("utf-8"), base)
    assert re.findall(r"\]\((?!https?://|#)", shown) == []
