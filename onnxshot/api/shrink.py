"""Take whole channels out of a network, so that its tensors shrink, and let what stays learn the answers back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import ModelProto

from onnxshot.arguments import checked
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.sampling import spread
from onnxshot.channels.allocation import Allocation
from onnxshot.channels.cut import Cut, cut_of, samples_of
from onnxshot.channels.cut_model import Cutter, store_as
from onnxshot.channels.eligible import Choice, choose
from onnxshot.channels.groups import groups_of
from onnxshot.channels.importance import batchnorm_scales
from onnxshot.channels.layer_times import timed
from onnxshot.channels.target_search import Found, TargetSearch
from onnxshot.channels.worth import curves_of, nothing_cut
from onnxshot.delivery.input_files import of_run
from onnxshot.delivery.output_files import is_external, of_result
from onnxshot.delivery.record import record, source_of, stamp
from onnxshot.delivery.write_results import source_name
from onnxshot.execution.parallel import in_order
from onnxshot.execution.statistics_cache import model_hash
from onnxshot.execution.statistics_source import open_calib
from onnxshot.graph import Model
from onnxshot.graph.axis_coupling import Shape
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import Sizes
from onnxshot.graph.shape_inference import refuse_giants
from onnxshot.maths.channel_removal import Floats
from onnxshot.passes.normalize import normalize
from onnxshot.passes.unshare import Reshare, Unshare
from onnxshot.passes.widen_half import WidenHalf
from onnxshot.recipes.stages import MULTIPLES, ShrinkStage
from onnxshot.results.shrunk import GroupRow, ShrinkReport, ShrinkResult
from onnxshot.rewriting.prepare import fold_constants, half_notes, narrow, widen
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.runtimes.ort_bench import NOISE
from onnxshot.runtimes.ort_runtime import Feed
from onnxshot.runtimes.ort_tensor_sizes import sizes_on
from onnxshot.search.goal import Evaluate, name_of
from onnxshot.settings import Settings
from onnxshot.verification import proof
from onnxshot.verification.reference import Reference, reference_of

Scope = Literal["all", "mlp", "heads"]
Importance = Literal["auto", "error", "activation", "batchnorm", "l1", "l2"]

__all__ = ["GroupRow", "ShrinkReport", "ShrinkResult", "shrink"]

_LEARNED_FROM = 256  # samples
_TRIALS = 32  # samples on which the outputs are watched, an eighth of what there is at most
_LEAST_TRIALS = 4
_BLOCKED = ("Conv", "ConvTranspose")  # whose kernels run on blocks of channels
_NOT_FASTER = "not faster than before: convolutions of ONNX Runtime run on blocks of 8 or 16 channels, try multiple=16"


@checked
@blames_model
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
    output: str | Path | None = None,
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
        output: where to write; None keeps the result in memory.
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
            "max_drop": max_drop, "evaluate": None if evaluate is None else name_of(evaluate), "scope": scope,
            "multiple": multiple, "include": include, "exclude": exclude, "importance": importance,
        }
    )  # fmt: skip
    run = _Run(model, asked.resolved(calib is not None), settings)
    files = settings.files.reading(*of_run(run.model, calib, preset, evaluate=evaluate))
    if output is not None:
        files = files.writing(*of_result(Path(output), external=is_external(run.model)))
    files.check()
    with open_calib("random" if calib is None else calib, run.model, preset, settings) as data:
        run.refer(data)
        if calib is not None:
            run.learn_from(data)
        result = run.result(lambda cutter, choice: run.search(cutter, choice, data, evaluate))
        if output is not None:
            result.deliver(Path(output), source_of(calib, preset, data if calib is not None else None))
    return result


def cut_again(
    model: str | Path, data: Dataset | None, asked: ShrinkStage, decided: Mapping[str, Any], settings: Settings
) -> ShrinkResult:
    """What an earlier run made of a model: nothing is weighed, timed or searched for, but all is learned back.

    data: the samples, opened. decided: by that run, as its record holds it. The report holds no groups. Raises what
    `shrink` raises, and UsageError where what was decided does not fit the model.
    """
    run = _Run(model, asked, settings)
    samples = samples_of(decided)
    run.refer(data)
    if data is not None:
        run.learn_from(data.subset(range(min(samples, len(data)))))
    return run.result(lambda cutter, choice: run.repeat(cutter, choice, decided))


@dataclass(slots=True)
class _Run:
    """One run under way: the float model, its groups, and what they are worth."""

    source: str | Path | ModelProto
    asked: ShrinkStage
    settings: Settings
    started: float = field(default_factory=time.perf_counter)
    model: Model = field(init=False)  # normalized, uncut
    source_hash: str = field(init=False)  # of the model as it was given
    widened: WidenHalf = field(init=False)  # what was computed in 16 bits
    reference: Reference = field(init=False)
    report: ShrinkReport = field(init=False)
    shapes: dict[str, Shape] = field(init=False)
    scales: dict[str, Floats] = field(init=False, default_factory=dict)  # of BatchNormalizations, by what they read
    feeds: list[Feed] = field(init=False, default_factory=list)
    checks: list[Feed] = field(init=False, default_factory=list)  # that nothing is fitted on
    given: int = field(init=False, default=0)  # samples

    def __post_init__(self) -> None:
        self.report = ShrinkReport(source_name(self.source), self.asked.targets)
        self.model = load_model(self.source)
        self.source_hash = model_hash(self.model)
        self.widened = widen(self.model)
        self.report.notes += half_notes(self.widened.computed, kept=True)
        if self.asked.importance == "batchnorm":
            fold_constants(self.model)
            self.scales = batchnorm_scales(self.model)
        normalize(self.model)
        Unshare().run(self.model)
        former = self.model.former  # a layer that took its BatchNormalization in gives what that one gave
        self.scales = {former.get(name, name): gamma for name, gamma in self.scales.items()}
        refuse_giants(self.model)

    def refer(self, data: Dataset | None) -> None:
        """Find what outputs are held against. Raises ModelError where normalizing has changed them."""
        small = self.model.weight_bytes() < proof.MAX_BYTES and len(self.model.graph.nodes) < proof.MAX_NODES
        check = self.settings.verify and small
        with timed(self.report.timings, "normalize"):
            self.reference = reference_of(self.source, self.model, data, check=check, threads=self.settings.threads)
        self.report.notes += [self.reference.note] if self.reference.note else []

    def learn_from(self, data: Dataset) -> None:
        """Read the samples."""
        self.report.notes += data.notes
        self.given = len(data)
        chosen = spread(len(data))[:_LEARNED_FROM]
        feeds: list[Feed] = [s.feed for s in in_order(data.__getitem__, chosen, self.settings.threads)]
        self.report.samples = len(feeds)
        watched = min(_TRIALS, max(_LEAST_TRIALS, len(feeds) // 8))
        self.checks, self.feeds = feeds[:watched], feeds[watched:] or feeds

    def result(self, find: Callable[[Cutter, Choice], tuple[Cut, Model]]) -> ShrinkResult:
        """See what may be cut, and have what `find` finds cut and learned back; stamped."""
        sizes = self._sizes(self.model)
        self.shapes, self.report.sizes = sizes.shapes, sizes.report_entry(sizes.work(self.model))
        groups = groups_of(self.model, self.shapes)
        axes, report = groups.axes, self.report
        choice = choose(self.model, groups, self.shapes, self.asked, sampled=self.given > 0)
        report.skips = list(choice.skips)
        if choice.groups:
            proto = self.model.to_proto()
            cutter = Cutter(
                self.model, proto, self.reference, axes, self.feeds, self.checks, self.settings, report.timings
            )  # fmt: skip
            cut, made = find(cutter, choice)
            Reshare().run(made)
            self._count(made)
            store_as(self.model, made)
            made.stated = self.model.stated
            made.former |= self.model.former
            narrow(made, self.widened)
        else:
            self._miss("nothing was cut: no group of channels can be; the reasons are in the skips")
            self._count(self.model)
            cut, made = Cut((), np.ones(axes.count, bool)), load_model(self.source)
        decided = {"samples": self.given, **cut.named(axes)}
        stamp(made, record(self.asked, self.source_hash, self.settings, decided, sampled=self.given > 0))
        report.seconds = time.perf_counter() - self.started
        return ShrinkResult(made, report)

    def search(
        self, cutter: Cutter, choice: Choice, data: Dataset, evaluate: Evaluate | str | None
    ) -> tuple[Cut, Model]:
        """Weigh what may be cut, and look for the cut that meets the target."""
        with timed(self.report.timings, "weigh"):
            curves, skips = curves_of(cutter, choice.groups, self.asked, self.scales)
        self.report.skips += skips
        ((name, value),) = self.asked.targets.items()
        whole = nothing_cut(cutter, curves, self.asked, self.shapes)
        found = TargetSearch(cutter, whole, (name, value), choice.branches, data).run(evaluate)
        self._tell(found)
        cut = found.allocation.as_cut()
        if self.settings.verify and cut.removed:
            self._bench(cutter, found, data)
        return cut, found.model

    def repeat(self, cutter: Cutter, choice: Choice, decided: Mapping[str, Any]) -> tuple[Cut, Model]:
        """Cut what an earlier run has decided to."""
        cut = cut_of(decided, cutter.axes, choice)
        self.report.branches = [branch.name for branch in cut.branches]
        return cut, cutter.made(cut)

    # ------------------------------------------------------------------ what came of it

    def _tell(self, found: Found) -> None:
        """Put into the report what was cut, and why not more."""
        report, allocation = self.report, found.allocation
        report.score, report.drop = found.score, found.drop
        report.notes += found.refused
        if found.missed:
            self._miss(found.missed)
        else:
            self._tell_overshoot(allocation)
        report.branches = [branch.name for branch in allocation.branches]
        for curve, cut in zip(allocation.curves, allocation.cut, strict=True):
            group = curve.group
            layers = tuple(node.label for node, _ in group.makers)
            after = int(np.count_nonzero(allocation.alive[group.ids]))
            row = GroupRow(group.name, group.kind, layers, len(group.ids), after, float(curve.loss[cut]))
            report.groups.append(row)

    def _tell_overshoot(self, allocation: Allocation) -> None:
        """Say where the target could not be met closely."""
        ((name, share),) = self.asked.targets.items()
        if name not in ("target_flops", "target_params") or not allocation.is_far(share):
            return
        what = "work" if name == "target_flops" else "parameters"
        hint = ": a smaller --multiple comes closer" if self.asked.multiple > 1 else ""
        self.report.notes.append(
            f"{name} is {share:g}, and {allocation.share:.1%} of the {what} are left: channels go in steps, of "
            f"{self.asked.multiple} where layers have as many, and a step less misses it{hint}"
        )

    def _bench(self, cutter: Cutter, found: Found, data: Dataset) -> None:
        """Measure the latency that is left."""
        report, wanted = self.report, self.asked.target_latency
        with timed(report.timings, "bench"):
            report.latency = cutter.latency_share(found.model, data)
        if report.reached and wanted is not None and report.latency > wanted + NOISE:
            self._miss(f"{report.latency:.1%} of the latency were measured at the end")
        if report.latency > 1 - NOISE and self.asked.multiple < max(MULTIPLES) and _cuts_convolutions(found.allocation):
            report.notes.append(_NOT_FASTER)

    def _miss(self, note: str) -> None:
        self.report.notes.append(note)
        self.report.reached = False

    def _count(self, made: Model) -> None:
        before, after = (_size(model, self._sizes(model)) for model in (self.model, made))
        self.report.macs, self.report.params = (before[0], after[0]), (before[1], after[1])

    def _sizes(self, model: Model) -> Sizes:
        """Shapes of a model's tensors, on the first sample where there is one."""
        return sizes_on(model, self.feeds[0] if self.feeds else None, threads=self.settings.threads)


def _cuts_convolutions(allocation: Allocation) -> bool:
    rows = zip(allocation.curves, allocation.cut, strict=True)
    return any(node.op in _BLOCKED for curve, cut in rows if cut for node, _ in curve.group.makers)


def _size(model: Model, sizes: Sizes) -> tuple[int, int]:
    """Multiply-accumulates of one run, and float parameters."""
    stored = sum(math.prod(c.shape) for c in model.constants() if c.dtype.kind == "f")
    return sum(row.macs for row in sizes.work(model)), stored
