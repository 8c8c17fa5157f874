"""Print latencies for people on stderr: one line per model."""

from __future__ import annotations

from collections.abc import Sequence

from onnxshot.cli.fitted_table import Field, print_table
from onnxshot.cli.terminal import say, stderr_console
from onnxshot.runtimes.ort_bench import Latency
from onnxshot.verification.decoding_speed import PROMPT

_PAIRED = "speedups are medians over rounds, in which all models see the same load: medians of times may differ"


def show_latencies(rows: Sequence[Latency]) -> None:
    """Print the runtime, then one line per model; speedups are relative to the first."""
    if rows and rows[0].runtime:
        say(stderr_console(), f"in {rows[0].runtime}")
    _print_latencies(rows)
    for what, part in (("one token behind a prompt", "token"), ("a prompt", "prompt")):
        inner = [one for row in rows if (one := getattr(row, part)) is not None]
        if inner:
            tokens = f" of {PROMPT} tokens"
            stderr_console().print(f"{what}{tokens}:")
            _print_latencies(inner)


def _print_latencies(rows: Sequence[Latency]) -> None:
    fields = (
        Field("model", name=True), Field("median ms", figure=True), Field("p10", figure=True, drop=3),
        Field("p90", figure=True, drop=4), Field("speedup", figure=True), Field("CPU ms", figure=True, drop=1),
        Field("CPU speedup", figure=True, drop=2),
    )  # fmt: skip
    measured = all(row.cpu_ms is not None for row in rows)
    cells = []
    for row in rows:
        cpu = (f"{row.cpu_ms:.3f}", f"{row.cpu_ratio:.2f}x") if measured else ("", "")
        times = (f"{row.median_ms:.3f}", f"{row.p10:.3f}", f"{row.p90:.3f}")
        cells.append((str(row.path), *times, f"{row.ratio:.2f}x", *cpu))
    print_table(stderr_console(), fields, cells)
    first, *others = rows
    if unsure := [str(row.path) for row in others if not row.sure]:
        say(stderr_console(), f"not certain whether faster, because runs scatter: {', '.join(unsure)}")
    if any(row.sure and (row.median_ms < first.median_ms) != (row.ratio > 1) for row in others):
        say(stderr_console(), _PAIRED)
