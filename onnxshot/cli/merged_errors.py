"""Tensors that carry one error as one row: an error that later operators pass on has one SQNR in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

_SAME_DB = 0.1


class Erring(Protocol):
    """A compared tensor."""

    @property
    def sqnr_db(self) -> float:
        """Its SQNR in dB."""

    @property
    def depth(self) -> int | None:
        """Its place in the graph; None where it is not known."""


Row = TypeVar("Row", bound=Erring)


def merged(rows: Sequence[Row]) -> list[tuple[Row, int]]:
    """Rows with the number of tensors that each stands for, the worst first.

    Tensors that follow each other in the graph, among those compared, and whose SQNR differs by at most _SAME_DB are
    one row: that of the first of them, where the error arises.
    """
    runs: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -1 if row.depth is None else row.depth):
        first = runs[-1][0] if runs else None
        known = first is not None and row.depth is not None and first.depth is not None
        if first is not None and known and abs(row.sqnr_db - first.sqnr_db) <= _SAME_DB:
            runs[-1].append(row)
        else:
            runs.append([row])
    runs.sort(key=lambda run: min(row.sqnr_db for row in run))
    return [(run[0], len(run)) for run in runs]
