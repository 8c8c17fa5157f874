"""All rules of the verdict, one for each fact of a report, in the order of their weight.

A rule is a function that reads one fact of a report, given as plain values, and yields findings. To add one, write it
in `accuracy_findings` or `gain_findings` and add it to `RULES` where its weight puts it: of findings of the same level,
the first decides what to do next. Advice names what was measured to help, or a search that measures; no rule guesses.
"""

from __future__ import annotations

from onnxshot.report import accuracy_findings as accuracy
from onnxshot.report import gain_findings as gain
from onnxshot.report.finding import Rule

RULES: tuple[Rule, ...] = (
    accuracy.not_finite, accuracy.contract, accuracy.blank, accuracy.copies, accuracy.goal, accuracy.perplexity,
    accuracy.outputs_below, accuracy.samples_below, accuracy.parts_below, accuracy.artifacts_below,
    accuracy.stages_below, gain.nothing, accuracy.data, accuracy.own_samples, gain.size_and_speed, gain.in_target,
    gain.no_gain, gain.coverage, accuracy.optimizer, gain.unplanned,
)  # fmt: skip
"""The rules for results of all verbs except shrink, in the order of their weight."""

ACCURACY_RULES: tuple[Rule, ...] = (
    accuracy.goal,
    accuracy.perplexity,
    accuracy.outputs_below,
    accuracy.samples_below,
    accuracy.parts_below,
)
"""The rules whose findings a user may accept."""

SHRINK_RULES: tuple[Rule, ...] = (accuracy.cut,)
"""The rules for results of shrink."""
