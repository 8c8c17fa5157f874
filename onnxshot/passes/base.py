"""What a pass is: a small frozen object with a name that edits the model and says what it did and what it refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from onnxshot.graph import Model, Node
from onnxshot.graph.skip import Skip


@dataclass(slots=True)
class Change:
    """The outcome of one pass: how many edits it made, and what it refused."""

    edits: int = 0
    skips: list[Skip] = field(default_factory=list)

    def skip(self, node: Node, reason: str) -> None:
        """Record that `node` was left as it was."""
        self.skips.append(Skip(node.label, node.op, reason))


class Pass(Protocol):
    """A named transformation of a model. Its parameters are its fields."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def run(self, model: Model) -> Change:
        """Edit the model in place. The nodes come in, and are left, in topological order."""
