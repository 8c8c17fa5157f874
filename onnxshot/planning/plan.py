"""The plan: what happens to each node, tensor and weight, and the reason for each node that stays in float.

The classes here hold values only. They have no reference to the graph: nodes, tensors and weights are given by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.range_methods import Range
from onnxshot.graph.skip import Skip
from onnxshot.maths.affine import QuantParams, QuantScheme
from onnxshot.wording import worded

OPERATOR, DEQUANTIZED, GATHERED, FOLDED = "operator", "dequantized", "gathered", "folded"
"""Forms of a weight that is quantized alone.

operator: com.microsoft.MatMulNBits multiplies by the integers. dequantized: a DequantizeLinear stands before the node.
gathered: the node is a Gather of a table, and the gathered rows are dequantized behind it. folded: operators turn the
integers into floats, which the runtime computes once, when it loads the file.
"""

STATIC: Final = "static"
DYNAMIC: Final = "dynamic"
WEIGHTS: Final = "weights"
HALF: Final = "half"
FLOAT: Final = "float"
STORED, DYNAMIC16 = "stored", "dynamic16"
"""Modes of a node.

static: int8 with calibrated activation scales. dynamic: int8 with activation scales computed at run time. weights: only
the weight is quantized, the node computes in float. half: the node computes in float16 or bfloat16. float: unchanged.
A recipe may ask for two more. stored: float, with a weight that `Plan.stored` holds where the target has such a form.
dynamic16: dynamic, with a `WeightPlan` that says `twice`.
"""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What happens to one node.

    Attributes:
        node: label of the node (its name).
        op: operator type, for example "Conv".
        how: mode of the node: "static", "dynamic", "weights", "half" or "float".
        reason: skip reason where `how` is "float"; empty elsewhere.
        has_weight: whether the node multiplies by a constant weight.
    """

    node: str
    op: str
    how: str
    reason: str = ""
    has_weight: bool = False


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor that gets a Q/DQ pair.

    Attributes:
        scheme: integer type, symmetry and granularity.
        source: name of the tensor to observe during calibration. It holds the same values: only ops that move values,
            for example Reshape and Transpose, lie between the two.
        group: name of the group. All tensors of a group share one scale and zero point, which are chosen from the
            merged statistics of their sources.
        all_readers: True if all readers take the dequantized value, as the producer is fused with its Q. False if only
            int8 ops and the nodes in `also` do.
        bound: upper limit of the Clip that produces the tensor; None without one. The largest dequantized value must
            not exceed it.
        method: range method of this tensor; None for the recipe's method.
        also: labels of float nodes that read the dequantized value too: the Add of a residual branch.
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
    """How the weight of a node is quantized.

    Attributes:
        slot: index of the node's input that holds the weight.
        scheme: integer type, symmetry and granularity; the granularity names the channel axis.
        method: "minmax" or "mse": how the clip range of the weight is chosen.
        form: "operator", "dequantized", "gathered" or "folded", for weights-only quantization.
        in_blocks: True if the recipe asks for blocks, of which a whole output may be one.
        twice: True if a dynamic product multiplies its input in two parts of 8 bits, so that the input has 16 bits.
    """

    slot: int
    scheme: QuantScheme
    method: str = "minmax"
    form: str = DEQUANTIZED
    in_blocks: bool = False
    twice: bool = False


