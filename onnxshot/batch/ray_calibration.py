"""Calibration in parts by tasks of a cluster: which cells it serves, and what becomes of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnxshot.batch.cells import Cell
from onnxshot.batch.worker import settings_of
from onnxshot.calibration.readers import split
from onnxshot.errors import OnnxshotError
from onnxshot.execution.observed_tensors import calibration_pass
from onnxshot.execution.sharding import Shard, ShardedPass, ShardResult, run_shard
from onnxshot.execution.statistics_source import HOLDOUT
from onnxshot.recipes.recipe import Recipe
from onnxshot.stages.open_samples import open_samples
from onnxshot.stages.prepare_model import Prepared, prepare_model

_NO_MATTER = (  # to what a pass looks at
    "target", "format", "per_channel", "effort", "method", "grid", "equalize", "smooth", "clip", "weight_method",
    "exclude", "concat_ratio", "block",
)  # fmt: skip
_HOW = {"threads": 1, "use_cache": False}


@dataclass(slots=True)
class Pass:
    """A pass over samples that some cells share.

    Attributes:
        cells: those that wait for it.
        sharded: how far it is.
        tasks: how many there were.
        told: what came of it, in words.
        keys: place of a cell -> the key of the statistics of its own pass.
        waiting: tasks of this round that are not done.
        parts: of this round.
        failed: why it was given up; empty where it was not.
    """

    cells: list[Cell]
    sharded: ShardedPass
    tasks: int = 0
    told: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    waiting: int = 0
    parts: list[ShardResult] = field(default_factory=list)
    failed: str = ""

    def begin(self) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """What the tasks of the next round are given."""
        shares, cells = self.sharded.shares(), [cell.to_dict() for cell in self.cells]
        self.parts, self.waiting, self.tasks = [], len(shares), self.tasks + len(shares)
        return [(cells, asdict(share)) for share in shares]

    def add(self, found: tuple[ShardResult | None, dict[str, str]] | None, failed: str) -> bool:
        """Take in what a task gave, or why it gave nothing; whether it was the last of its round."""
        part, keys = found or (None, {})
        self.waiting -= 1
        self.keys |= keys
        self.failed = self.failed or failed or ("" if part is not None else "nothing is to be observed")
        if part is not None:
            self.parts.append(part)
        return self.waiting == 0

    def serves(self, cell: Cell) -> bool:
        """Whether its statistics are those that the cell's own pass would give."""
        return not self.failed and self.sharded.head is not None and self.keys.get(cell.place) == self.sharded.head.key

    def told_of(self, cell: Cell) -> str:
        """How a cell is calibrated, in words."""
        if self.failed:
            return f"by itself: {self.failed}"
        return self.told if self.serves(cell) else "by itself: it looks at other tensors than the cells before it"

    def save(self, folder: Path) -> bool | None:
        """Write the statistics, by their key, where the pass is at its end; None where there is another round to come.

        False where it is given up: each cell calibrates by itself then, and tells what is wrong.
        """
        try:
            found = None if self.failed else self.sharded.add(self.parts)
        except ValueError as e:
            self.failed = str(e)
        if self.failed:
            return False
        if found is None:
            return None
        assert self.sharded.head is not None
        found.save(folder / f"{self.sharded.head.key}.npz")
        self.told = f"{self.sharded.used} samples in {self.tasks} tasks"
        return True


def alone(cell: Cell, cpus: int) -> str:
    """Why a cell calibrates by itself, if at all; empty where its calibration goes into parts."""
    entry, stages = cell.entry, cell.stages.stages
    first = stages[0]
    if len(stages) > 1:
        return "each stage calibrates on what the stage before it has made"
    if not isinstance(first, Recipe) or first.mode != "static" or not first.quantizes:
        return "its recipe needs no ranges"
    if entry.stats is not None:
        return "its statistics were given"
    if entry.calib in (None, "random"):
        return "there are no samples" if entry.calib is None else "noise is made where it is used"
    return "the cluster has one CPU" if cpus < 2 else ""


def shared_by(cell: Cell) -> str:
    """What cells have in common that one pass may serve; whether it does, the keys of their own passes tell."""
    (recipe,) = cell.stages.stages
    watched = {name: value for name, value in recipe.to_dict().items() if name not in _NO_MATTER}
    entry = cell.entry
    return json.dumps([entry.model, entry.calib, entry.preset, entry.samples, entry.seed, watched], sort_keys=True)


def settles(cell: Cell) -> bool:
    """Whether its calibration ends when the ranges have settled."""
    return cell.entry.samples == "auto"


def calibrated_part(
    cells: Sequence[Mapping[str, Any]], share: Mapping[str, Any]
) -> tuple[ShardResult | None, dict[str, str]]:
    """A task: a share of the pass of the first of these cells; and, in the first share, the keys of all their passes.

    No share where nothing is to be observed.
    """
    cell, *others = map(Cell.from_dict, cells)
    prepared, settings, mine = _prepared(cell), settings_of(cell, _HOW), Shard(**share)
    plan, data = prepared.plan(), open_samples(prepared, cell.entry.calib, cell.entry.preset).data
    if not plan.observe or data is None:
        return None, {}
    with data:
        chosen = data.subset(split(len(data), HOLDOUT)[0])
        watch = calibration_pass(prepared.model, plan, prepared.recipe, chosen, settings)
        part = run_shard(watch, mine, prepared.recipe, settings)
        if part.head is None:
            return part, {}
        keys = {cell.place: part.head.key}
        for other in others:
            with contextlib.suppress(OnnxshotError):  # the cell tells it
                one = _prepared(other)
                watch = calibration_pass(one.model, one.plan(), one.recipe, chosen, settings)
                keys[other.place] = watch.key(part.head.digests, one.recipe, settings.device)
        return part, keys


def _prepared(cell: Cell) -> Prepared:
    (recipe,) = cell.stages.stages
    assert isinstance(recipe, Recipe)
    return prepare_model(cell.entry.model, recipe, settings_of(cell, _HOW))
