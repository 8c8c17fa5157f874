"""Candidate models of a search: remove channels and branches, fit what remains, measure output error and latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxshot.calibration.readers import Dataset
from onnxshot.channels.output_error import OutputErrors
from onnxshot.channels.removal import Removal
from onnxshot.channels.ridge_reconstruction import KeptChannels, apply, reconstruct
from onnxshot.channels.stage_seconds import timed
from onnxshot.delivery.write_results import Made
from onnxshot.files.atomic_write import scratch
from onnxshot.files.kept_arrays import KeptArrays
from onnxshot.graph import Model
from onnxshot.graph.axis_coupling import Axes
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.load import copy_of
from onnxshot.passes.cut_channels import CutChannels
from onnxshot.passes.drop_branches import DropBranches
from onnxshot.passes.drop_identity import DropIdentity
from onnxshot.runtimes.ort_bench import bench
from onnxshot.runtimes.ort_runtime import Feed
from onnxshot.settings import Settings
from onnxshot.verification.reference import Reference

_REPEATS = 3  # latency measurements, of which the median decides
_BENCH_FEEDS = 8


@dataclass(frozen=True, slots=True)
class CandidateBuilder:
    """Builds candidates from one model and measures them.

    Attributes:
        model: The normalized model before removal.
        lean: The same model without its large weights in memory.
        reference: The model that was given; output error and latency are relative to it.
        axes: Channel numbers of every tensor axis of `model`.
        feeds: Samples that the remaining weights are fitted on; nothing is fitted if there are none.
        checks: Samples that output error is measured on; nothing is fitted on them.
        errors: Measures the output error on them.
        settings: Threads, benchmark time, progress.
        timings: Seconds by stage; `build` adds to `cut` and `fit`.
        notes: What the user should know; each once.
    """

    model: Model
    lean: LeanModel
    reference: Reference
    axes: Axes
    feeds: Sequence[Feed]
    checks: Sequence[Feed]
    errors: OutputErrors
    settings: Settings
    timings: dict[str, float]
    notes: list[str]

    def without(self, removal: Removal) -> Model:
        """Return a copy of the model without the removed branches and channels; weights are not fitted."""
        candidate = copy_of(self.model)
        if removal.branches:
            DropBranches({k: v for branch in removal.branches for k, v in branch.sums.items()}).run(candidate)
            DropIdentity().run(candidate)
        CutChannels(self.axes, removal.removed).run(candidate)
        return candidate

    def build(self, removal: Removal) -> Model:
        """Return a copy of the model without the removed parts, with the remaining weights fitted to the samples."""
        with timed(self.timings, "cut"):
            candidate = self.without(removal)
        if self.feeds and removal.removed:
            with timed(self.timings, "fit"), KeptArrays() as waiting:
                fitted = reconstruct(
                    self.lean, LeanModel.of(candidate), self._kept(removal), self.feeds,
                    threads=self.settings.threads, progress=self.settings.progress, keep=waiting.add, note=self.note,
                )  # fmt: skip
                apply(candidate, fitted)
        return candidate

    def note(self, text: str) -> None:
        """Tell the user something, once."""
        if text not in self.notes:
            self.notes.append(text)

    def output_error(self, candidate: Model) -> float:
        """Energy of the output error on the checks, as a share of the energy of the reference outputs."""
        return self.errors.of(LeanModel.of(candidate))

    def latency(self, candidate: Model, data: Dataset) -> tuple[float, float]:
        """Milliseconds of the reference, and the latency of a candidate as a share of it.

        Both are medians of three interleaved measurements of both models.
        """
        feeds = [data[i].feed for i in range(min(len(data), _BENCH_FEEDS))]
        with scratch() as folder:
            both = [self.reference.at(folder / "float.onnx"), Made(candidate).save(folder / "cut.onnx")]
            runs = [
                bench(both, feeds, threads=self.settings.threads, rounds=10_000, seconds=self.settings.bench_seconds)
                for _ in range(_REPEATS)
            ]
        before = float(np.median([rows[0].median_ms for rows in runs]))
        return before, 1 / float(np.median([rows[1].ratio for rows in runs]))

    def _kept(self, removal: Removal) -> KeptChannels:
        """The remaining output channels of every layer that loses some."""
        found = {}
        for node in self.model.graph.nodes:
            if node.op in ("Conv", "Gemm", "MatMul"):
                held = self.axes.of.get(node.outputs[0].name, {})
                last = 1 if node.op == "Conv" else max(held, default=0)
                if last in held and not removal.alive[held[last]].all():
                    found[node.name] = removal.alive[held[last]]
        return found
