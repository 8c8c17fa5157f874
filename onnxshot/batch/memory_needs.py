"""The memory of cells: the budget that each gets, and what it will probably take."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxshot import memory
from onnxshot.batch.cells import Cell
from onnxshot.errors import ModelError
from onnxshot.graph.load import external_files

BASE_MB, PER_MB = 200, 25
"""Estimated memory of a cell: a base, and MB per MB of its weights up to its budget. A CNN of 14 MB took 573 MB."""


def share_of(given: int | str | None, workers: int, max_memory_mb: float | None = None) -> int:
    """The memory budget of one cell in bytes.

    Args:
        given: budget of all workers together, as in `Settings`. None: each gets what a run alone would get, or less
            where that does not fit the free memory, or `max_memory_mb`.
        workers: number of cells that run at once.
        max_memory_mb: limit of all processes in MB of 10^6 bytes.

    Raises:
        UsageError: `given` is no size.
    """
    most = memory.parsed(given)
    if most is None:
        left = memory.free_bytes() if max_memory_mb is None else max_memory_mb * 1e6  # it may be infinite
        return max(int(min(memory.default_budget(), left / workers)), memory.LEAST)
    return max(most // workers, memory.LEAST)


@dataclass(slots=True)
class Needs:
    """Estimates of the memory that cells take.

    Attributes:
        budget: memory budget in bytes of a cell that has none of its own.
        measured_mb: name of a model -> highest memory in MB that one of its cells took.
    """

    budget: int = memory.MOST
    measured_mb: dict[str, float] = field(default_factory=dict)

    def learn(self, cell: Cell, row: Mapping[str, Any]) -> None:
        """Note what a cell took that succeeded, in this batch or an earlier one."""
        took = row.get("peak_rss_mb")
        if "error" not in row and isinstance(took, int | float) and took > 0:
            self.measured_mb[cell.name] = max(took, self.measured_mb.get(cell.name, 0.0))

    def mb(self, cell: Cell) -> float:
        """What a cell will probably take, in MB: what another one of its model took, else by its size and budget."""
        if cell.name in self.measured_mb:
            return self.measured_mb[cell.name]
        path = Path(cell.entry.model)
        weights = max(map(_bytes, path.rglob("*.onnx")), default=0) if path.is_dir() else _bytes(path)
        return BASE_MB + min(PER_MB * weights, memory.parsed(cell.entry.memory) or self.budget) / 1e6


def _bytes(model: Path) -> int:
    """Bytes of a model's file and of its external data, as far as they are there."""
    files = [model]
    with contextlib.suppress(ModelError):
        files += external_files(model)
    return sum(path.stat().st_size for path in files if path.is_file())
