"""What a runtime really runs: precision and work of every node, as its optimized graph, profile or build log tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeExecution:
    """One node as it ran.

    Attributes:
        name, op: of the node.
        precision: int8, int4, float8 or float.
        macs: its work.
        exact: False where that could only be guessed.
        stored: int4 where that is what its weight is kept in, although it computes in float.
        by_itself: its weight is float in the file, and the runtime rounded it to int8 by itself.
        asked: the file asks for int8, as far as the runtime tells that apart: both factors are dequantized.
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
    """The optimized graph in numbers.

    Attributes:
        nodes: those of the file that multiply matrices, and all int8 ones; one twice where a part of it is float.
        ops: how many nodes of each operator the graph has, Q and DQ included; or kernels of each kind.
        float_between: float nodes that int8 was asked for by the Q and DQ around them, and that the runtime has not
            fused. Each as 'op name'.
        note: why there is nothing here, where there is nothing.
    """

    nodes: tuple[NodeExecution, ...]
    ops: Mapping[str, int]
    float_between: tuple[str, ...] = ()
    note: str = ""

    def unplanned(self, floats: Collection[str] = ()) -> list[str]:
        """Names of nodes that run in int8, or with weights rounded to it, although the file or a plan has them float.

        floats: the names of those that a plan leaves in float.
        """
        wrong = (n.name for n in self.nodes if n.by_itself or (n.precision != "float" and n.name in floats))
        return list(dict.fromkeys(wrong))

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates of one run."""
        return sum(n.macs for n in self.nodes)

    @property
    def int8_macs(self) -> int:
        """Those done on integers of 8 bits or fewer, or on floats of 8."""
        return sum(n.macs for n in self.nodes if n.precision != "float")

    @property
    def share(self) -> float:
        """Share 0..1 of the multiply-accumulates done on integers; 0 where there are none."""
        return self.int8_macs / self.total_macs if self.total_macs else 0.0

    @property
    def honoured(self) -> float:
        """Share 0..1 of the multiply-accumulates asked for in int8 that are done so; 1 where none are."""
        asked = [n for n in self.nodes if n.asked]
        total = sum(n.macs for n in asked)
        return sum(n.macs for n in asked if n.precision != "float") / total if total else 1.0

    @property
    def float_by_op(self) -> dict[str, int]:
        """Multiply-accumulates left in float by operator, most first: what stands in the way of a higher share."""
        left: Counter[str] = Counter()
        for node in self.nodes:
            if node.precision == "float" and node.macs:
                left[node.op] += node.macs
        return dict(left.most_common())
