"""Search for the removal that meets the target with the least output error, with and without residual branches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from onnxshot.calibration.readers import Dataset
from onnxshot.channels.allocation import Allocation
from onnxshot.channels.branches import Branch
from onnxshot.channels.candidate_models import CandidateBuilder
from onnxshot.channels.stage_seconds import timed
from onnxshot.delivery.write_results import Made
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Model
from onnxshot.runtimes.ort_bench import NOISE
from onnxshot.search.goal import Evaluate, Goal, Judge

_STEPS = 0.05  # share of the work that one step of a `max_drop` search removes
_LEAST = 0.2  # share of the work at which every search ends
_AIMS = 5  # candidates that are timed on the way to a latency
_FAR = 1.5  # relative error after removing a branch above which no other branch is tried
_TRIED = 3  # branches that are tried next, least important first


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search.

    Attributes:
        allocation: What is removed.
        model: The model without it, with the remaining weights fitted.
        missed: Why the target was not reached; empty if it was.
        score: Score of the model before removal; None if nothing is scored.
        drop: How far the score of `model` is below `score`.
        refused: Further removals that were tried and would cost too much, one sentence each.
    """

    allocation: Allocation
    model: Model
    missed: str = ""
    score: float | None = None
    drop: float | None = None
    refused: tuple[str, ...] = ()


def search(
    builder: CandidateBuilder,
    initial: Allocation,
    target: tuple[str, float],
    branches: Sequence[Branch],
    data: Dataset,
    evaluate: Evaluate | str | None = None,
) -> Found:
    """Find the best removal, whether or not it meets the target.

    Args:
        builder: Builds and measures candidates.
        initial: The allocation with nothing removed.
        target: Name of a target of `ShrinkStage`, and its value.
        branches: Residual branches that may be removed as a whole.
        data: Samples that latency and score are measured on.
        evaluate: The score that a `max_drop` limits.
    """
    with timed(builder.timings, "weigh"):
        ranked = sorted(branches, key=lambda branch: _error_per_work(builder, initial, branch))
    name, value = target
    task = _Search(builder, initial, name, tuple(ranked), data)
    if name == "max_drop":
        return task.by_drop(Goal(max_drop=value, evaluate=evaluate), value)
    return task.nearest(initial, value)


def _error_per_work(builder: CandidateBuilder, initial: Allocation, branch: Branch) -> float:
    """Output error without a branch, per removed share of the work; nothing is fitted."""
    without = replace(initial, branches=[branch])
    return builder.output_error(builder.without(without.as_removal())) / max(1 - without.share, 1e-9)


@dataclass(frozen=True, slots=True)
class _Search:
    """The constants of one search. ranked: the branches, least important first."""

    builder: CandidateBuilder
    initial: Allocation
    target: str
    ranked: tuple[Branch, ...]
    data: Dataset

    def nearest(self, initial: Allocation, share: float) -> Found:
        """Remove down to this share of the work, the parameters or the latency.

        Branches are removed as a whole as long as that reduces the output error. initial: where to start; it is
        changed.
        """
        best, missed = initial, self._reach(initial, share)
        made = self.builder.build(best.as_removal())
        error = math.inf if missed or not self.ranked else self.builder.output_error(made)
        candidates = self._next(best)
        while candidates:
            without, better = best.branches, []
            limit = error
            for branch in candidates:
                trial = replace(initial, branches=[*without, branch])
                if trial.share < share and self.target != "max_drop":
                    continue  # the branch alone exceeds the target
                if self._reach(trial, share):
                    continue
                other = self.builder.build(trial.as_removal())
                found = self.builder.output_error(other)
                if found > _FAR * limit:
                    break  # this network needs its branches; each further trial would cost a fit
                if found < limit:
                    better.append(branch)
                if found < error:
                    best, made, error, missed = trial, other, found, ""
            candidates = [branch for branch in better if branch not in best.branches]
        return Found(best, made, missed)

    def _next(self, allocation: Allocation) -> list[Branch]:
        """The branches to try next, least important first."""
        return [branch for branch in self.ranked if branch not in allocation.branches][:_TRIED]

    def _reach(self, allocation: Allocation, share: float) -> str:
        """Remove channels until at most this share remains; return why that failed, or an empty text."""
        if self.target == "target_latency":
            return self._to_latency(allocation, share)
        if allocation.remove_until(share):
            return ""
        return f"at most {1 - allocation.share:.1%} can be removed: {self.target} {share:g} is not reached"

    def _to_latency(self, allocation: Allocation, share: float) -> str:
        """Remove channels until the predicted latency meets the target; return why that failed, or an empty text.

        The prediction is the sum of layer times. Candidates are measured to fit the slope of latency over predicted
        time, a line through (1, 1); each candidate aims at the target with the slope so far. Nothing is fitted, since
        latency does not depend on the weights.
        """
        fall, seen = 1 - share, []
        slope = 0.0
        for _ in range(_AIMS):
            trial = replace(allocation)
            trial.remove_until(max(_LEAST, 1 - fall))
            _, latency = self.builder.latency(self.builder.without(trial.as_removal()), self.data)
            seen.append((1 - trial.share, 1 - latency))
            slope = sum(x * y for x, y in seen) / max(sum(x * x for x, _ in seen), 1e-9)
            fall = (1 - share) / max(slope, 1e-9)
        allocation.remove_until(max(_LEAST, 1 - fall))
        found = 1 - slope * (1 - allocation.share)
        missed = f"the latency falls to {found:.1%} at best: target_latency {share:g} is not reached"
        return "" if found <= share + NOISE else missed

    def by_drop(self, goal: Goal, limit: float) -> Found:
        """Remove work step by step while the score falls by at most `limit`; return the last step within it."""
        best, made, drop = self.initial, self.builder.without(self.initial.as_removal()), 0.0
        with scratch() as folder:
            reference = self.builder.reference.at(folder / "float.onnx")
            judge = Judge(goal, reference, self.data, self.builder.settings)
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
                    refused.append(f"reducing the work to {trial.share:.1%} would lower the score by {found:.4g}")
        return Found(best, made, "", judge.float_score, drop, tuple(refused))

    def _further(self, best: Allocation) -> Iterator[tuple[Allocation, Model]]:
        """Candidates that are one step smaller: the one of least output error, then one without each next branch.

        A score may tolerate the removal of a branch that the output error does not.
        """
        share = best.share - _STEPS
        found = self.nearest(replace(self.initial, branches=best.branches), share)
        if not found.missed:
            yield found.allocation, found.model
        for branch in self._next(best):
            trial = replace(self.initial, branches=[*best.branches, branch])
            if not self._reach(trial, share):
                yield trial, self.builder.build(trial.as_removal())
