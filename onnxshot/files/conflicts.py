"""The files that a run has read and those that it will write, held against each other before the work.

Files are the same where they are one file to the system, whatever their names: links and hard links count.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from onnxshot.errors import UsageError
from onnxshot.files.links import follow_link
from onnxshot.files.regular_files import PICTURES
from onnxshot.files.temporary_folders import clear_dead

_OTHER = "choose another place"
OUTPUT_OPTION = "-o"

SAMPLES = (*PICTURES, ".npz", ".npy", ".pb")
"""Suffixes of the files that a folder of samples may hold."""

Foreign = Callable[[Path], str]
"""What speaks against replacing a file that is there, in words; empty where it may be replaced."""


@dataclass(frozen=True, slots=True)
class Read:
    """A file that a run reads, or a folder of samples.

    Attributes:
        path: of the file, or of the folder.
        role: what it is to the run, such as "the input".
        suffixes: of the files in the folder that are read, at any depth, hidden ones not among them.
    """

    path: Path
    role: str
    suffixes: tuple[str, ...] = ()

    def files(self) -> Iterator[Path]:
        """Every file that is read."""
        if not self.path.is_dir():
            yield self.path
            return
        for path in self.path.rglob("*"):
            if self._takes(path.relative_to(self.path)):
                yield path

    def would_take(self, path: Path) -> bool:
        """Whether a new file would be read by the next run that is given this folder."""
        if not self.suffixes or not self.path.is_dir():
            return False
        folder, place = Path(os.path.realpath(self.path)), Path(os.path.realpath(path))
        return place.is_relative_to(folder) and self._takes(place.relative_to(folder))

    def _takes(self, name: Path) -> bool:
        return name.suffix.lower() in self.suffixes and not any(part.startswith(".") for part in name.parts)


@dataclass(frozen=True, slots=True)
class Write:
    """A file that a run will write, or a folder that it will put in the place of another.

    Attributes:
        path: where.
        role: what it is, such as "the report".
        foreign: asked of what is there already; None where the user has named the file, and so what is replaced.
        folder: whether it is a folder, replaced as a whole.
        holds: what will lie in it that a folder of samples above it would gain.
        option: what the user names another place with.
    """

    path: Path
    role: str
    foreign: Foreign | None = None
    folder: bool = False
    holds: tuple[str, ...] = ()
    option: str = OUTPUT_OPTION


@dataclass(frozen=True, slots=True)
class Files:
    """What a run reads and writes, as far as it is known; made before the work, and checked before it."""

    reads: tuple[Read, ...] = ()
    writes: tuple[Write, ...] = ()

    def reading(self, *reads: Read) -> Files:
        """With these too."""
        return Files((*self.reads, *reads), self.writes)

    def writing(self, *writes: Write) -> Files:
        """With these too; what is known under the same path and role stays as it was told first."""
        known = {(write.path, write.role): write for write in reversed((*self.writes, *writes))}
        return Files(self.reads, tuple(reversed(known.values())))

    def check(self) -> None:
        """Raise UsageError where a file that is read would be written, or two writes meet, or a file is not ours.

        So it does where a place cannot be written to: it is a folder, a device or a pipe, or its folder is none. What
        a run that was killed has left at these places is finished or taken back first.
        """
        for folder in {_refuse_link(write).parent for write in self.writes}:
            clear_dead(folder)
        for write in self.writes:
            _refuse_place(write)
        _refuse_meeting(self.writes)
        self._refuse_read()
        for write in self.writes:
            if write.foreign is not None and os.path.lexists(write.path) and (why := write.foreign(write.path)):
                what = f"{write.role} {write.path} would replace a file that is there: {why}"
                raise UsageError(what, f"move it away, or choose another place with {write.option}")

    def _refuse_read(self) -> None:
        """Raise UsageError where what is read would be replaced, or where a folder of samples would gain one."""
        there = {key: write for write in self.writes if (key := _identity(write.path)) is not None}
        whole = [write for write in self.writes if write.folder and write.path.exists()]
        trees = [(Path(os.path.realpath(write.path)), write) for write in whole]
        for read in self.reads:
            for path in read.files() if there or trees else ():
                written = there.get(_identity(path) or (0, 0))
                written = written or next((w for folder, w in trees if _holds(folder, path)), None)
                if written is not None:
                    raise UsageError(_met(written, read, path), _OTHER)
            for write in self.writes:
                places = (write.path, *(write.path / name for name in write.holds))
                if taken := next(filter(read.would_take, places), None):
                    what = f"{write.role} {taken} would be {read.role} in {read.path} from then on"
                    raise UsageError(what, _OTHER)


def _met(write: Write, read: Read, path: Path) -> str:
    """In words: what would be written is what is read."""
    if write.folder:
        return f"{write.role} {write.path} would replace the folder of {path}, which is {read.role}"
    elsewhere = "" if _spelled(write.path) == _spelled(path) else f", {path}"
    return f"{write.role} {write.path} is {read.role} itself{elsewhere}"


def _refuse_link(write: Write) -> Path:
    """What will be written. Raises UsageError where that is a link which leads to no place for a file."""
    if write.folder:
        return write.path
    try:
        return follow_link(write.path)
    except UsageError as e:
        raise UsageError(f"{write.role} {e.message}", e.hint) from e


def _refuse_place(write: Write) -> None:
    """Raise UsageError where nothing of this kind can be written there."""
    place = _refuse_link(write)
    try:
        mode = write.path.stat().st_mode if write.path.exists() else None
        above = next(folder for folder in (place.parent, *place.parent.parents) if folder.exists())
    except (OSError, ValueError) as e:  # a name that is too long, or holds a zero byte
        reason = e.strerror if isinstance(e, OSError) else e
        raise UsageError(f"cannot write {write.role} {str(write.path)[:200]}: {reason}", _OTHER) from e
    if mode is not None and not write.folder:
        if stat.S_ISDIR(mode):
            raise UsageError(f"{write.role} {write.path} is a folder", "name the file in it")
        if not stat.S_ISREG(mode):
            raise UsageError(f"{write.role} {write.path} is no regular file", _OTHER)
    if not above.is_dir():
        raise UsageError(f"cannot write {write.role} {write.path}: {above} is no folder", _OTHER)
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {write.role} {write.path}: {above}: Permission denied", _OTHER)


def _refuse_meeting(writes: Iterable[Write]) -> None:
    """Raise UsageError where two writes are of one file, or one lies in what the other is."""
    seen: dict[Path, Write] = {}
    for write in writes:
        other = seen.setdefault(Path(os.path.realpath(write.path)), write)
        if other is not write:
            raise UsageError(f"{write.role} and {other.role} are both {write.path}", "give each a place of its own")
    for place, write in seen.items():
        above = next((seen[folder] for folder in (place.parent, *place.parent.parents) if folder in seen), None)
        if above is not None:
            what = f"{write.role} {write.path} lies in {above.path}, which is {above.role}"
            raise UsageError(what, "give each a place of its own")


def _identity(path: Path) -> tuple[int, int] | None:
    """What the system knows a file by; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _holds(folder: Path, path: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)


def _spelled(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # Path.absolute keeps the dots
