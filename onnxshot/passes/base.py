"""The interface of a pass: a small frozen object that edits a model in place and reports its edits and skips."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from onnxshot.graph import Model, Node
from onnxshot.graph.skip import Skip


@dataclass(slots=True)
class Change:
    """The outcome of one pass.

    Attributes:
        edits: Number of edits. Each pass documents what it counts.
        skips: Nodes that the pass matched but left unchanged, each with the reason.
    """

    edits: int = 0
    skips: list[Skip] = field(default_factory=list)

    def skip(self, node: Node, reason: str) -> None:
        """Record that `node` was left unchanged.

        Args:
            node: The node.
            reason: The skip reason, a clause without a subject of its own ("its bias is not constant").
        """
        self.skips.append(Skip(node.label, node.op, reason))


class Pass(Protocol):
    """A named rewrite of a model. Its parameters are its fields."""

    @property
    def name(self) -> str:
        """Name of the pass in reports."""

    def run(self, model: Model) -> Change:
        """Edit the model in place.

        Args:
            model: The model. Its nodes are in topological order, before and after.

        Returns:
            The number of edits and the nodes that were skipped.
        """
