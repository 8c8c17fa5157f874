"""MLflow: a run of the experiment 'onnxshot' with parameters, metrics and the page as an artifact. Extra: mlflow."""

from __future__ import annotations

import os

from onnxshot.report.trackers.run_facts import Record

EXPERIMENT = "onnxshot"
_LONGEST = 6000  # characters of a parameter, at most


def write(where: str, record: Record) -> None:
    """Log a run to the tracking server or store at `where`."""
    # MLflow refuses folders by default, but the user has named this one.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=where)
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = known.experiment_id if known is not None else client.create_experiment(EXPERIMENT)
    run = client.create_run(experiment, run_name=record.name).info.run_id
    for name, text in record.asked.items():
        client.log_param(run, name, text[:_LONGEST])
    for name, value in record.figures.items():
        client.log_metric(run, name, value)
    for rank, (_, db) in enumerate(record.layers):
        client.log_metric(run, "layers/sqnr_db", db, step=rank)
    client.log_text(run, record.page, "report.html")
    client.log_text(run, "\n".join(record.notes), "notes.txt")
    client.set_terminated(run)
