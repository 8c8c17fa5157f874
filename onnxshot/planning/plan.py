"""What will be done to each tensor and node, and why not to the others. Values only: they print, compare and travel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.range_methods import Range
from onnxshot.graph.skip import Skip
from onnxshot.maths.affine import QuantParams, QuantScheme

STATIC, DYNAMIC, WEIGHTS, HALF, FLOAT = "static", "dynamic", "weights", "half", "float"


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What happens to one node: `how` is static, dynamic, weights, half (16 bits) or float, with a reason."""

    node: str
    op: str
    how: str
    reason: str = ""
    has_weight: bool = False


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor that gets a Q/DQ pair.

    Attributes:
        scheme: type and symmetry.
        source: the tensor whose values it holds, moved about at most; the one to observe.
        group: tensors of one group share scale and zero point, chosen from the statistics of all their sources.
        all_readers: every reader takes the dequantized value (the maker is fused with its Q), not only int8 ops.
        bound: upper limit of the Clip that makes the tensor, which the largest quantized value must not pass.
        method: how its range is chosen, where that is not as of the others.
        also: names of float ops that take the dequantized value too: the Add of a residual branch.
    """

    scheme: QuantScheme
    source: str
    group: str
    all_readers: bool
    bound: float | None = None
    method: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """The weight of a node: the input slot it is in and the scheme, with the channel axis.

    method: how its scales are chosen: minmax or mse.
    gathers_floats: of an embedding, whether its table is dequantized in front of the Gather, or the rows behind it.
    folded: of a weight that is only stored, whether it is made float once, when the file is loaded, not at every run.
    """

    slot: int
    scheme: QuantScheme
    method: str = "minmax"
    gathers_floats: bool = False
    folded: bool = False


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight of a float op that is stored in 8 bits: its input slot, and the axes with a scale for each index."""

    slot: int
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """Scales that the input came with, as far as the plan has use for them.

    Attributes:
        activations: scale and zero point, by group.
        weights: the same, by name of the weight.
        nodes: names of the nodes that read such a weight.
        fates: by name of a tensor of the input that came with a scale: empty where it is kept, else what became of it.
    """

    activations: dict[str, QuantParams] = field(default_factory=dict)
    weights: dict[str, QuantParams] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    fates: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """The decisions of one run. `params` and `ranges` are filled once statistics are there, keyed by group.

    `watched` are inputs of dynamic ops: they need no scale, but their statistics say whether outliers must be moved
    into the weights; `smoothing` holds the factors by which such a tensor is divided, one per channel of its last axis.
    `kept` are scales that need no statistics, as the input came with them. `stored` are weights of nodes in float that
    are in 8 bits in the file, and float once it is loaded.
    """

    target: str
    mode: str
    nodes: tuple[NodePlan, ...]
    watched: tuple[str, ...] = ()
    tensors: dict[str, TensorPlan] = field(default_factory=dict)
    weights: dict[str, WeightPlan] = field(default_factory=dict)
    params: dict[str, QuantParams] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    smoothing: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    kept: Kept = field(default_factory=Kept)
    stored: dict[str, tuple[StoredWeight, ...]] = field(default_factory=dict)

    @property
    def observe(self) -> tuple[str, ...]:
        """Names of the tensors whose values calibration must see, in graph order."""
        sources = (t.source for t in self.tensors.values() if t.group not in self.kept.activations)
        return tuple(dict.fromkeys((*sources, *self.watched)))

    @property
    def folded(self) -> set[str]:
        """Names of the nodes whose weights alone are quantized, and are float again once the file is loaded."""
        return {n.node for n in self.nodes if n.how == WEIGHTS and self.weights[n.node].folded}

    def labels(self, how: str) -> set[str]:
        """Names of the nodes that are treated that way."""
        return {n.node for n in self.nodes if n.how == how}

    @property
    def skips(self) -> tuple[Skip, ...]:
        """Nodes left in float, with the reason; those with weights first."""
        floats = [n for n in self.nodes if n.how == FLOAT]
        floats.sort(key=lambda n: not n.has_weight)
        return tuple(Skip(n.node, n.op, n.reason) for n in floats)

    def params_of(self, tensor: str) -> QuantParams:
        """Scale and zero point of a tensor, which it may share with others."""
        return self.params[self.tensors[tensor].group]

    def to_text(self, macs: dict[str, int] | None = None, *, limit: int = 30) -> str:
        """The plan for people: one line per kind of treatment, then the nodes left in float and why."""
        lines = [f"target {self.target}, mode {self.mode}"]
        total = sum(macs.values()) if macs else 0
        for how in (STATIC, DYNAMIC, WEIGHTS, HALF, FLOAT):
            chosen = [n for n in self.nodes if n.how == how]
            if not chosen:
                continue
            share = ""
            if macs and total:
                share = f"  {100 * sum(macs.get(n.node, 0) for n in chosen) / total:5.1f} % of multiply-accumulates"
            lines.append(f"{how:8} {len(chosen):4} nodes{share}  ({_histogram(n.op for n in chosen)})")
        if self.tensors:
            groups = {t.group for t in self.tensors.values()}
            lines.append(f"{len(self.tensors)} tensors with Q/DQ in {len(groups)} groups that share a scale")
        if self.smoothing:
            lines.append(f"{len(self.smoothing)} inputs of dynamic ops have their outliers moved into the weights")
        if self.stored:
            lines.append(f"{sum(map(len, self.stored.values()))} weights of ops in float are stored in 8 bits")
        reasons: dict[tuple[str, str], list[str]] = {}
        for skip in self.skips:
            reasons.setdefault((skip.op, skip.reason), []).append(skip.node)
        if reasons:
            lines.append("left in float:")
        for (op, reason), names in list(reasons.items())[:limit]:
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            lines.append(f"  {op:20} {reason}: {some}")
        if len(reasons) > limit:
            lines.append(f"  ... {len(reasons) - limit} more reasons (--json lists all)")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _histogram(ops: Iterable[str]) -> str:
    return ", ".join(f"{op} {count}" for op, count in Counter(ops).most_common(8))
