"""Candidate models of a search: remove channels and branches, fit what remains, measure output error and latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxshot.calibration.readers import Dataset
from onnxshot.channels.error_importance import output_error
from onnxshot.channels.removal import Removal
from onnxshot.channels.ridge_reconstruction import KeptChannels, apply, reconstruct
from onnxshot.channels.stage_seconds import timed
from onnxshot.comparison.comparison_setup import comparison_setup
from onnxshot.delivery.write_results import Made
from onnxshot.execution.parallel import in_order
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Model
from onnxshot.graph.axis_coupling import Axes
from onnxshot.graph.load import copy_of
from onnxshot.passes.cut_channels import CutChannels
from onnxshot.passes.drop_branches import DropBranches
from onnxshot.passes.drop_identity import DropIdentity
from onnxshot.runtimes.ort_bench import bench
from onnxshot.runtimes.ort_runtime import Feed, Runner
from onnxshot.settings import Settings
from onnxshot.verification.reference import Reference

_REPEATS = 3  # latency measurements, of which the median decides
_BENCH_FEEDS = 8


@dataclass(frozen=True, slots=True)
class CandidateBuilder:
    """Builds candidates from one model and measures them.

    Attributes:
        model: The normalized model before removal.
        proto: The same model as a ModelProto.
        reference: The model that was given; output error and latency are relative to it.
        axes: Channel numbers of every tensor axis of `model`.
        feeds: Samples that the remaining weights are fitted on; nothing is fitted if there are none.
        checks: Samples that output error is measured on; nothing is fitted on them.
        settings: Threads, benchmark time, progress.
        timings: Seconds by stage; `build` adds to `cut` and `fit`.
    """

    model: Model
    proto: ModelProto
    reference: Reference
    axes: Axes
    feeds: Sequence[Feed]
    checks: Sequence[Feed]
    settings: Settings
    timings: dict[str, float]

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
            with timed(self.timings, "fit"):
                fitted = reconstruct(
                    self.proto, candidate.to_proto(), self._kept(removal), self.feeds,
                    threads=self.settings.threads, progress=self.settings.progress,
                )  # fmt: skip
                apply(candidate, fitted)
        return candidate

    def output_error(self, candidate: Model) -> float:
        """Energy of the output error on the checks, as a share of the energy of the reference outputs."""
        threads = self.settings.threads
        how = comparison_setup(self.reference.model, self.checks[0])
        wanted = list(in_order(Runner(how.reference, threads=1, whole=True).run, self.checks, threads))
        return output_error(how, wanted, candidate.to_proto().SerializeToString(), self.checks, threads)

    def latency_share(self, candidate: Model, data: Dataset) -> float:
        """Latency as a share of the reference's: the median of three interleaved measurements of both models."""
        feeds = [data[i].feed for i in range(min(len(data), _BENCH_FEEDS))]
        with scratch() as folder:
            both = [self.reference.at(folder / "float.onnx"), Made(candidate).save(folder / "cut.onnx")]
            ratios = [
                bench(both, feeds, threads=self.settings.threads, rounds=10_000, seconds=self.settings.bench_seconds)
                for _ in range(_REPEATS)
            ]
        return 1 / float(np.median([rows[1].ratio for rows in ratios]))

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
