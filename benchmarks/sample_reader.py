"""Read samples as the quantizers of other tools do. It needs numpy alone, as it runs in the tools' own environments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Feed = dict[str, Any]


def feeds(folder: str) -> Iterator[Feed]:
    """The samples of a folder of .npz files."""
    for path in sorted(Path(folder).glob("*.npz")):
        yield dict(np.load(path))


class Reader:
    """The samples of a folder, one at a time and again from the start, as ONNX Runtime's quantizers ask for them."""

    def __init__(self, folder: str) -> None:
        self.every = list(feeds(folder))  # not a generator, which cannot be copied: they copy their readers
        self.rewind()

    def get_next(self) -> Feed | None:
        return self.left.pop(0) if self.left else None

    def __iter__(self) -> Iterator[Feed]:
        return self

    def __next__(self) -> Feed:
        if not self.left:
            raise StopIteration
        return self.left.pop(0)

    def __len__(self) -> int:
        return len(self.every)

    def rewind(self) -> None:
        self.left = list(self.every)
