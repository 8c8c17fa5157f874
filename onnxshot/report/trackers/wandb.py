"""Weights & Biases, offline: a run in ./wandb that `wandb sync` uploads. Extra: wandb."""

from __future__ import annotations

from onnxshot.report.trackers.run_facts import Record


def write(where: str, record: Record) -> None:
    """Write an offline run of project `where`."""
    import wandb

    quiet = wandb.Settings(silent=True)
    with wandb.init(project=where, name=record.name, config=record.asked, mode="offline", settings=quiet) as run:
        table = wandb.Table(columns=["tensor", "sqnr_db"], data=[list(row) for row in record.layers])
        run.log({**record.figures, "layers": table, "report": wandb.Html(record.page, inject=False)})
        run.summary["notes"] = "\n".join(record.notes)
    wandb.teardown()  # waits for the writing process; the command line exits without running exit handlers
