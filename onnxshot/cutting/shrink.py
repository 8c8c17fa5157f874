"""Take whole channels out of a network, so that its tensors shrink, and let what stays learn the answers back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import ModelProto

from onnxshot.calibrating import open_calib
from onnxshot.calibration.preprocess import Preset
from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.sampling import spread
from onnxshot.cutting.allocation import Allocation
from onnxshot.cutting.cut_model import cut_copy, kept_outputs, latency_share, store_as
from onnxshot.cutting.groups import Cost, Group, Groups, groups_of
from onnxshot.cutting.importance import Curve, norm_curves
from onnxshot.cutting.refit import apply, refit
from onnxshot.cutting.shrunk import GroupRow, ShrinkReport, ShrinkResult
from onnxshot.cutting.weigher import Weigher
from onnxshot.errors import UsageError
from onnxshot.goal import Evaluate, Goal, Judge
from onnxshot.graph import Model
from onnxshot.graph.load import copy_of, load_model
from onnxshot.graph.macs import concrete_shapes
from onnxshot.match import match_nodes
from onnxshot.output import Made
from onnxshot.parallel import in_order
from onnxshot.passes.base import Skip
from onnxshot.passes.normalize import normalize
from onnxshot.report import NOISE
from onnxshot.settings import Settings
from onnxshot.stages import MULTIPLES, ShrinkStage

Scope = Literal["all", "mlp", "heads"]
Importance = Literal["auto", "error", "l1", "l2"]

__all__ = ["GroupRow", "ShrinkReport", "ShrinkResult", "shrink"]

_LEARNED_FROM = 256  # samples
_TRIALS = 16  # samples on which the outputs are watched
_STEPS = 0.05  # of the work: how far one step of a search goes
_LEAST = 0.2  # of the work: where such a search ends in any case
_BISECTIONS = 5
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
    multiple: int = 1,
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
        target_flops: share 0..1 of the multiply-accumulates to keep.
        target_params: share 0..1 of the parameters to keep.
        target_latency: share 0..1 of the latency on ONNX Runtime to keep, both models timed in turns.
        max_drop: most that the score of `evaluate` may fall: step by step as much is cut as that allows.
        evaluate: as in `Goal`.
        scope: 'mlp' and 'heads' cut hidden units of MLPs, or heads of attentions, only.
        multiple: cut so that the width of layers becomes a multiple of it, where they have that many.
        include: globs of names of layers, as `quantize` takes them: of only these layers are outputs cut.
        exclude: the same, of layers whose outputs are left whole.
        importance: 'error' of the layers that read a channel, after the others have made up for it; or 'l1', 'l2' norm
            of its weights; 'auto' is 'error' where there is data.
        preset: preprocessing of pictures.
        settings: how to run it.

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
    run = _Run(model, settings, asked.targets, multiple)
    if importance == "error" and calib is None:
        raise UsageError("importance 'error' needs data", "give calibration data, or importance 'l1' or 'l2'")
    with open_calib("random" if calib is None else calib, run.model, preset, settings) as data:
        if calib is not None:
            run.learn_from(data)
        rows = run.chosen(scope, asked.include, asked.exclude)
        return run.result(rows, data, importance, evaluate)


@dataclass(slots=True)
class _Run:
    """One run under way: the float model, its groups, and what they are worth."""

    source: str | Path | ModelProto
    settings: Settings
    target: dict[str, float]
    multiple: int
    started: float = field(default_factory=time.perf_counter)
    model: Model = field(init=False)  # normalized, uncut
    report: ShrinkReport = field(init=False)
    reference: ModelProto = field(init=False)
    groups: Groups = field(init=False)
    cost: Cost = field(init=False)
    feeds: list[Mapping[str, Any]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        name = str(self.source) if isinstance(self.source, str | Path) else "(ModelProto)"
        self.report = ShrinkReport(name, dict(self.target))
        self.model = load_model(self.source)
        normalize(self.model)

    def learn_from(self, data: Dataset) -> None:
        """Read the samples."""
        self.report.notes += data.notes
        chosen = spread(len(data))[:_LEARNED_FROM]
        self.feeds = [s.feed for s in in_order(data.__getitem__, chosen, self.settings.threads)]
        self.report.samples = len(self.feeds)

    def result(
        self, rows: Sequence[Group], data: Dataset, importance: Importance, evaluate: Evaluate | str | None
    ) -> ShrinkResult:
        """Weigh the groups, cut them, and let what stays learn."""
        if not rows:
            self.report.notes.append("nothing was cut: no group of channels can be; the reasons are in the skips")
            self.report.reached = False
            self._count(Allocation([], self.cost, "macs", 1))
            self.report.seconds = time.perf_counter() - self.started
            return ShrinkResult(load_model(self.source), self.report)
        self.reference = self.model.to_proto()
        with timed(self.report.timings, "weigh"):
            curves = self._curves(rows, importance)
        kind: Literal["macs", "params"] = "params" if "target_params" in self.target else "macs"
        allocation = Allocation(curves, self.cost, kind, self.multiple)
        if evaluate is not None:
            made = self._by_drop(allocation, evaluate, data)
        else:
            self._by_target(allocation, data)
            made = self._made(allocation)
        self._count(allocation)
        if self.settings.verify and allocation.removed:
            with timed(self.report.timings, "bench"):
                self.report.latency = latency_share(self.model, made, data, self.settings)
            if self.report.latency > 1 - NOISE and self.multiple < max(MULTIPLES):
                self.report.notes.append(_NOT_FASTER)
        store_as(self.model, made)
        self.report.seconds = time.perf_counter() - self.started
        return ShrinkResult(made, self.report)

    # ------------------------------------------------------------------ what may be cut, and what it is worth

    def chosen(self, scope: Scope, include: Sequence[str], exclude: Sequence[str]) -> list[Group]:
        """The groups that may be cut; the others are in the report, with the reason."""
        sizes = {name: np.shape(x) for name, x in self.feeds[0].items()} if self.feeds else None
        shapes = concrete_shapes(self.model, sizes)
        self.groups = groups_of(self.model, shapes)
        self.cost = Cost(self.model, self.groups, shapes)
        picked = match_nodes(self.model, include, "include") if include else None
        left = match_nodes(self.model, exclude, "exclude")
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

    def _curves(self, rows: Sequence[Group], importance: Importance) -> list[Curve]:
        if self.feeds and importance in ("auto", "error"):
            checks = self.feeds[:_TRIALS] if len(self.feeds) > 4 * _TRIALS else self.feeds[::4]
            seen = {id(feed) for feed in checks}
            learn = [feed for feed in self.feeds if id(feed) not in seen] or checks
            weigher = Weigher(
                self.reference, learn, checks, self.settings.threads, self.multiple, self.settings.progress
            )
            return weigher.curves(rows)
        return norm_curves(self.model, self.groups.axes, rows, 1 if importance == "l1" else 2, self.multiple)

    # ------------------------------------------------------------------ targets

    def _by_target(self, allocation: Allocation, data: Dataset) -> None:
        """Cut to the share of the work or the parameters, or to that of the latency."""
        ((name, share),) = self.target.items()
        if name == "target_latency":
            self._by_latency(allocation, share, data)
        elif not allocation.shrink_to(share):
            self._missed(f"no more than {1 - allocation.share:.1%} can be cut: {name} {share:g} is not reached")

    def _by_latency(self, allocation: Allocation, share: float, data: Dataset) -> None:
        """Halve the interval of work until the latency is met as closely as it can be told: it needs no weights."""
        low, high = _LEAST, 1.0
        best: tuple[float, float] | None = None
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            trial = Allocation(allocation.curves, self.cost, allocation.kind, self.multiple)
            trial.shrink_to(middle)
            found = latency_share(self.model, cut_copy(self.model, self.groups.axes, trial), data, self.settings)
            if found <= share:
                low, best = middle, (middle, found)
            else:
                high = middle
        if best is None:
            self._missed(f"{_LEAST:.0%} of the work still takes over {share:.1%} of the time")
        allocation.shrink_to(best[0] if best else _LEAST)

    def _by_drop(self, allocation: Allocation, evaluate: Evaluate | str, data: Dataset) -> Model:
        """Step by step, as long as the score falls by no more than it may; the last model that kept to it."""
        goal = Goal(max_drop=self.target["max_drop"], evaluate=evaluate)
        best = copy_of(self.model)
        with tempfile.TemporaryDirectory() as folder:
            judge = Judge(goal, Made(self.model).save(Path(folder) / "float.onnx"), data, self.settings)
            self.report.score, self.report.drop = judge.float_score, 0.0
            kept, share = list(allocation.cut), 1.0
            while share - _STEPS >= _LEAST:
                share = allocation.share - _STEPS
                if not allocation.shrink_to(share):
                    break
                made = self._made(allocation)
                drop = judge.drop(Made(made).save(Path(folder) / "cut.onnx"))
                assert drop is not None
                if drop > self.target["max_drop"]:
                    self.report.notes.append(f"cutting to {allocation.share:.1%} would cost {drop:.4g}")
                    break
                best, kept, self.report.drop = made, list(allocation.cut), drop
        allocation.go_back(kept)
        return best

    def _missed(self, note: str) -> None:
        self.report.notes.append(note)
        self.report.reached = False

    # ------------------------------------------------------------------ a model that is cut

    def _made(self, allocation: Allocation) -> Model:
        """The model cut, and learned back where there is data."""
        with timed(self.report.timings, "cut"):
            made = cut_copy(self.model, self.groups.axes, allocation)
        if self.feeds and allocation.removed:
            with timed(self.report.timings, "fit"):
                kept = kept_outputs(self.model, self.groups.axes, allocation)
                found = refit(
                    self.reference, made.to_proto(), kept, self.feeds, threads=self.settings.threads,
                    progress=self.settings.progress,
                )  # fmt: skip
                apply(made, found)
        return made

    def _count(self, allocation: Allocation) -> None:
        whole = np.ones(self.cost.count, bool)
        self.report.macs = round(self.cost.macs(whole)), round(self.cost.macs(allocation.alive))
        self.report.params = round(self.cost.params(whole)), round(self.cost.params(allocation.alive))
        for curve, cut in zip(allocation.curves, allocation.cut, strict=True):
            group, before = curve.group, len(curve.group.ids)
            layers = tuple(node.label for node, _ in group.makers)
            row = GroupRow(group.name, group.kind, layers, before, before - cut, float(curve.loss[cut]))
            self.report.groups.append(row)


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to those of its stage."""
    start = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - start
