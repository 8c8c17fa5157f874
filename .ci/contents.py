"""Check what an sdist and a wheel hold. Argument: the folder that they lie in."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def tracked(*under: str) -> set[str]:
    """Files in these folders that git tracks or would add; in an sdist, which has no git, those that are there."""
    listing = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard", *under]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        found = (path.relative_to(ROOT).as_posix() for top in under for path in (ROOT / top).rglob("*.*"))
        return {name for name in found if not name.endswith((".pyc", ".pyo"))}
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def wheel_faults(path: Path) -> list[str]:
    """What a wheel lacks, or holds although it should not."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    package = tracked("onnxshot") | {f"onnxshot/{name}" for name in tracked("calibration")}
    inside = {name for name in names if ".dist-info/" not in name}
    faults = [f"{name} is missing" for name in sorted(package - inside)]
    faults += [f"{name} does not belong into it" for name in sorted(inside - package)]
    licensed = any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    return faults if licensed else [*faults, "the licence is missing"]


def sdist_faults(path: Path) -> list[str]:
    """What an sdist lacks of what a packager builds and tests with, or holds although it should not."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = tracked("onnxshot", "calibration", "tests", "docs", ".ci", "packaging")
    wanted |= {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "MANIFEST.in"}
    faults = [f"{name} is missing" for name in sorted(wanted - names)]
    return faults + [f"{name} does not belong into it" for name in sorted(names) if name.endswith((".pyc", ".pyo"))]


def main(folder: Path) -> int:
    """Print the faults; 1 if there are any."""
    faults: list[str] = []
    for pattern, check in (("*.whl", wheel_faults), ("*.tar.gz", sdist_faults)):
        found = sorted(folder.glob(pattern))
        faults += [f"{len(found)} files {pattern}"] if len(found) != 1 else []
        faults += [f"{path.name}: {fault}" for path in found for fault in check(path)]
    print("\n".join(faults) or f"{folder}: contents as they should be")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
