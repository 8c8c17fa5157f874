"""Skip reasons: which node a pass or the planner left unchanged, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Skip:
    """A node that was left unchanged. Plans and reports list the skips.

    Attributes:
        node: label of the node.
        op: its operator.
        reason: why it was left unchanged, as a sentence without a full stop.
    """

    node: str
    op: str
    reason: str
