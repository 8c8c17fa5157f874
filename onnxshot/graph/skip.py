"""Nodes that were left as they were, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Skip:
    """Something that was left as it was, and why. Skips are data: they end up in the plan and the report."""

    node: str
    op: str
    reason: str