@dataclass(frozen=True, slots=True)
class RoundedBlocks:
    """A weight in blocks whose integers were chosen with data.

    Attributes:
        scheme: unsigned type of 4 or 8 bits, with blocks along axis 1 of the matrix [N outputs, K inputs].
        read: returns the integers, uint8 [N, K], with scales and zero points [N, B] of B blocks.
    """

    scheme: QuantScheme
    read: Callable[[], tuple[NDArray[np.uint8], QuantParams]]


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight that is stored as int8 although its node computes in float.

    Attributes:
        slot: index of the node's input that holds the weight.
        axes: axes along which each index has a scale of its own; empty for one scale per tensor.
    """

    slot: int
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """Scales of an already quantized input model that the plan reuses (`--complete`).

    Attributes:
        activations: group name -> scale and zero point.
        weights: weight name -> scale and zero point.
        nodes: labels of the nodes that read one of `weights`.
        fates: name of an input tensor that came with a scale -> empty if the scale is kept exactly, else the reason why
            it is not.
    """

    activations: dict[str, QuantParams] = field(default_factory=dict)
    weights: dict[str, QuantParams] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    fates: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """All decisions of one run, by name.

    Attributes:
        target: name of the target.
        mode: the recipe's mode: "static", "dynamic" or "weights".
        nodes: one entry per node that computes on floats, in graph order.
        watched: names of inputs of dynamic nodes. They need no scale; their statistics tell whether outliers must be
            moved into the weights (SmoothQuant).
        tensors: tensor name -> its Q/DQ pair.
        weights: node label -> how its weight is quantized.
        params: group name -> scale and zero point. Empty until statistics are known.
        ranges: group name -> clip range that `params` was computed from. Empty until statistics are known.
        smoothing: tensor name -> SmoothQuant factors, float32 [C], by which channel c of the last axis is divided.
        notes: sentences for the report.
        kept: scales reused from a quantized input model. They need no statistics.
        stored: node label -> weights that are stored as int8 although the node computes in float.
        rounded: name of a weight -> its integers, where they were chosen with data.
        biases: label of a Gemm, or of the Add behind a MatMul -> its bias, corrected for weights in blocks.
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
    rounded: Mapping[str, RoundedBlocks] = field(default_factory=dict)
    biases: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line: the target, the mode, and the number of nodes of each mode."""
        counts = [f"{count} {how}" for how, count in Counter(node.how for node in self.nodes).most_common()]
        return f"Plan({', '.join([f'target {self.target}', f'mode {self.mode}', *counts])})"

    def _repr_html_(self) -> str:
        """A card, which notebooks show."""
        from onnxshot.planning.plan_tables import plan_tables
        from onnxshot.report.html.notebook import card, folded, sentences
        from onnxshot.wording import counted

        notes = folded(counted(len(self.notes), "note"), sentences(self.notes))
        return card(f"plan for {self.target}, mode {self.mode}", (), plan_tables(self), notes)

    @property
    def observe(self) -> tuple[str, ...]:
        """Names of the tensors that calibration must observe, in graph order, without duplicates."""
        sources = (t.source for t in self.tensors.values() if t.group not in self.kept.activations)
        return tuple(dict.fromkeys((*sources, *self.watched)))

    @property
    def folded(self) -> set[str]:
        """Labels of weights-only nodes whose float weight the runtime computes once, when it loads the file."""
        return {n.node for n in self.nodes if n.how == WEIGHTS and self.weights[n.node].form == FOLDED}

    def labels(self, how: str) -> set[str]:
        """Labels of the nodes of one mode, for example `plan.labels(STATIC)`."""
        return {n.node for n in self.nodes if n.how == how}

    @property
    def skips(self) -> tuple[Skip, ...]:
        """Nodes that stay in float, with their skip reasons. Nodes with weights come first."""
        floats = [n for n in self.nodes if n.how == FLOAT]
        floats.sort(key=lambda n: not n.has_weight)
        return tuple(Skip(n.node, n.op, n.reason) for n in floats)

    def params_of(self, tensor: str) -> QuantParams:
        """Scale and zero point of a tensor, which all tensors of its group share. Raises KeyError if it has none."""
        return self.params[self.tensors[tensor].group]

    def to_text(self, macs: dict[str, int] | None = None, *, limit: int = 30) -> str:
        """Format the plan for people: one line per mode, then the nodes left in float with their skip reasons.

        Args:
            macs: node label -> multiply-accumulates per inference, to print the share of each mode; None for no shares.
            limit: largest number of skip reasons to print.
        """
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
            lines.append(f"  ... {len(reasons) - limit} more reasons " + worded("([[skips|--json]] lists all)"))
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _histogram(ops: Iterable[str]) -> str:
    return ", ".join(f"{op} {count}" for op, count in Counter(ops).most_common(8))
