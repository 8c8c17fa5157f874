"""Take whole channels out of a network, so that its tensors shrink, and let what stays learn the answers back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import ModelProto

from onnxshot.calibration.preprocess import Preset
from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.sampling import spread
from onnxshot.cutting.activation_scores import activation_scores
from onnxshot.cutting.allocation import Allocation
from onnxshot.cutting.axes import Axes, Shape
from onnxshot.cutting.choice import choose
from onnxshot.cutting.cut_model import Cutter, store_as
from onnxshot.cutting.groups import Group, groups_of
from onnxshot.cutting.importance import Curve, batchnorm_scales, batchnorm_scores, norm_scores, score_curves
from onnxshot.cutting.shrunk import GroupRow, ShrinkReport, ShrinkResult, timed
from onnxshot.cutting.target_search import Found, TargetSearch
from onnxshot.cutting.times import times_of
from onnxshot.cutting.weigher import Weigher
from onnxshot.cutting.work import macs_of, params_of
from onnxshot.errors import UsageError
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import concrete_shapes, count
from onnxshot.maths.removal import Floats
from onnxshot.observing.calibrating import open_calib
from onnxshot.output import source_name
from onnxshot.parallel import in_order
from onnxshot.passes.base import Skip
from onnxshot.passes.normalize import normalize
from onnxshot.preparing import fold
from onnxshot.recipes.stages import MULTIPLES, ShrinkStage
from onnxshot.report import NOISE
from onnxshot.search.goal import Evaluate
from onnxshot.settings import Settings
from onnxshot.targets.ort_runtime import Feed

Scope = Literal["all", "mlp", "heads"]
Importance = Literal["auto", "error", "activation", "batchnorm", "l1", "l2"]

__all__ = ["GroupRow", "ShrinkReport", "ShrinkResult", "shrink"]

_LEARNED_FROM = 256  # samples
_TRIALS = 32  # samples on which the outputs are watched, an eighth of what there is at most
_LEAST_TRIALS = 4
_TABLE = 4  # times as long as one model is, all layers are timed: that shows where a cut saves time
_NOT_FASTER = "not faster than before: convolutions of ONNX Runtime run on blocks of 8 or 16 channels, try multiple=16"


def shrink(
    model: str | Path | ModelProto,
    calib: Any = None,
    *,
    target_flops: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    max_drop: float | None = None,
    evaluate: Evaluate | str | None = None,
    scope: Scope = "all",
    multiple: int = 8,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    importance: Importance = "auto",
    preset: str | Preset | None = None,
    settings: Settings | None = None,
) -> ShrinkResult:
    """Remove channels, hidden units and heads from a float model until one target is met.

    Args:
        model: path of an .onnx file, or a ModelProto.
        calib: calibration data, as `quantize` takes it. Without it channels are weighed by their norm, and nothing is
            learned back.
        target_flops: share 0..1 of the multiply-accumulates to keep. What is cut is chosen by the time it saves too:
            layers are timed at their full and half width, so that two runs may differ where times are close.
        target_params: share 0..1 of the parameters to keep.
        target_latency: share 0..1 of the latency on ONNX Runtime to keep, both models timed in turns; what is cut is
            chosen by the time that layers take alone.
        max_drop: most that the score of `evaluate` may fall: step by step as much is cut as that allows.
        evaluate: as in `Goal`.
        scope: 'mlp' and 'heads' cut hidden units of MLPs, or heads of attentions, only.
        multiple: cut so that the width of layers becomes a multiple of it, where they have that many.
        include: globs of names of layers, as `quantize` takes them: of only these layers are outputs cut.
        exclude: the same, of layers whose outputs are left whole.
        importance: 'error' of the layers that read a channel, after the others have made up for it; 'activation': the
            weights that read it by its root mean square on the samples; 'batchnorm': the scales of the
            BatchNormalizations behind its layers, before they are folded, and channels without are left; 'l1', 'l2':
            norm of its weights. 'auto' is 'error' where there is data, else 'l2'.
        preset: preprocessing of pictures.
        settings: how to run it.

    Where there is data and nothing narrows down what may be cut, residual branches are left out whole as long as the
    outputs of the model that comes of it, fitted anew, are nearer to the float model's for it.

    Memory: the model a few times over, the samples (256 at most), the second moments of what the layers of all groups
    read, and `refit.HELD` bytes of tensors.

    Raises:
        UsageError, ModelError, CalibrationError: each says what was found and what to do.
    """
    settings = settings or Settings()
    asked = ShrinkStage.from_dict(
        {
            "target_flops": target_flops, "target_params": target_params, "target_latency": target_latency,
            "max_drop": max_drop, "evaluate": None if evaluate is None else str(evaluate), "scope": scope,
            "multiple": multiple, "include": include, "exclude": exclude, "importance": importance,
        }
    )  # fmt: skip
    if importance in ("error", "activation") and calib is None:
        raise UsageError(f"importance {importance!r} needs data", "give calibration data, or importance 'l1' or 'l2'")
    run = _Run(model, asked, settings)
    with open_calib("random" if calib is None else calib, run.model, preset, settings) as data:
        if calib is not None:
            run.learn_from(data)
        return run.result(data, evaluate)


@dataclass(slots=True)
class _Run:
    """One run under way: the float model, its groups, and what they are worth."""

    source: str | Path | ModelProto
    asked: ShrinkStage
    settings: Settings
    started: float = field(default_factory=time.perf_counter)
    model: Model = field(init=False)  # normalized, uncut
    report: ShrinkReport = field(init=False)
    axes: Axes = field(init=False)
    shapes: dict[str, Shape] = field(init=False)
    scales: dict[str, Floats] = field(init=False, default_factory=dict)  # of BatchNormalizations, by what they read
    reference: ModelProto = field(init=False)
    feeds: list[Feed] = field(init=False, default_factory=list)
    checks: list[Feed] = field(init=False, default_factory=list)  # that nothing is fitted on

    def __post_init__(self) -> None:
        self.report = ShrinkReport(source_name(self.source), self.asked.targets)
        self.model = load_model(self.source)
        if self.asked.importance == "batchnorm":
            fold(self.model)
            self.scales = batchnorm_scales(self.model)
        normalize(self.model)

    def learn_from(self, data: Dataset) -> None:
        """Read the samples."""
        self.report.notes += data.notes
        chosen = spread(len(data))[:_LEARNED_FROM]
        feeds: list[Feed] = [s.feed for s in in_order(data.__getitem__, chosen, self.settings.threads)]
        self.report.samples = len(feeds)
        watched = min(_TRIALS, max(_LEAST_TRIALS, len(feeds) // 8))
        self.checks, self.feeds = feeds[:watched], feeds[watched:] or feeds

    def result(self, data: Dataset, evaluate: Evaluate | str | None) -> ShrinkResult:
        """Weigh what may be cut, cut it, and let what stays learn."""
        made = self._cut(data, evaluate)
        self.report.seconds = time.perf_counter() - self.started
        return ShrinkResult(made, self.report)

    def _cut(self, data: Dataset, evaluate: Evaluate | str | None) -> Model:
        self.shapes = concrete_shapes(self.model, self._sizes())
        groups = groups_of(self.model, self.shapes)
        self.axes = groups.axes
        choice = choose(self.model, groups, self.shapes, self.asked, sampled=bool(self.feeds))
        self.report.skips = list(choice.skips)
        if not choice.groups:
            self._miss("nothing was cut: no group of channels can be; the reasons are in the skips")
            self._count(self.model)
            return load_model(self.source)
        self.reference = self.model.to_proto()
        cutter = Cutter(
            self.model, self.reference, self.axes, self.feeds, self.checks, self.settings, self.report.timings
        )
        with timed(self.report.timings, "weigh"):
            curves = self._curves(choice.groups)
        ((name, value),) = self.asked.targets.items()
        search = TargetSearch(cutter, self._whole(curves), (name, value), choice.branches, data)
        found = search.run(evaluate)
        self._tell(found)
        if self.settings.verify and found.allocation.removed:
            self._bench(cutter, found.model, data)
        store_as(self.model, found.model)
        return found.model

    # ------------------------------------------------------------------ what the groups are worth

    def _curves(self, rows: Sequence[Group]) -> list[Curve]:
        threads, importance, multiple = self.settings.threads, self.asked.importance, self.asked.multiple
        if importance == "batchnorm":
            return self._by_batchnorm(rows)
        if importance == "activation":
            return score_curves(rows, activation_scores(self.reference, self.axes, self.feeds, threads), multiple)
        if self.feeds and importance in ("auto", "error"):
            weigher = Weigher(self.reference, self.feeds, self.checks, threads, multiple, self.settings.progress)
            return weigher.curves(rows)
        power = 1 if importance == "l1" else 2
        return score_curves(rows, norm_scores(self.model, self.axes, power), multiple)

    def _by_batchnorm(self, rows: Sequence[Group]) -> list[Curve]:
        """Of the groups whose channels all have a scale; the others are in the report."""
        scores = batchnorm_scores(self.axes, self.scales)
        with_scales = [group for group in rows if not np.isnan(scores[group.ids]).any()]
        if not with_scales:
            what = "importance is 'batchnorm', and no BatchNormalization stands behind layers that can be cut"
            raise UsageError(what, "it may be folded into them: export without that, or give importance 'l2'")
        for group in rows:
            if group not in with_scales:
                reason = "not all its channels have a BatchNormalization, which importance 'batchnorm' asks for"
                self.report.skips += [Skip(node.label, node.op, reason) for node, _ in group.makers]
        return score_curves(with_scales, scores, self.asked.multiple)

    def _whole(self, curves: Sequence[Curve]) -> Allocation:
        """Nothing cut yet."""
        multiple, numbers = self.asked.multiple, self.axes.count
        if self.asked.target_params is not None:
            return Allocation(curves, params_of(self.model, self.axes), multiple, numbers)
        with timed(self.report.timings, "time layers"):
            times = times_of(
                self.reference, self.axes, self.shapes, threads=self.settings.threads,
                seconds=_TABLE * self.settings.bench_seconds,
            )  # fmt: skip
        if self.asked.target_latency is not None:
            return Allocation(curves, times, multiple, numbers)
        return Allocation(curves, macs_of(self.model, self.axes, self.shapes), multiple, numbers, times)

    # ------------------------------------------------------------------ what came of it

    def _tell(self, found: Found) -> None:
        """Put into the report what was cut, and why not more."""
        report, allocation = self.report, found.allocation
        report.score, report.drop = found.score, found.drop
        report.notes += found.refused
        if found.missed:
            self._miss(found.missed)
        self._count(found.model)
        report.branches = [branch.name for branch in allocation.branches]
        for curve, cut in zip(allocation.curves, allocation.cut, strict=True):
            group = curve.group
            layers = tuple(node.label for node, _ in group.makers)
            after = int(np.count_nonzero(allocation.alive[group.ids]))
            row = GroupRow(group.name, group.kind, layers, len(group.ids), after, float(curve.loss[cut]))
            report.groups.append(row)

    def _bench(self, cutter: Cutter, made: Model, data: Dataset) -> None:
        """Measure the latency that is left."""
        report, wanted = self.report, self.asked.target_latency
        with timed(report.timings, "bench"):
            report.latency = cutter.latency_share(made, data)
        if report.reached and wanted is not None and report.latency > wanted + NOISE:
            self._miss(f"{report.latency:.1%} of the latency were measured at the end")
        if report.latency > 1 - NOISE and self.asked.multiple < max(MULTIPLES):
            report.notes.append(_NOT_FASTER)

    def _miss(self, note: str) -> None:
        self.report.notes.append(note)
        self.report.reached = False

    def _count(self, made: Model) -> None:
        before, after = (_size(model, concrete_shapes(model, self._sizes())) for model in (self.model, made))
        self.report.macs, self.report.params = (before[0], after[0]), (before[1], after[1])

    def _sizes(self) -> dict[str, Shape] | None:
        """Shapes of the inputs; None where they are not known."""
        return {name: np.shape(x) for name, x in self.feeds[0].items()} if self.feeds else None


def _size(model: Model, shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Multiply-accumulates of one run, and float parameters."""
    stored = sum(math.prod(c.shape) for c in model.constants() if c.dtype.kind == "f")
    return sum(row.macs for row in count(model, shapes)), stored
