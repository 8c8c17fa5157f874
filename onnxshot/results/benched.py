"""The result of `bench`: the latency of each model, with a card for notebooks."""

from __future__ import annotations

from onnxshot.report.html import figures
from onnxshot.report.html.notebook import Rows, card, table
from onnxshot.runtimes.ort_bench import Latency
from onnxshot.wording import counted


class BenchResult(list[Latency]):
    """Latencies of models in the order given; a list that shows itself in a line or, in notebooks, as a card.

    Example:
        >>> before, after = onnxshot.bench(["model.onnx", "model.int8.onnx"])
    """

    def __repr__(self) -> str:
        """One line: the median of each model, and how many times as fast as the first it is."""
        rows = (f"{row.path.name} {figures.milliseconds(row.median_ms)} {figures.times(row.ratio)}" for row in self)
        return f"BenchResult({', '.join(rows)})"

    def _repr_html_(self) -> str:
        """A card with a row per model, which notebooks show."""
        milliseconds = figures.milliseconds
        rows = [
            (
                str(row.path), milliseconds(row.median_ms), f"{milliseconds(row.p10)} – {milliseconds(row.p90)}",
                f"{figures.times(row.ratio)}{'' if row.sure else ' (not sure)'}", milliseconds(row.cpu_ms),
                *(milliseconds(None if part is None else part.median_ms) for part in (row.prompt, row.token)),
            )
            for row in self
        ]  # fmt: skip
        heads = ("model", "median", "p10 – p90", "speed", "CPU time", "prompt", "token")
        runtimes = dict.fromkeys(row.runtime for row in self)
        facts = [("runtime", ", ".join(filter(None, runtimes)))]
        return card(f"{counted(len(self), 'model')} timed", facts, table(Rows(heads, rows, frozenset(range(1, 7)))))
