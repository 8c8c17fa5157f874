"""The files that a model is read from while it is in use, and whether they are still the same files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from onnxshot.errors import ModelError


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A file that holds weights of a model which is in memory without them: the .onnx file, or external data.

    Attributes:
        path: the file, with links followed.
        name: the external data location under which tensors refer to it; for the .onnx file, its name as the user
            gave it.
        size: its size in bytes when the model was loaded.
        changed: its time of change in ns then.
        number: its inode then.
    """

    path: Path
    name: str
    size: int
    changed: int
    number: int

    @classmethod
    def of(cls, path: Path, name: str = "") -> OwnFile:
        """Describe an existing file. name: the location by which tensors refer to it; by default the file's name.

        Raises:
            OSError: it cannot be read.
        """
        found = path.stat()
        return cls(path.resolve(), name or path.name, found.st_size, found.st_mtime_ns, found.st_ino)

    def check(self) -> None:
        """Check that the file has not changed since.

        Raises:
            ModelError: it was changed, replaced or removed.
        """
        try:
            found = self.path.stat()
        except OSError as e:
            what = f"{self.path} was removed while its weights were in use"
            raise ModelError(what, "keep the model where it is until the run has ended") from e
        if (found.st_size, found.st_mtime_ns, found.st_ino) != (self.size, self.changed, self.number):
            what = f"{self.path} was changed while its weights were in use"
            raise ModelError(what, "run again, and leave the file as it is until the run has ended")


def check_all(files: Iterable[OwnFile]) -> None:
    """Check that files have not changed since, each once. Raises ModelError as `OwnFile.check` does."""
    for file in dict.fromkeys(files):
        file.check()
