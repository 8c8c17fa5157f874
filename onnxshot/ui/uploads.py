"""Checks of uploaded files: names, sizes, and zip archives."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from onnxshot.ui.refused import TOO_LARGE, Refused

_LONGEST_NAME = 200  # bytes; file systems allow 255, and temporary files have longer names
_MOST_ENTRIES = 100_000
_DEEPEST = 16  # components of a path


def safe_name(name: str) -> str:
    """Return the name if it is a plain, visible file name. Raises Refused otherwise."""
    if name.startswith(".") or any(c in '/\\:"' or not c.isprintable() for c in name):
        raise Refused(f"{name!r} is no plain file name", "rename the file")
    if not 0 < len(name.encode("utf-8", "replace")) <= _LONGEST_NAME:
        raise Refused(f"the name {name[:20]!r}... is too long or empty", f"name it in 1 to {_LONGEST_NAME} bytes")
    return name


def safe_path(name: str) -> PurePosixPath:
    """Return a relative path such as `a/b.npz`. Raises Refused for unsafe names or too many components."""
    parts = name.split("/")
    if len(parts) > _DEEPEST:
        raise Refused(f"{parts[0]!r} has folders in folders, {len(parts) - 1} deep", f"at most {_DEEPEST - 1}")
    return PurePosixPath(*map(safe_name, parts))


def unpack(archive: Path, folder: Path, take: Callable[[int], None]) -> None:
    """Unpack a zip into a folder. All entries are checked before the first is written.

    Hidden entries, and those that macOS adds, are skipped.

    Args:
        archive: the zip file.
        folder: where its files go.
        take: called with the total of unpacked bytes before any is written; raises Refused if they exceed the limit.
            Archives that are unpacked at the same time therefore share one limit.

    Raises:
        Refused: the file is no zip or is encrypted, or it holds links, paths outside the folder, or files that already
            exist; and as `take` does.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir() and not _is_litter(entry.filename)]
            _check(archive.name, entries, folder)
            _count(archive.name, entries, take)
            for entry in entries:
                place = folder / entry.filename
                place.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as packed, place.open("xb") as written:
                    # zipfile reads no more than the stated size, which was checked.
                    shutil.copyfileobj(packed, written)
    except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, zlib.error) as e:
        raise Refused(f"{archive.name} cannot be unpacked: {e}", "pack it again as a plain zip") from e


def _count(name: str, entries: list[zipfile.ZipInfo], take: Callable[[int], None]) -> None:
    total = sum(entry.file_size for entry in entries)
    try:
        take(total)
    except Refused as e:
        raise Refused(f"{name} unpacks to {total / 1e6:.1f} MB: {e.message}", e.hint, e.status) from e


def _check(name: str, entries: list[zipfile.ZipInfo], folder: Path) -> None:
    if len(entries) > _MOST_ENTRIES:
        raise Refused(f"{name} holds {len(entries)} files", f"at most {_MOST_ENTRIES}", TOO_LARGE)
    for entry in entries:
        path = PurePosixPath(entry.filename)
        if path.is_absolute() or ".." in path.parts:
            raise Refused(f"{name} holds {entry.filename!r}, which lies outside of it", "pack it again")
        for part in path.parts:
            safe_name(part)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise Refused(f"{name} holds {entry.filename!r}, which is no plain file", "pack the files themselves")
        if entry.flag_bits & 1:
            raise Refused(f"{name} is encrypted", "pack it without a password")
        if (folder / path).exists():
            raise Refused(f"{name} holds {entry.filename!r}, which exists already", "give every file once")


def _is_litter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or any(part.startswith(".") and part != ".." for part in parts)
