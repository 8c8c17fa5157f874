"""The manifest of a bundle: SHA-256 of every file. It is written last, and nothing in it is trusted when it is read."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from onnxshot.errors import ModelError

NAME = "manifest.json"
FORMAT, VERSION = "onnxshot bundle", 1
_MOST_BYTES = 4 << 20  # most bytes of the manifest itself
_MOST_FILES = 10_000
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the bundle: SHA-256 of its content as hex digits, and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Made:
    """A model of the bundle: the file to load, its format, and its target."""

    file: str
    format: str
    target: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of a bundle.

    Attributes:
        files: entries by path in the bundle, with slashes. The manifest itself is not listed.
        artifacts: the models.
        samples: paths of the .npz files with inputs and expected outputs.
        random: True if the samples are random.
        machine: versions of the packages, and the CPU, that made the expected outputs.
        left_out: files beside the input model that were not copied, with the reason.
    """

    files: Mapping[str, Entry]
    artifacts: tuple[Made, ...]
    samples: tuple[str, ...]
    random: bool = False
    machine: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write manifest.json into the bundle."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        (folder / NAME).write_text(text, encoding="utf-8", errors="backslashreplace")


def entry_of(path: Path) -> Entry:
    """Hash a file, reading one MiB at a time."""
    sha, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
            size += len(chunk)
    return Entry(sha.hexdigest(), size)


def files_of(folder: Path) -> Iterator[str]:
    """Yield the relative paths of all files of a folder except the manifest, sorted. Links count as files."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != NAME and (path.is_symlink() or not path.is_dir()):
            yield name


def read_manifest(folder: Path) -> Manifest:
    """Read and validate the manifest of a bundle. Raises ModelError if it is missing or invalid."""
    path = folder / NAME
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_BYTES:
            raise ModelError(f"{path} is no manifest: it is a link, not a regular file, or over {_MOST_BYTES >> 20} MB")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        hint = "give a folder that [[onnxshot.bundle|--bundle]] made"
        raise ModelError(f"{folder} is no bundle: {NAME}: {e.strerror}", hint) from e
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path} is no manifest: {type(e).__name__}") from e
    try:
        return _parsed(values)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ModelError(f"{path} is no manifest that this version can read: {type(e).__name__}: {e}") from e


def _parsed(values: Any) -> Manifest:
    if values["format"] != FORMAT or values["version"] != VERSION:
        raise ValueError(f"format {values['format']!r}, version {values['version']!r}")
    if len(values["files"]) > _MOST_FILES:
        raise ValueError(f"{len(values['files'])} files")
    files = {_text(name): Entry(_text(e["sha256"]), int(e["bytes"])) for name, e in values["files"].items()}
    made = tuple(Made(_text(a["file"]), _text(a["format"]), _text(a["target"])) for a in values["artifacts"])
    samples = tuple(map(_text, values["samples"]))
    if unknown := [name for name in (*(a.file for a in made), *samples) if name not in files]:
        raise ValueError(f"{unknown[0]!r} is not among its files")
    return Manifest(files, made, samples, values["random"] is True, dict(values["machine"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check the hash of every file. Raises ModelError for a file outside the folder, a link, or a changed file."""
    for name, entry in manifest.files.items():
        path = _inside(folder, name)
        try:
            found = path.lstat()
        except (OSError, ValueError) as e:
            raise ModelError(f"{folder}: {name!r} is missing") from e
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"{folder}: {name!r} is no regular file")
        if found.st_size != entry.bytes:
            raise ModelError(f"{folder}: {name!r} holds {found.st_size} bytes, not {entry.bytes}", "it was changed")
        if entry_of(path) != entry:
            raise ModelError(f"{folder}: {name!r} has another SHA-256 than the manifest says", "it was changed")


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a file of the bundle. Raises ModelError if it leaves the bundle or goes through a link."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or ":" in parts[0]:
        raise ModelError(f"{folder}: the path {name!r} leaves the bundle")
    path = folder
    for part in parts:
        if path is not folder and path.is_symlink():
            raise ModelError(f"{folder}: the path {name!r} goes through a link")
        path = path / part
    return path
