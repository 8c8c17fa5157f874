"""What a runtime really executes: precision and work per node, from its optimized graph, profile or build log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NodeExecution:
    """One node as the runtime executed it.

    Attributes:
        name: Label of the node in the .onnx file.
        op: Operator of the node.
        precision: What it computes in: "int8", "int4", "float8" or "float".
        macs: Multiply-accumulates of one inference.
        exact: False if the shapes behind `macs` had to be guessed.
        asked: True if the file asks for int8, that is, if both factors come from a DequantizeLinear.
        stored: "int4" or "int8" if the weight is kept in such integers, whatever the node computes in; else empty.
        by_itself: True if the weight is float in the file and the runtime rounded it to int8 on its own.
    """

    name: str
    op: str
    precision: str
    macs: int
    exact: bool = True
    asked: bool = False
    stored: str = ""
    by_itself: bool = False


@dataclass(frozen=True, slots=True)
class Execution:
    """What a runtime makes of a model.

    Attributes:
        nodes: All nodes that multiply matrices, all int8 nodes, and Gathers of tables that are kept in integers. A node
            that runs partly in float appears twice.
        ops: Number of nodes per operator in the optimized graph, Q and DQ included; or of kernels per kind.
        float_between: Nodes between Q and DQ that the runtime did not fuse and runs in float, as "op name".
        note: Why nothing is known; empty if something is.
    """

    nodes: tuple[NodeExecution, ...]
    ops: Mapping[str, int]
    float_between: tuple[str, ...] = ()
    note: str = ""

    def unplanned(self, floats: Collection[str] = ()) -> list[str]:
        """Names of nodes that run in int8, or with weights rounded to int8, although they should be float.

        Args:
            floats: Names of the nodes that the plan leaves in float.
        """
        wrong = (n.name for n in self.nodes if n.by_itself or (n.precision != "float" and n.name in floats))
        return list(dict.fromkeys(wrong))

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(n.macs for n in self.nodes)

    @property
    def int8_macs(self) -> int:
        """Multiply-accumulates done in 8 bits or fewer, float8 included."""
        return sum(n.macs for n in self.nodes if n.precision != "float")

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """The work by weights in blocks: `bits` of the weights, `activations` (int8 or float), `macs_share` 0..1."""
        work: Counter[tuple[str, bool]] = Counter()
        for node in self.nodes:
            if node.stored and node.macs:
                work[node.stored, node.precision != "float"] += node.macs
        return [
            {
                "bits": int(stored.removeprefix("int")), "activations": "int8" if rounded else "float",
                "macs_share": macs / self.total_macs,
            }
            for (stored, rounded), macs in work.most_common()
        ]  # fmt: skip

    @property
    def share(self) -> float:
        """Share of the multiply-accumulates that is done in 8 bits or fewer, 0..1; 0 if there are none."""
        return self.int8_macs / self.total_macs if self.total_macs else 0.0

    @property
    def honoured(self) -> float:
        """Share of the multiply-accumulates asked for in int8 that really run in int8, 0..1; 1 if none are asked."""
        asked = [n for n in self.nodes if n.asked]
        total = sum(n.macs for n in asked)
        return sum(n.macs for n in asked if n.precision != "float") / total if total else 1.0

    @property
    def float_by_op(self) -> dict[str, int]:
        """Multiply-accumulates left in float per operator, largest first."""
        left: Counter[str] = Counter()
        for node in self.nodes:
            if node.precision == "float" and node.macs:
                left[node.op] += node.macs
        return dict(left.most_common())
