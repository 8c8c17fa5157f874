"""The output error of models relative to a reference, which runs once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.comparison.balanced_sqnr import balanced_db, joined, sums_of
from onnxshot.comparison.comparison_setup import CandidateRunner, ComparisonSetup, comparison_setup
from onnxshot.execution.layer_rows import Feeds
from onnxshot.runtimes.ort_runtime import Feed, Runnable, Runner
from onnxshot.runtimes.spool import Spool

_HELD = 4  # share of `memory.held_bytes()` that outputs of the reference may take


@dataclass(eq=False)
class OutputErrors:
    """Measures how far the outputs of models are from those of one reference.

    Memory: one model or a part of it, and a share of `memory.held_bytes()` of outputs; more are in a temporary file.

    Attributes:
        reference: The model that outputs are compared with.
        checks: What both run on.
        threads: CPU threads in total.
    """

    reference: Runnable
    checks: Feeds
    threads: int
    _setup: ComparisonSetup | None = field(init=False, default=None)
    _outputs: Spool = field(init=False, default_factory=lambda: Spool(memory.held_bytes() // _HELD))
    _names: list[tuple[str, ...]] = field(init=False, default_factory=list)  # outputs of each sample

    def of(self, model: Runnable) -> float:
        """Energy of the error of a model's float outputs, as a share of the wanted energy; all outputs weigh the same.

        Raises ModelError if one of the models does not run.
        """
        setup = self._setup = self._setup or self._reference_run()
        runner = CandidateRunner(setup, model, threads=1)
        given: Iterable[Feed] = self.checks
        if setup.orders:
            given = (setup.feed(feed, self._wanted(i)) for i, feed in enumerate(self.checks))
        found = []
        for number, got in enumerate(runner.run_all(given, self.threads)):
            want = self._wanted(number)
            found.append(sums_of(want, got, setup.compared(want, got)))
        noise = joined(found)
        return float(10.0 ** (-balanced_db(noise) / 10)) if noise else 0.0

    def _reference_run(self) -> ComparisonSetup:
        setup = comparison_setup(self.reference, self.checks[0])
        runner = Runner(setup.reference, threads=1, whole=True)
        self._names.clear()
        for number, outputs in enumerate(runner.run_all(self.checks, self.threads)):
            self._names.append(tuple(outputs))
            for name, values in outputs.items():
                self._outputs.put((number, name), values)
        return setup

    def _wanted(self, number: int) -> dict[str, NDArray[Any]]:
        return {name: self._outputs.get((number, name)) for name in self._names[number]}
