"""Sessions of model files that are run several times in a row, such as compared first and timed afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxshot import memory
from onnxshot.errors import ModelError
from onnxshot.runtimes.ort_runtime import Runnable, Runner, stored_bytes

_SHARE = 4  # of the held bytes: larger files are opened again, so that they need not stay in memory meanwhile


class OpenModels:
    """Opens files, and keeps the sessions of small ones.

    Args:
        files: The files whose sessions are kept, if all together are small.
        threads: CPU threads of each session.
        whole: Keep the sessions of larger files too, each in one session that maps its weights; for models that run
            many times in a row.
    """

    def __init__(self, files: Sequence[Path], threads: int, *, whole: bool = False) -> None:
        self.threads, self.whole = threads, whole
        self._files = frozenset(files) if whole or _are_small(files) else frozenset[Path]()
        self._open: dict[Path, Runner] = {}

    def keeps(self, model: Runnable) -> bool:
        """Whether the session of a model is kept."""
        return isinstance(model, Path) and model in self._files

    def runner(self, model: Path) -> Runner:
        """The file, loaded once; with all optimizations, and all outputs that can be one array each."""
        if model not in self._open:
            self._open[model] = Runner(model, threads=self.threads, whole=True, split=not self.whole)
        return self._open[model]


def _are_small(files: Sequence[Path]) -> bool:
    try:
        return sum(map(stored_bytes, files)) <= memory.held_bytes() // _SHARE
    except ModelError:
        return False
