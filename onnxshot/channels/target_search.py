"""The search for what to cut: until a target is met, with the branches left out that are better left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from onnxshot.calibration.readers import Dataset
from onnxshot.channels.allocation import Allocation
from onnxshot.channels.branches import Branch
from onnxshot.channels.cut_model import Cutter
from onnxshot.channels.layer_times import timed
from onnxshot.delivery.write_results import Made
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Model
from onnxshot.runtimes.ort_bench import NOISE
from onnxshot.search.goal import Evaluate, Goal, Judge

_STEPS = 0.05  # of the work: how far one step of a search goes
_LEAST = 0.2  # of the work: where such a search ends in any case
_AIMS = 5  # trials on the way to a latency
_FAR = 1.5  # times the error without: where a branch left out does so much harm, others are not tried
_TRIED = 3  # branches that a model is made without, to see which one it needs least


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found.

    Attributes:
        allocation: what is cut.
        model: the model without it, with all learned back.
        missed: why the target was not reached; empty where it was.
        score, drop: that of the uncut model, and how far the found one is below it; None where nothing scores.
        refused: the cuts after the one found that would cost too much, in words.
    """

    allocation: Allocation
    model: Model
    missed: str = ""
    score: float | None = None
    drop: float | None = None
    refused: tuple[str, ...] = ()


@dataclass(slots=True)
class TargetSearch:
    """Looks for the cut that meets one target at the least error of the outputs.

    Attributes:
        cutter: makes the models that are tried.
        whole: nothing cut yet.
        target: its name, a field of `ShrinkStage`, and value.
        branches: what may be left out whole.
        data: samples that latency and score are measured on.
    """

    cutter: Cutter
    whole: Allocation
    target: tuple[str, float]
    branches: Sequence[Branch]
    data: Dataset
    _ranked: list[Branch] = field(init=False, default_factory=list)

    def run(self, evaluate: Evaluate | str | None = None) -> Found:
        """The best cut found, whether or not it meets the target. evaluate: what the score of a `max_drop` is of."""
        with timed(self.cutter.timings, "weigh"):
            self._ranked = sorted(self.branches, key=self._rate)
        name, value = self.target
        if name == "max_drop":
            return self._by_drop(Goal(max_drop=value, evaluate=evaluate), value)
        return self._nearest(self.whole, value)

    def _rate(self, branch: Branch) -> float:
        """Error of the outputs without a branch, per share of the work; nothing has learned yet."""
        without = replace(self.whole, branches=[branch])
        return self.cutter.error(self.cutter.cut(without.as_cut())) / max(1 - without.share, 1e-9)

    def _nearest(self, whole: Allocation, share: float) -> Found:
        """Cut to the share of the work, the parameters or the latency, with as many more branches left out as do good.

        whole: where to start; it is cut.
        """
        best, missed = whole, self._reach(whole, share)
        made = self.cutter.made(best.as_cut())
        error = math.inf if missed or not self._ranked else self.cutter.error(made)
        candidates = self._next(best)
        while candidates:
            without, better = best.branches, []
            limit = error
            for branch in candidates:
                trial = replace(whole, branches=[*without, branch])
                if trial.share < share and self.target[0] != "max_drop":
                    continue  # more than was asked for
                if self._reach(trial, share):
                    continue
                other = self.cutter.made(trial.as_cut())
                found = self.cutter.error(other)
                if found > _FAR * limit:
                    break  # of a network that needs its branches: each of the others would cost a fit too
                if found < limit:
                    better.append(branch)
                if found < error:
                    best, made, error, missed = trial, other, found, ""
            candidates = [branch for branch in better if branch not in best.branches]
        return Found(best, made, missed)

    def _next(self, allocation: Allocation) -> list[Branch]:
        """The branches to leave out next, least needed first."""
        return [branch for branch in self._ranked if branch not in allocation.branches][:_TRIED]

    def _reach(self, allocation: Allocation, share: float) -> str:
        """Cut until no more than this share is left; why more is."""
        name = self.target[0]
        if name == "target_latency":
            return self._to_latency(allocation, share)
        if allocation.shrink_to(share):
            return ""
        return f"no more than {1 - allocation.share:.1%} can be cut: {name} {share:g} is not reached"

    def _to_latency(self, allocation: Allocation, share: float) -> str:
        """Cut until the latency should be met: it falls with the time of the layers, by how much is measured.

        Weights do not matter for it. Each trial aims at the target by what all before have shown, through (1, 1).
        """
        fall, seen = 1 - share, []
        slope = 0.0
        for _ in range(_AIMS):
            trial = replace(allocation)
            trial.shrink_to(max(_LEAST, 1 - fall))
            seen.append((1 - trial.share, 1 - self.cutter.latency_share(self.cutter.cut(trial.as_cut()), self.data)))
            slope = sum(x * y for x, y in seen) / max(sum(x * x for x, _ in seen), 1e-9)
            fall = (1 - share) / max(slope, 1e-9)
        allocation.shrink_to(max(_LEAST, 1 - fall))
        found = 1 - slope * (1 - allocation.share)
        missed = f"the latency falls to {found:.1%} at most: target_latency {share:g} is not reached"
        return "" if found <= share + NOISE else missed

    def _by_drop(self, goal: Goal, limit: float) -> Found:
        """Step by step, as long as the score falls by no more than the limit; the last that kept to it."""
        best, made, drop = self.whole, self.cutter.cut(self.whole.as_cut()), 0.0
        with scratch() as folder:
            reference = self.cutter.given.at(folder / "float.onnx")
            judge = Judge(goal, reference, self.data, self.cutter.settings)
            going, refused = True, list[str]()
            while going and best.share - _STEPS >= _LEAST:
                going, refused = False, []
                for trial, candidate in self._further(best):
                    found = judge.drop(Made(candidate).save(folder / "cut.onnx"))
                    assert found is not None
                    if found <= limit:
                        best, made, drop = trial, candidate, found
                        going, refused = True, []
                        break
                    refused.append(f"cutting to {trial.share:.1%} would cost {found:.4g}")
        return Found(best, made, "", judge.float_score, drop, tuple(refused))

    def _further(self, best: Allocation) -> Iterator[tuple[Allocation, Model]]:
        """Ways to cut a step more: that of least error, then without each of some more branches.

        A score may like a branch left out where the outputs' error does not.
        """
        share = best.share - _STEPS
        found = self._nearest(replace(self.whole, branches=best.branches), share)
        if not found.missed:
            yield found.allocation, found.model
        for branch in self._next(best):
            trial = replace(self.whole, branches=[*best.branches, branch])
            if not self._reach(trial, share):
                yield trial, self.cutter.made(trial.as_cut())
