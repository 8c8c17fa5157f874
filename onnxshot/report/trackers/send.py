"""Send a report to an experiment tracker; the trackers are listed here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from onnxshot.errors import UsageError
from onnxshot.report.html.page import page
from onnxshot.report.trackers import mlflow, tensorboard, wandb
from onnxshot.report.trackers.run_facts import Record
from onnxshot.report.verdict import WORDS

_SINKS: dict[str, tuple[str, Callable[[str, Record], None]]] = {
    "tensorboard": ("tensorboardX", tensorboard.write),
    "wandb": ("wandb", wandb.write),
    "mlflow": ("mlflow", mlflow.write),
}
"""Name of the tracker, and of its extra -> the package that it needs, and the function that logs."""
_OF_TOKENS = (
    "float_perplexity", "perplexity", "perplexity_rise", "perplexity_at_once", "kl_nats", "agreement",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sink:
    """An experiment tracker.

    Attributes:
        kind: its name: 'tensorboard', 'wandb' or 'mlflow'.
        where: the folder, project or URI that runs are logged to.
    """

    kind: str
    where: str

    def send(self, values: Mapping[str, Any]) -> None:
        """Log a report, given as plain values; one run per target. Raises UsageError where the tracker fails."""
        for record in _records(values):
            try:
                _SINKS[self.kind][1](self.where, record)
            except Exception as e:  # trackers raise errors of their own, of the network and of the disk
                what = f"--log {self.kind}:{self.where}: {type(e).__name__}: {e}"
                raise UsageError(what, "the result was written all the same") from e


def sink_of(text: str) -> Sink:
    """Parse the value of --log, KIND:WHERE. Raises UsageError for another text, or where the package is missing."""
    kind, _, where = text.partition(":")
    if kind not in _SINKS or not where:
        raise UsageError(f"--log is {text!r}", "tensorboard:FOLDER, wandb:PROJECT or mlflow:URI")
    package = _SINKS[kind][0]
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"--log {kind} needs {package}, which is not installed", f"pip install 'onnxshot[{kind}]'")
    if kind == "tensorboard" and Path(where).exists() and not Path(where).is_dir():
        raise UsageError(f"--log is {text!r}: {where} exists, and is not a folder", "name a folder for its events")
    return Sink(kind, where)


def _records(values: Mapping[str, Any]) -> Iterator[Record]:
    stem = PurePath(values["input"]).stem
    for target, report in values.get("reports", {"": values}).items():
        name = f"{stem}.{target}" if target else stem
        asked = {k: v if isinstance(v, str) else json.dumps(v) for k, v in report["recipe"].items()}
        layers = tuple((row["tensor"], float(row["sqnr_db"])) for row in report["worst"])
        notes = (*_verdict(report["verdict"]), *report["notes"])
        yield Record(name, asked, dict(_figures(report)), layers, notes, page(report))


def _verdict(found: Mapping[str, Any]) -> Iterator[str]:
    """The verdict as lines: each reason with the level, and what to do next."""
    yield from (f"{WORDS[found['level']]}: {reason}" for reason in found["reasons"])
    yield f"next: {found['next']}"


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures that were measured, by name."""
    own = (
        "sqnr_db", "agreement", "int8_macs_share", "sparsity", "bits_per_weight", "input_bytes", "seconds",
        "peak_rss_mb",
    )  # fmt: skip
    found = {name: report.get(name) for name in own}
    found |= {f"weight_bytes/{row['kind']}": row["after"] for row in report.get("weight_kinds", ())}
    found |= {f"latency/{name}": value for name, value in report["latency"].items()}
    found |= {f"kl_nats/{name}": value for name, value in report.get("output_kl", {}).items()}
    tokens = report.get("tokens", {})
    found |= {f"tokens/{name}": tokens[name] for name in _OF_TOKENS if name in tokens}
    found |= {f"tokens/steps/{name}": tokens["steps"][name] for name in _OF_TOKENS if name in tokens.get("steps", {})}
    for part in ("prompt", "token"):
        times = report.get("decoding", {}).get(part, {})
        found |= {f"decoding/{part}/{name}": value for name, value in times.items()}
    for artifact in report["outputs"]:
        found[f"bytes/{artifact['format']}"] = artifact["bytes"]
    for stage in report.get("stages", ()):
        found |= {f"{stage['name']}/{name}": stage[name] for name in ("bytes", "sqnr_db", "agreement", "speedup")}
    return ((name, float(value)) for name, value in found.items() if value is not None)
