"""TensorBoard: scalars, the error of the layers as a curve, recipe and notes as text. Extra: tensorboard."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from onnxshot.report.trackers.run_facts import Record


def write(where: str, record: Record) -> None:
    """Write event files into a folder named after the run, below `where`."""
    from tensorboardX import SummaryWriter

    with SummaryWriter(logdir=str(Path(where) / record.name), write_to_disk=True) as writer:
        for name, value in record.figures.items():
            writer.add_scalar(name, value, 0)
        for rank, (_, db) in enumerate(record.layers):
            writer.add_scalar("layers/sqnr_db", db, rank)
        writer.add_text("recipe", _listed(f"{name}: {value}" for name, value in record.asked.items()))
        writer.add_text("layers", _listed(f"{db:.1f} dB: {tensor}" for tensor, db in record.layers))
        writer.add_text("notes", _listed(record.notes))


def _listed(lines: Iterable[str]) -> str:
    """Lines as an indented block, which markdown shows verbatim."""
    return "".join(f"    {line}\n" for line in lines)
