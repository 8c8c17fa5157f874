"""The folder of a clone is a whole package by itself, whether onnxshot is installed or not, in its processes too."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from fixture_data import facts

ROOT = Path(__file__).resolve().parents[2]
MINE = (ROOT / "onnxshot").samefile
WHERE = "import onnxshot, onnxshot.calibration.readers as r; print(onnxshot.__file__); print(r.__file__)"
KNOWN = facts()["digits_mobile"]
MANIFEST = f"""
models:
  - {{model: fixtures/{KNOWN["file"]}, calib: fixtures/{KNOWN["calib"]}, preset: fixtures/{KNOWN["preset"]}}}
targets: [ort]
output: out
"""
SAMPLE = f"""
import onnxshot
known = dict(calib="fixtures/{KNOWN["calib"]}", preset="fixtures/{KNOWN["preset"]}")
done = onnxshot.quantize("fixtures/{KNOWN["file"]}", **known)
assert done.report.sqnr_db > 25, done.report.sqnr_db
"""
UI_WORKER = """
import json, subprocess
from onnxshot import source_tree
job = {"model": "none.onnx", "calib": ".", "preset": None, "output": "o.onnx", "target": "ort", "level": 0,
       "memory": None, "tokenizer": "", "length": 0, "effort": "", "searched": {}, "goals": {},
       "search_seconds": None, "accept": False}
with subprocess.Popen(source_tree.command("onnxshot.ui.worker"), env=source_tree.environment(), cwd="/", text=True,
                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
    process.stdin.write(json.dumps(job) + "\\n")
    process.stdin.flush()
    told = process.stdout.readline()
assert "none.onnx" in json.loads(told)["error"], told
"""


@pytest.fixture(params=["not installed", "an editable install of another clone"])
def python(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """A Python that has what onnxshot needs, and onnxshot not at all or from elsewhere."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    libraries = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    # A line of a .pth adds the folder and runs no .pth inside it: an editable install there stays out of sight.
    borrowed = "\n".join(path for path in sys.path if path.endswith("-packages"))
    bare = tmp_path / "bare"
    bare.mkdir()
    for folder in borrowed.splitlines():
        for entry in Path(folder).iterdir():
            if not entry.name.startswith(("onnxshot", "__editable__")) and not (bare / entry.name).exists():
                (bare / entry.name).symlink_to(entry)
    (libraries / "borrowed.pth").write_text(f"{bare}\n")
    if request.param != "not installed":
        other = tmp_path / "other"
        (other / "onnxshot").mkdir(parents=True)
        (other / "onnxshot" / "__init__.py").write_text("raise ImportError('the other clone')\n")
        (libraries / "other.pth").write_text(f"{other}\n")
    return [str(place / "bin" / "python")]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone's root: the package, what lies beside it, and a manifest."""
    root = tmp_path / "clone"
    root.mkdir()
    for name in ("onnxshot", "calibration"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "fixtures").symlink_to(ROOT / "fixtures")
    (root / "manifest.yaml").write_text(MANIFEST)
    return root


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV"))}
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_all_works_in_the_root_of_a_clone(python: list[str], clone: Path) -> None:
    found = run([*python, "-c", WHERE], clone).stdout.split()
    assert [Path(path).parent for path in found] == [clone / "onnxshot", clone / "calibration"]
    run([*python, "-c", SAMPLE], clone)
    run([*python, "-c", UI_WORKER], clone)
    run([*python, "-m", "onnxshot", "batch", "manifest.yaml"], clone)
    assert (clone / "out" / "summary.json").is_file()


def test_a_plain_install_works_in_the_root_of_a_clone(python: list[str], clone: Path, tmp_path: Path) -> None:
    """What `pip install .` leaves: calibration/ inside the package, and the command in another folder."""
    libraries = Path(sysconfig.get_path("purelib", vars={"base": str(Path(python[0]).parent.parent)}))
    (libraries / "other.pth").unlink(missing_ok=True)
    shutil.copytree(clone / "onnxshot", libraries / "onnxshot")
    shutil.copytree(clone / "calibration", libraries / "onnxshot" / "calibration")
    script = tmp_path / "venv" / "bin" / "onnxshot"
    script.write_text("from onnxshot.cli.app import entry\nentry()\n")
    run([*python, str(script), "batch", "manifest.yaml"], clone)
    assert (clone / "out" / "summary.json").is_file()
    found = run([*python, "-c", WHERE], clone).stdout.split()
    assert [Path(path).parent for path in found] == [clone / "onnxshot", clone / "calibration"]
    found = run([*python, "-c", WHERE], tmp_path).stdout.split()
    assert [Path(path).parent for path in found] == [libraries / "onnxshot", libraries / "onnxshot" / "calibration"]
    # `python -m` searches the working folder first: a worker must not, or a user's `yaml.py` would be its library.
    (clone / "yaml.py").write_text("raise SystemExit(9)\n")
    shutil.rmtree(clone / "onnxshot")
    (clone / "manifest.yaml").write_text(MANIFEST.replace("output: out", "output: again"))
    run([*python, str(script), "batch", "manifest.yaml"], clone)
    assert (clone / "again" / "summary.json").is_file()


@pytest.mark.slow
def test_tasks_of_a_cluster_find_the_package_of_a_clone(python: list[str], clone: Path) -> None:
    pytest.importorskip("ray")
    run([*python, "-m", "onnxshot", "batch", "manifest.yaml", "--engine", "ray"], clone)
    assert (clone / "out" / "summary.json").is_file()
