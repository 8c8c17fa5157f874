"""Measure what the outputs lose when one group of layers alone is quantized, and extend that to the other levels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from onnxshot.execution.candidate_race import candidate_of
from onnxshot.graph import Model, Node
from onnxshot.planning.plan import FLOAT, NodePlan, Plan
from onnxshot.search.block_levels import Rule, Stored
from onnxshot.search.output_loss import OutputLoss
from onnxshot.search.workbench import Workbench

_NOTABLE = 0.1  # share of the loss at the lowest level that 8 bits lose, from which groups are measured at 8 bits too
_MOST_LOSS = 1e9  # of outputs that are no numbers
_LEAST = 1e-30

Law = Callable[[Stored], float]
"""The loss of a group as a function of its level."""


class OutOfTime(Exception):
    """The time budget is spent. Raised between two measurements, never during one."""


@dataclass(slots=True)
class GroupLosses:
    """Measures the losses of groups.

    Attributes:
        bench: holds the float model and calibration samples.
        groups: layers of each group.
        stored: what each group takes at each level.
        plans: the levels, each with the plan in which all layers have it.
        rewrite: makes the model of a plan.
        in_time: raises OutOfTime when the budget is spent.
        show: tells progress: what, how many, of how many.
        out_of_time: whether the budget ended before every group was measured; the others then count as typical ones.
    """

    bench: Workbench
    groups: Sequence[Sequence[Node]]
    stored: Sequence[Sequence[Stored]]
    plans: Sequence[tuple[Rule, Plan]]
    rewrite: Callable[[Plan], Model]
    in_time: Callable[[], None]
    show: Callable[[str, int, int], None]
    out_of_time: bool = False
    low: dict[int, float] = field(default_factory=dict)
    high: dict[int, float] = field(default_factory=dict)

    def laws(self) -> list[Law]:
        """Measure every group at its lowest level, and at 8 bits where these lose much; return the law of each."""
        lowest = [min(levels, key=lambda s: s.bytes) for levels in self.stored]
        eight = [_in_8_bits(levels) for levels in self.stored]
        if self.groups:
            try:
                self._measure(lowest, eight)
            except OutOfTime:
                self.out_of_time = True
        weighed = sum(lowest[i].error * lowest[i].bytes for i in self.low)
        typical = sum(self.low.values()) / weighed if weighed > 0 else 1.0
        return [
            _law(bottom, top, self.low.get(i, typical * bottom.error * bottom.bytes), self.high.get(i))
            for i, (bottom, top) in enumerate(zip(lowest, eight, strict=True))
        ]

    def _measure(self, lowest: Sequence[Stored], eight: Sequence[Stored | None]) -> None:
        plans = {id(rule): plan for rule, plan in self.plans}
        outputs = OutputLoss(self.bench.reference.model, self.bench.samples, self.bench.prepared.settings.threads)

        def alone(group: Iterable[Node], at: Stored) -> float:
            self.in_time()
            return min(outputs.of(candidate_of(self.rewrite(_only(plans[id(at.rule)], group)))), _MOST_LOSS)

        count = len(self.groups)
        try:
            # The largest first: a budget that ends here has then seen what matters most.
            for i in sorted(range(count), key=lambda i: -lowest[i].bytes):
                self.low[i] = alone(self.groups[i], lowest[i])
                self.show("groups of layers measured", len(self.low), count)
            known = [(i, s) for i, s in enumerate(eight) if s is not None and s.error < lowest[i].error]
            if not known:
                return
            every = [node for i, _ in known for node in self.groups[i]]
            together, lost = alone(every, known[0][1]), sum(self.low.values()) or 1.0
            if together <= _NOTABLE * lost:
                self.high = {i: together * self.low[i] / lost for i, _ in known}
                return
            for i, at in sorted(known, key=lambda pair: -self.low[pair[0]]):
                self.high[i] = alone(self.groups[i], at)
                self.show("groups of layers measured at 8 bits", len(self.high), len(known))
        finally:
            outputs.close()


def _law(bottom: Stored, top: Stored | None, low: float, high: float | None) -> Law:
    """The loss of a group that loses `low` at `bottom` and, where that is known, `high` at `top`.

    It is a constant, of rounded activations, and a share of the squared error of the weights. Float loses nothing.
    """
    if high is None or top is None:
        return lambda at: low * at.error / bottom.error if bottom.error > 0 else 0.0
    floor, span = min(high, low), max(bottom.error - top.error, _LEAST)
    return lambda at: floor + (low - floor) * max(at.error - top.error, 0.0) / span if "bits" in at.rule else 0.0


def _in_8_bits(levels: Sequence[Stored]) -> Stored | None:
    return next((one for one in levels if one.rule.get("bits") == 8), None)


def _only(plan: Plan, nodes: Iterable[Node]) -> Plan:
    """The plan in which these nodes alone are quantized."""
    labels = {node.label for node in nodes}

    def left(node: NodePlan) -> NodePlan:
        return node if node.node in labels else replace(node, how=FLOAT, reason="not measured now")

    weights = {label: planned for label, planned in plan.weights.items() if label in labels}
    return replace(plan, nodes=tuple(map(left, plan.nodes)), weights=weights, stored={})
