"""Take whole channels out of a network, so that its tensors shrink, and let what stays learn the answers back."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import ModelProto

from onnxshot.calibration.preprocess import Preset
from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.sampling import spread
from onnxshot.cutting.activation_scores import activation_scores
from onnxshot.cutting.allocation import Allocation
from onnxshot.cutting.axes import Shape
from onnxshot.cutting.branches import Branch, branches_of
from onnxshot.cutting.cut_model import cut_copy, kept_outputs, latency_share, store_as
from onnxshot.cutting.groups import Group, Groups, groups_of
from onnxshot.cutting.importance import Curve, batchnorm_scales, batchnorm_scores, norm_scores, score_curves
from onnxshot.cutting.refit import apply, refit
from onnxshot.cutting.shrunk import GroupRow, ShrinkReport, ShrinkResult
from onnxshot.cutting.times import times_of
from onnxshot.cutting.weigher import Weigher, output_error
from onnxshot.cutting.work import macs_of, params_of
from onnxshot.errors import UsageError
from onnxshot.graph import Model
from onnxshot.graph.load import copy_of, load_model
from onnxshot.graph.macs import concrete_shapes, count
from onnxshot.maths.removal import Floats
from onnxshot.observing.calibrating import open_calib
from onnxshot.output import Made
from onnxshot.parallel import in_order
from onnxshot.passes.base import Skip
from onnxshot.passes.normalize import normalize
from onnxshot.planning.match import match_nodes
from onnxshot.preparing import fold
from onnxshot.recipes.stages import MULTIPLES, ShrinkStage
from onnxshot.report import NOISE
from onnxshot.search.goal import Evaluate, Goal, Judge
from onnxshot.settings import Settings
from onnxshot.targets.ort_runtime import Feed, Runner

Scope = Literal["all", "mlp", "heads"]
Importance = Literal["auto", "error", "activation", "batchnorm", "l1", "l2"]

__all__ = ["GroupRow", "ShrinkReport", "ShrinkResult", "shrink"]

_LEARNED_FROM = 256  # samples
_TRIALS = 32  # samples on which the outputs are watched, an eighth of what there is at most
_LEAST_TRIALS = 4
_STEPS = 0.05  # of the work: how far one step of a search goes
_LEAST = 0.2  # of the work: where such a search ends in any case
_AIMS = 5  # trials on the way to a latency
_FAR = 1.5  # times the error without: where a branch left out does so much harm, others are not tried
_TRIED = 3  # branches that a model is made without, to see which one it needs least
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
    run = _Run(model, settings, asked.targets, multiple, importance)
    with open_calib("random" if calib is None else calib, run.model, preset, settings) as data:
        if calib is not None:
            run.learn_from(data)
        rows = run.chosen(scope, asked.include, asked.exclude)
        return run.result(rows, data, evaluate)


@dataclass(slots=True)
class _Run:
    """One run under way: the float model, its groups, and what they are worth."""

    source: str | Path | ModelProto
    settings: Settings
    target: dict[str, float]
    multiple: int
    importance: Importance
    started: float = field(default_factory=time.perf_counter)
    model: Model = field(init=False)  # normalized, uncut
    report: ShrinkReport = field(init=False)
    groups: Groups = field(init=False)
    shapes: dict[str, Shape] = field(init=False)
    scales: dict[str, Floats] = field(init=False, default_factory=dict)  # of BatchNormalizations, by what they read
    branches: list[Branch] = field(init=False, default_factory=list)
    reference: ModelProto = field(init=False)
    feeds: list[Feed] = field(init=False, default_factory=list)
    checks: list[Feed] = field(init=False, default_factory=list)  # that nothing is fitted on

    def __post_init__(self) -> None:
        name = str(self.source) if isinstance(self.source, str | Path) else "(ModelProto)"
        self.report = ShrinkReport(name, dict(self.target))
        self.model = load_model(self.source)
        if self.importance == "batchnorm":
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

    def result(self, rows: Sequence[Group], data: Dataset, evaluate: Evaluate | str | None) -> ShrinkResult:
        """Weigh the groups, cut them, and let what stays learn."""
        if not rows:
            self.report.notes.append("nothing was cut: no group of channels can be; the reasons are in the skips")
            self.report.reached = False
            self._count(self.model)
            self.report.seconds = time.perf_counter() - self.started
            return ShrinkResult(load_model(self.source), self.report)
        self.reference = self.model.to_proto()
        with timed(self.report.timings, "weigh"):
            curves = self._curves(rows)
        whole = self._whole(curves)
        self.branches = self._ranked(whole)
        if evaluate is not None:
            allocation, made = self._by_drop(whole, evaluate, data)
        else:
            ((_, share),) = self.target.items()
            allocation, made, missed = self._nearest(whole, share, data)
            if missed:
                self._miss(missed)
        self._count(made)
        self._tell_groups(allocation)
        if self.settings.verify and allocation.removed:
            with timed(self.report.timings, "bench"):
                self.report.latency = latency_share(self.model, made, data, self.settings)
            wanted = self.target.get("target_latency", math.inf)
            if self.report.reached and self.report.latency > wanted + NOISE:
                self._miss(f"{self.report.latency:.1%} of the latency were measured at the end")
            if self.report.latency > 1 - NOISE and self.multiple < max(MULTIPLES):
                self.report.notes.append(_NOT_FASTER)
        store_as(self.model, made)
        self.report.seconds = time.perf_counter() - self.started
        return ShrinkResult(made, self.report)

    # ------------------------------------------------------------------ what may be cut, and what it is worth

    def chosen(self, scope: Scope, include: Sequence[str], exclude: Sequence[str]) -> list[Group]:
        """The groups that may be cut; the others are in the report, with the reason."""
        self.shapes = concrete_shapes(self.model, self._sizes())
        self.groups = groups_of(self.model, self.shapes)
        picked = match_nodes(self.model, include, "include") if include else None
        left = match_nodes(self.model, exclude, "exclude")
        if self.feeds and scope == "all" and picked is None:
            self.branches = branches_of(self.model, self.groups, self.shapes, left)
        self.report.skips = list(self.groups.skips)
        rows = []
        for group in self.groups.rows:
            nodes = [node for node, _ in group.makers]
            reason = ""
            if scope not in ("all", group.kind):
                reason = f"scope {scope!r} leaves {group.kind} alone"
            elif picked is not None and not any(node in picked for node in nodes):
                reason = "not included"
            elif any(node in left for node in nodes):
                reason = f"excluded by {next(left[node] for node in nodes if node in left)!r}"
            if reason:
                self.report.skips += [Skip(node.label, node.op, reason) for node in nodes]
            else:
                rows.append(group)
        return rows

    def _curves(self, rows: Sequence[Group]) -> list[Curve]:
        axes, threads = self.groups.axes, self.settings.threads
        if self.importance == "batchnorm":
            return self._by_batchnorm(rows)
        if self.importance == "activation":
            return score_curves(rows, activation_scores(self.reference, axes, self.feeds, threads), self.multiple)
        if self.feeds and self.importance in ("auto", "error"):
            weigher = Weigher(self.reference, self.feeds, self.checks, threads, self.multiple, self.settings.progress)
            return weigher.curves(rows)
        power = 1 if self.importance == "l1" else 2
        return score_curves(rows, norm_scores(self.model, axes, power), self.multiple)

    def _by_batchnorm(self, rows: Sequence[Group]) -> list[Curve]:
        """Of the groups whose channels all have a scale; the others are in the report."""
        scores = batchnorm_scores(self.groups.axes, self.scales)
        with_scales = [group for group in rows if not np.isnan(scores[group.ids]).any()]
        if not with_scales:
            what = "importance is 'batchnorm', and no BatchNormalization stands behind layers that can be cut"
            raise UsageError(what, "it may be folded into them: export without that, or give importance 'l2'")
        for group in rows:
            if group not in with_scales:
                reason = "not all its channels have a BatchNormalization, which importance 'batchnorm' asks for"
                self.report.skips += [Skip(node.label, node.op, reason) for node, _ in group.makers]
        return score_curves(with_scales, scores, self.multiple)

    def _whole(self, curves: Sequence[Curve]) -> Allocation:
        """Nothing cut yet."""
        axes = self.groups.axes
        if "target_params" in self.target:
            return Allocation(curves, params_of(self.model, axes), self.multiple, axes.count)
        with timed(self.report.timings, "time layers"):
            times = times_of(
                self.reference, axes, self.shapes, threads=self.settings.threads,
                seconds=_TABLE * self.settings.bench_seconds,
            )  # fmt: skip
        if "target_latency" in self.target:
            return Allocation(curves, times, self.multiple, axes.count)
        return Allocation(curves, macs_of(self.model, axes, self.shapes), self.multiple, axes.count, times)

    # ------------------------------------------------------------------ targets

    def _nearest(self, whole: Allocation, share: float, data: Dataset) -> tuple[Allocation, Model, str]:
        """Cut to the share of the work, the parameters or the latency, with as many more branches left out as do good.

        What was cut, the model that is left, and why the share was not reached.
        """
        best, missed = whole, self._reach(whole, share, data)
        made = self._made(best)
        error = math.inf if missed or not self.branches else self._error(made)
        candidates = [branch for branch in self.branches if branch not in whole.branches][:_TRIED]
        while candidates:
            without, better = best.branches, []
            limit = error
            for branch in candidates:
                trial = replace(whole, branches=[*without, branch])
                if trial.share < share and "max_drop" not in self.target:
                    continue  # more than was asked for
                if self._reach(trial, share, data):
                    continue
                other = self._made(trial)
                found = self._error(other)
                if found > _FAR * limit:
                    break  # of a network that needs its branches: each of the others would cost a fit too
                if found < limit:
                    better.append(branch)
                if found < error:
                    best, made, error, missed = trial, other, found, ""
            candidates = [branch for branch in better if branch not in best.branches]
        return best, made, missed

    def _miss(self, note: str) -> None:
        self.report.notes.append(note)
        self.report.reached = False

    def _ranked(self, whole: Allocation) -> list[Branch]:
        """The branches, least error per share of the work first; nothing has learned yet."""

        def rate(branch: Branch) -> float:
            without = replace(whole, branches=[branch])
            return self._error(self._cut(without)) / max(1 - without.share, 1e-9)

        with timed(self.report.timings, "weigh"):
            return sorted(self.branches, key=rate)

    def _reach(self, allocation: Allocation, share: float, data: Dataset) -> str:
        """Cut until no more than this share is left; why more is."""
        ((name, _),) = self.target.items()
        if name == "target_latency":
            return self._to_latency(allocation, share, data)
        if allocation.shrink_to(share):
            return ""
        return f"no more than {1 - allocation.share:.1%} can be cut: {name} {share:g} is not reached"

    def _to_latency(self, allocation: Allocation, share: float, data: Dataset) -> str:
        """Cut until the latency should be met: it falls with the time of the layers, by how much is measured.

        Weights do not matter for it. Each trial aims at the target by what all before have shown, through (1, 1).
        """
        fall, seen = 1 - share, []
        slope = 0.0
        for _ in range(_AIMS):
            trial = replace(allocation)
            trial.shrink_to(max(_LEAST, 1 - fall))
            seen.append((1 - trial.share, 1 - latency_share(self.model, self._cut(trial), data, self.settings)))
            slope = sum(x * y for x, y in seen) / max(sum(x * x for x, _ in seen), 1e-9)
            fall = (1 - share) / max(slope, 1e-9)
        allocation.shrink_to(max(_LEAST, 1 - fall))
        found = 1 - slope * (1 - allocation.share)
        missed = f"the latency falls to {found:.1%} at most: target_latency {share:g} is not reached"
        return "" if found <= share + NOISE else missed

    def _by_drop(self, whole: Allocation, evaluate: Evaluate | str, data: Dataset) -> tuple[Allocation, Model]:
        """Step by step, as long as the score falls by no more than it may; the last that kept to it."""
        goal = Goal(max_drop=self.target["max_drop"], evaluate=evaluate)
        best, made = whole, copy_of(self.model)
        with tempfile.TemporaryDirectory() as folder:
            judge = Judge(goal, Made(self.model).save(Path(folder) / "float.onnx"), data, self.settings)
            self.report.score, self.report.drop = judge.float_score, 0.0
            going, refused = True, list[str]()
            while going and best.share - _STEPS >= _LEAST:
                going, refused = False, []
                for trial, candidate in self._further(whole, best, data):
                    drop = judge.drop(Made(candidate).save(Path(folder) / "cut.onnx"))
                    assert drop is not None
                    if drop <= self.target["max_drop"]:
                        best, made, self.report.drop = trial, candidate, drop
                        going, refused = True, []
                        break
                    refused.append(f"cutting to {trial.share:.1%} would cost {drop:.4g}")
            self.report.notes += refused
        return best, made

    def _further(self, whole: Allocation, best: Allocation, data: Dataset) -> Iterator[tuple[Allocation, Model]]:
        """Ways to cut a step more: that of least error, then without each of some more branches.

        A score may like a branch left out where the outputs' error does not.
        """
        share = best.share - _STEPS
        trial, made, missed = self._nearest(replace(whole, branches=best.branches), share, data)
        if not missed:
            yield trial, made
        for branch in [branch for branch in self.branches if branch not in best.branches][:_TRIED]:
            trial = replace(whole, branches=[*best.branches, branch])
            if not self._reach(trial, share, data):
                yield trial, self._made(trial)

    # ------------------------------------------------------------------ a model that is cut

    def _cut(self, allocation: Allocation) -> Model:
        return cut_copy(self.model, self.groups.axes, allocation)

    def _made(self, allocation: Allocation) -> Model:
        """The model cut, and learned back where there is data."""
        with timed(self.report.timings, "cut"):
            made = self._cut(allocation)
        if self.feeds and allocation.removed:
            with timed(self.report.timings, "fit"):
                kept = kept_outputs(self.model, self.groups.axes, allocation)
                found = refit(
                    self.reference, made.to_proto(), kept, self.feeds, threads=self.settings.threads,
                    progress=self.settings.progress,
                )  # fmt: skip
                apply(made, found)
        return made

    def _error(self, made: Model) -> float:
        """Energy of the error of the outputs on the checks, as a share of that of the uncut model's."""
        wanted, found = (Runner(proto.SerializeToString(), threads=1) for proto in (self.reference, made.to_proto()))
        right = in_order(wanted.run, self.checks, self.settings.threads)
        return output_error(right, found, self.checks, self.settings.threads)

    # ------------------------------------------------------------------ what came of it

    def _sizes(self) -> dict[str, Shape] | None:
        """Shapes of the inputs; None where they are not known."""
        return {name: np.shape(x) for name, x in self.feeds[0].items()} if self.feeds else None

    def _count(self, made: Model) -> None:
        before, after = (_size(model, concrete_shapes(model, self._sizes())) for model in (self.model, made))
        self.report.macs, self.report.params = (before[0], after[0]), (before[1], after[1])

    def _tell_groups(self, allocation: Allocation) -> None:
        self.report.branches = [branch.name for branch in allocation.branches]
        for curve, cut in zip(allocation.curves, allocation.cut, strict=True):
            group = curve.group
            layers = tuple(node.label for node, _ in group.makers)
            after = int(np.count_nonzero(allocation.alive[group.ids]))
            row = GroupRow(group.name, group.kind, layers, len(group.ids), after, float(curve.loss[cut]))
            self.report.groups.append(row)


def _size(model: Model, shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Multiply-accumulates of one run, and float parameters."""
    stored = sum(math.prod(c.shape) for c in model.constants() if c.dtype.kind == "f")
    return sum(row.macs for row in count(model, shapes)), stored


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to those of its stage."""
    start = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - start
