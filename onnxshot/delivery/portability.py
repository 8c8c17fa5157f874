"""Run a portable model in every installed runtime, and compare it with a model made for one target. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onnxshot.delivery.artifacts import Judged, make_artifact, runtime_of
from onnxshot.errors import ModelError, TargetError, UsageError
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.graph.save import write
from onnxshot.runtimes.base import EmitOptions
from onnxshot.runtimes.ort_bench import CLEAR, NOISE, bench
from onnxshot.runtimes.size_ranges import ranges_of
from onnxshot.settings import Settings
from onnxshot.targets import RUNTIMES
from onnxshot.verification.compare_models import compare
from onnxshot.verification.io_contract import contract

_FEEDS = 8


def rows(
    written: Path, judged: Judged, settings: Settings, names: Iterable[str] = RUNTIMES
) -> list[dict[str, Any]]:
    """Try a file in each runtime besides ONNX Runtime.

    Args:
        written: the .onnx file.
        judged: what to compare with.
        settings: how the run is executed.
        names: the runtimes.

    Returns:
        One dict per runtime, with key `runtime`, and either `missing` (why it was not tried), or `refused` (why it does
        not load the file) and `findings`, or `int8_macs_share`, `sqnr_db`, `latency` and `notes`, as in `Artifact`, and
        `findings` (nodes that it runs slower than it could).
    """
    return [{"runtime": name, **_row(name, written, judged, settings)} for name in names]


def _row(name: str, written: Path, judged: Judged, settings: Settings) -> dict[str, Any]:
    runtime = runtime_of(name)
    try:
        runtime.check()
    except TargetError as e:
        return {"missing": str(e)}
    found = [f"{f.node} ({f.op}): {f.reason}" for f in runtime.preflight(load_model(written))]
    try:
        with scratch() as folder:
            place = folder / f"model{runtime.suffix}"
            inputs = {port.name: port.dims for port in contract(written) if port.way == "input"}
            options = EmitOptions(sampled=ranges_of(inputs, judged.samples), threads=settings.threads)
            with make_artifact(written, name, place, options, judged, settings) as (_, artifact):
                return {
                    "int8_macs_share": artifact.int8_macs_share, "sqnr_db": artifact.sqnr_db,
                    "latency": artifact.latency, "notes": list(artifact.notes), "findings": found,
                }  # fmt: skip
    except (ModelError, TargetError, UsageError) as e:
        return {"refused": str(e), "findings": found}


def compare_single_target(
    alone: Model, target: str, written: Path, judged: Judged, settings: Settings
) -> dict[str, Any]:
    """Measure a model made for one target on the same samples, timed in interleaved runs with the portable file.

    Returns:
        A dict with keys `target`, `sqnr_db`, `ms` (median latency), and `speedup` over the portable file.
    """
    feeds = [judged.samples[i].feed for i in range(min(len(judged.samples), _FEEDS))]
    with scratch() as folder:
        path = folder / "alone.onnx"
        write(alone, path)
        found = compare(judged.reference, path, judged.samples, threads=settings.threads)
        _, own = bench(
            [written, path], feeds, threads=settings.threads, seconds=settings.bench_seconds, precision=NOISE,
            clear=CLEAR,
        )
    db = None if judged.samples.random else found.sqnr_db
    return {"target": target, "sqnr_db": db, "ms": own.median_ms, "speedup": own.ratio}


def in_words(report_rows: list[dict[str, Any]], single: dict[str, Any]) -> list[str]:
    """The rows of `rows` and the dict of `compare_single_target` as notes for the report."""
    lines = []
    for row in report_rows:
        name = row["runtime"]
        if "missing" in row:
            lines.append(f"not checked in {name}: {row['missing']}")
        elif "refused" in row:
            lines.append(f"not portable: {name} does not take it: {row['refused']}")
        else:
            share, db = row["int8_macs_share"], row["sqnr_db"]
            parts = ["" if share is None else f"{100 * share:.0f} % of the work in int8"]
            parts += ["" if db is None else f"SQNR {db:.1f} dB", *row["notes"], *row["findings"][:3]]
            lines.append(f"in {name}: {', '.join(filter(None, parts))}")
    if single:
        db = "" if single["sqnr_db"] is None else f"SQNR {single['sqnr_db']:.1f} dB and "
        lines.append(f"for {single['target']} alone: {db}{single['speedup']:.2f}x as fast in ONNX Runtime")
    return lines
