"""Compare the files that a run reads with those that it will write, and refuse conflicts before the work starts.

Two paths are the same file where the operating system says so, even through symbolic or hard links.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from onnxshot import system
from onnxshot.errors import UsageError
from onnxshot.files.links import follow_link
from onnxshot.files.regular_files import PICTURES
from onnxshot.files.temporary_folders import clear_dead

_OTHER = "choose another place"
OUTPUT_OPTION = "[[output|-o]]"

SAMPLES = (*PICTURES, ".npz", ".npy", ".pb")
"""Suffixes of the files that a folder of samples may hold."""

Foreign = Callable[[Path], str]
"""Returns the reason not to replace an existing file; empty where it may be replaced."""


@dataclass(frozen=True, slots=True)
class Read:
    """A file that a run reads, or a folder of samples.

    Attributes:
        path: of the file or folder.
        role: what messages call it, such as "the input".
        suffixes: of the files that are read in a folder, at any depth; hidden files are not read.
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
        """Whether a new file at this path would become a sample of this folder."""
        if not self.suffixes or not self.path.is_dir():
            return False
        folder, place = Path(os.path.realpath(self.path)), Path(os.path.realpath(path))
        return place.is_relative_to(folder) and self._takes(place.relative_to(folder))

    def _takes(self, name: Path) -> bool:
        return name.suffix.lower() in self.suffixes and not any(part.startswith(".") for part in name.parts)


@dataclass(frozen=True, slots=True)
class Write:
    """A file or folder that a run will write.

    Attributes:
        path: of the file or folder.
        role: what messages call it, such as "the report".
        foreign: checks an existing file; None where any may be replaced.
        folder: whether it is a folder, which is replaced as a whole.
        holds: files that the folder will contain and that could be taken for samples.
        option: the option to choose another path with; empty where there is none.
    """

    path: Path
    role: str
    foreign: Foreign | None = None
    folder: bool = False
    holds: tuple[str, ...] = ()
    option: str = OUTPUT_OPTION


@dataclass(frozen=True, slots=True)
class Files:
    """The files that a run reads and writes, as far as they are known before the work."""

    reads: tuple[Read, ...] = ()
    writes: tuple[Write, ...] = ()

    def reading(self, *reads: Read) -> Files:
        """A copy with more reads."""
        return Files((*self.reads, *reads), self.writes)

    def writing(self, *writes: Write) -> Files:
        """A copy with more writes; of two with the same path and role, the first is kept."""
        known = {(write.path, write.role): write for write in reversed((*self.writes, *writes))}
        return Files(self.reads, tuple(reversed(known.values())))

    def check(self) -> None:
        """Check that the writes are possible and destroy nothing.

        First, interrupted writes of killed runs at these paths are finished or undone.

        Raises:
            UsageError: a path cannot be written to; a file that is read would be overwritten; a new file would become a
                sample; two writes have the same path; or a file exists that must not be replaced.
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
                raise UsageError(what, f"move it away, or {_OTHER}{f' with {write.option}' if write.option else ''}")

    def _refuse_read(self) -> None:
        """Raise UsageError where a file that is read would be replaced, or a folder of samples would gain a file."""
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
    """The message for a write that would replace a file that is read."""
    if write.folder:
        return f"{write.role} {write.path} would replace the folder of {path}, which is {read.role}"
    elsewhere = "" if _spelled(write.path) == _spelled(path) else f", {path}"
    return f"{write.role} {write.path} is {read.role} itself{elsewhere}"


def _refuse_link(write: Write) -> Path:
    """The path that is written, with links followed. Raises UsageError for a link to where no file can be."""
    if write.folder:
        return write.path
    try:
        return follow_link(write.path)
    except UsageError as e:
        raise UsageError(f"{write.role} {e.message}", e.hint) from e


def _refuse_place(write: Write) -> None:
    """Raise UsageError where the file or folder cannot be written: wrong kind, no folder, or no permission."""
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
    if system.is_reserved(place.name):
        raise UsageError(f"cannot write {write.role} {write.path}: Windows has no file of that name", _OTHER)
    if not above.is_dir():
        raise UsageError(f"cannot write {write.role} {write.path}: {above} is no folder", _OTHER)
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {write.role} {write.path}: {above}: Permission denied", _OTHER)


def _refuse_meeting(writes: Iterable[Write]) -> None:
    """Raise UsageError where two writes have the same path, or one lies inside the other."""
    seen: dict[Path, Write] = {}
    for write in writes:
        other = seen.setdefault(Path(system.folded(os.path.realpath(write.path))), write)
        if other is not write:
            raise UsageError(f"{write.role} and {other.role} are both {write.path}", "give each a place of its own")
    for place, write in seen.items():
        above = next((seen[folder] for folder in (place.parent, *place.parent.parents) if folder in seen), None)
        if above is not None:
            what = f"{write.role} {write.path} lies in {above.path}, which is {above.role}"
            raise UsageError(what, "give each a place of its own")


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None where it does not exist."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _holds(folder: Path, path: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)


def _spelled(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # Path.absolute keeps the dots
