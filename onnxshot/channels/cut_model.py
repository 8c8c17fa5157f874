"""A model that is cut: how it is made and learns back, how it is stored, how wrong and how fast it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto

from onnxshot.calibration.readers import Dataset
from onnxshot.channels.cut import Cut
from onnxshot.channels.importance_by_data import output_error
from onnxshot.channels.layer_times import timed
from onnxshot.channels.refit import Kept, apply, refit
from onnxshot.comparison.comparison_setup import comparison_setup
from onnxshot.delivery.write_results import Made
from onnxshot.execution.parallel import in_order
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Model, edit, weights
from onnxshot.graph.axis_coupling import Axes
from onnxshot.graph.load import copy_of
from onnxshot.passes.cut_channels import CutChannels
from onnxshot.passes.drop_branches import DropBranches
from onnxshot.passes.drop_identity import DropIdentity
from onnxshot.passes.store_half import StoreHalf, narrowed
from onnxshot.runtimes.ort_bench import bench
from onnxshot.runtimes.ort_runtime import Feed, Runner
from onnxshot.settings import Settings
from onnxshot.verification.reference import Reference

_TIMED = 3  # how often a latency that decides is measured
_BENCH_FEEDS = 8


@dataclass(slots=True)
class Cutter:
    """Makes models that are cut out of one, and looks at what they are worth.

    Attributes:
        model, reference: normalized, uncut, and the same as a ModelProto.
        given: the model that was given: what outputs and times are held against.
        axes: of that model.
        feeds: samples that what stays is fitted on; empty: nothing is learned back.
        checks: samples that nothing is fitted on.
        timings: seconds by stage, to which those of `cut` and `fit` are added.
    """

    model: Model
    reference: ModelProto
    given: Reference
    axes: Axes
    feeds: Sequence[Feed]
    checks: Sequence[Feed]
    settings: Settings
    timings: dict[str, float]

    def cut(self, cut: Cut) -> Model:
        """A copy of the model without the branches and the channels that are given up."""
        made = copy_of(self.model)
        if cut.branches:
            DropBranches({k: v for branch in cut.branches for k, v in branch.sums.items()}).run(made)
            DropIdentity().run(made)
        CutChannels(self.axes, cut.removed).run(made)
        return made

    def made(self, cut: Cut) -> Model:
        """The same, learned back where there is data."""
        with timed(self.timings, "cut"):
            made = self.cut(cut)
        if self.feeds and cut.removed:
            with timed(self.timings, "fit"):
                found = refit(
                    self.reference, made.to_proto(), self._kept(cut), self.feeds,
                    threads=self.settings.threads, progress=self.settings.progress,
                )  # fmt: skip
                apply(made, found)
        return made

    def error(self, made: Model) -> float:
        """Energy of the error of the outputs on the checks, as a share of that of the uncut model's."""
        threads = self.settings.threads
        how = comparison_setup(self.given.model, self.checks[0])
        wanted = list(in_order(Runner(how.reference, threads=1, whole=True).run, self.checks, threads))
        return output_error(how, wanted, made.to_proto().SerializeToString(), self.checks, threads)

    def latency_share(self, made: Model, data: Dataset) -> float:
        """Share of the model's latency that is left: the median of a few, each timed in turns with it."""
        feeds = [data[i].feed for i in range(min(len(data), _BENCH_FEEDS))]
        with scratch() as folder:
            both = [self.given.at(folder / "float.onnx"), Made(made).save(folder / "cut.onnx")]
            ratios = [
                bench(both, feeds, threads=self.settings.threads, rounds=10_000, seconds=self.settings.bench_seconds)
                for _ in range(_TIMED)
            ]
        return 1 / float(np.median([rows[1].ratio for rows in ratios]))

    def _kept(self, cut: Cut) -> Kept:
        """Which outputs of each layer are left, where not all are."""
        found = {}
        for node in self.model.graph.nodes:
            if node.op in ("Conv", "Gemm", "MatMul"):
                held = self.axes.of.get(node.outputs[0].name, {})
                last = 1 if node.op == "Conv" else max(held, default=0)
                if last in held and not cut.alive[held[last]].all():
                    found[node.name] = cut.alive[held[last]]
        return found


def store_as(model: Model, made: Model) -> None:
    """Store in a narrow type what the model stored so: weights that were fitted are rounded to it."""
    stored = model.stored_types()
    for constant in made.constants():
        if constant.name in stored and weights.elem_type(constant) == TensorProto.FLOAT:
            constant.values = narrowed(weights.read(constant), stored[constant.name]).astype(np.float32)
            constant.stored_as = stored[constant.name]
    StoreHalf().run(made)
    edit.toposort(made)
