"""The verdict on a report: whether a result is ready to deploy, what speaks against it, and what to do next.

The terminal, the HTML page and the JSON show the same verdict. It is made from the findings of all rules (`findings`):
the worst level of all findings is the verdict's level, and the first finding of that level says what to do next.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from onnxshot.report.advice import BAD, CAUTION, READY, Values, when_ready, with_paths
from onnxshot.report.findings import ACCURACY_RULES, RULES, SHRINK_RULES
from onnxshot.wording import worded

WORDS = {READY: "ready", CAUTION: "look closer", BAD: "not good enough"}
"""The words for each level."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a result.

    Attributes:
        level: 'ready', 'caution' or 'bad'.
        reasons: what speaks against the result, in words, the worst first; empty where nothing does.
        next: the one thing to do next.
    """

    level: str
    reasons: tuple[str, ...]
    next: str

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain values, as stored in reports."""
        return {**asdict(self), "reasons": list(self.reasons)}


def judge(values: Values) -> Verdict:
    """The verdict on a report of any verb, given as plain values (`Report.to_dict`).

    Accuracy that the user accepts speaks against a result, and does not make it bad.
    """
    found = []
    for rule in RULES if "worst" in values else SHRINK_RULES:
        accepted = values.get("accepted") and rule in ACCURACY_RULES
        found += [replace(finding, level=CAUTION) if accepted else finding for finding in rule(values)]
    found.sort(key=lambda finding: finding.level != BAD)  # stable: rules are in the order of their weight
    next_step = worded(with_paths(found[0].next if found else when_ready(values), values))
    if not found:
        return Verdict(READY, (), next_step)
    return Verdict(found[0].level, tuple(dict.fromkeys(worded(f.reason) for f in found)), next_step)
