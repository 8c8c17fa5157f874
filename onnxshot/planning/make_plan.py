"""Make the plan of a model: which tensors get a Q/DQ pair, which share a scale, and the schemes of weights.

int8_or_float.py decides which nodes run in int8. scales.py computes scales from statistics. The graph is not changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnxshot.calibration.stats import TensorStats
from onnxshot.graph import Constant, Model, Node, Tensor, edit
from onnxshot.graph.integer_ops import FORMS
from onnxshot.graph.ops import channel_axis, op_of
from onnxshot.maths.affine import INT4, INT8, PerChannel, PerTensor, QuantScheme
from onnxshot.planning.block_schemes import block_plan, stored_twice
from onnxshot.planning.int8_or_float import Decisions
from onnxshot.planning.keep_trained_scales import activation_params, kept_activations, weight_params
from onnxshot.planning.plan import (
    DEQUANTIZED,
    DYNAMIC,
    FOLDED,
    GATHERED,
    STATIC,
    Kept,
    Plan,
    TensorPlan,
    WeightPlan,
)
from onnxshot.planning.plan_notes import plan_notes
from onnxshot.planning.qdq_overhead import too_small
from onnxshot.planning.scales import Evidence, with_params
from onnxshot.planning.schemes import schemes
from onnxshot.planning.shared_weights import is_shared, joined_by_weights
from onnxshot.planning.stored_int8 import stored_weights, with_storage_notes
from onnxshot.planning.trained_scales import NOTHING, Trained
from onnxshot.recipes.recipe import Recipe
from onnxshot.targets.base import Target

_QUANTIZED_OPS = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
     "MatMulInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "QGemm",
     "QAttention", "QEmbedLayerNormalization", "GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4", "QMoE",
     "QOrderedMatMul", "QOrderedAttention")
) | FORMS.keys()  # fmt: skip


def make_plan(
    model: Model,
    target: Target,
    recipe: Recipe,
    stats: Mapping[str, TensorStats] | Evidence | None = None,
    trained: Trained = NOTHING,
) -> Plan:
    """Plan the quantization of a normalized model. The model is not changed; the same arguments give the same plan.

    Args:
        model: the float model, after `normalize`.
        target: the rules of the runtime.
        recipe: what the user asks for.
        stats: tensor name -> calibration statistics. With None, the plan has no scales, and `Plan.observe` lists the
            tensors to observe. Callers that make several plans of one model pass one `Evidence`, which caches ranges.
        trained: scales and zero points of an already quantized input model, which are kept (`--complete`).

    Returns:
        The plan. With `stats`, in static mode, it has the scale and zero point of each tensor group.

    Raises:
        UsageError: a pattern matches no node, or a tensor that needs a scale was not observed.
        TargetError: the target cannot run the types that the recipe asks for.

    Example:
        >>> plan = make_plan(model, target_named("ort"), Recipe())
        >>> plan.observe  # tensors to calibrate
    """
    activation, weight = schemes(target, recipe)
    if not recipe.quantizes:
        return Plan(target.name, recipe.mode, ())
    banned: dict[Node, str] = {}
    evidence = stats if isinstance(stats, Evidence) else Evidence(stats or {})
    while True:
        planner = _Planner(model, target, recipe, activation, weight, banned, evidence, trained)
        plan = planner.run()
        small = too_small(model, plan, planner.weighted(), planner.made.forced) if not trained else {}
        small |= stored_twice(model, plan, planner.weighted(), planner.made.forced)
        if small:
            banned.update(small)
            continue
        if stats is None or recipe.mode != STATIC:
            return plan
        wide = {n: r for n, r in planner.wide_concats().items() if n not in banned}
        if not wide:
            return with_params(planner.smoothed(plan), model, evidence, recipe.range_method)
        banned.update(wide)


def already_quantized(model: Model) -> list[Node]:
    """The nodes that exist only in quantized models; empty for a float model."""
    return [n for _, n in model.walk() if n.op in _QUANTIZED_OPS]


class _Planner:
    """One attempt at a plan. `banned`: node -> skip reason, for nodes that earlier attempts left in float."""

    def __init__(
        self,
        model: Model,
        target: Target,
        recipe: Recipe,
        activation: QuantScheme,
        weight: QuantScheme,
        banned: Mapping[Node, str],
        evidence: Evidence,
        trained: Trained,
    ) -> None:
        self.model, self.target, self.recipe, self.evidence = model, target, recipe, evidence
        self.activation, self.weight, self.trained = activation, weight, trained
        self.made = Decisions(model, target, recipe, banned, trained)
        self.limits: dict[Tensor, tuple[bool, float | None]] = {}
        self.sources: dict[Tensor, Tensor] = {}
        self.places: dict[Node, int] | None = None  # node -> its place in graph order; computed on first use

    def run(self) -> Plan:
        """The plan, without scales from statistics."""
        made = self.made
        tensors, watched = {}, ()
        if self.recipe.mode == STATIC:
            tensors = self._tensors()
            dynamic = [n for n in made.int8(DYNAMIC) if n in made.top and made.trained_weight(n) is None]
            watched = tuple(dict.fromkeys(n.inputs[0].name for n in dynamic))
        planned = {n.label: self._weight_plan(n) for n in made.slot if n in made.how}
        kept = Kept()
        if self.trained:
            kept = kept_activations(self.trained, tensors, self.model.tensors())
            self._split_fused_relus(kept, tensors)
            self._keep_weights(kept, planned)
        notes = plan_notes(made, self.target, planned)
        stored = {}
        if not self.trained:
            stored = stored_weights(self.model, self.target, self.recipe, made.how, made.asked.untouched)
        nodes = tuple(with_storage_notes(self.model, made.plans(), stored))
        return Plan(
            self.target.name, self.recipe.mode, nodes, watched, tensors, planned, notes=notes, kept=kept, stored=stored
        )

    def _tensors(self) -> dict[str, TensorPlan]:
        """Tensor name -> its Q/DQ pair, in graph order, with the group that shares scale and zero point."""
        wanted: dict[Tensor, bool] = {}
        residual: dict[Tensor, tuple[str, ...]] = {}
        for node in self.model.graph.nodes:
            if self.made.how.get(node) != STATIC:
                if self.target.quantizes_residuals and node.op == "Add" and node not in self.made.why:
                    for tensor in self._residual_inputs(node):
                        wanted.setdefault(tensor, False)
                        residual[tensor] = (*residual.get(tensor, ()), node.label)
                continue
            for tensor in self.made.data(node):
                wanted.setdefault(tensor, False)
            if self.target.quantizes_outputs and not self._gives_float(node):
                for tensor in node.outputs if node.op == "Split" else [self.made.result(node)]:
                    wanted[tensor] = True
        sources = {t: self._source(t) for t in wanted}
        group = self._groups(sources)
        return {
            t.name: TensorPlan(
                self.activation,
                sources[t].name,
                group[sources[t]].name,
                readers,
                self._limits(sources[t])[1],
                self.made.asked.method(edit.producer(sources[t]), self.made.maker(sources[t])),
                residual.get(t, ()),
            )
            for t, readers in wanted.items()
        }

    def _gives_float(self, node: Node) -> bool:
        """True if the op is fused without a Q on its output, and no int8 op reads the quantized value.

        In transformer encoders, the Q on what a product adds to the residual branch causes most of the error.
        """
        if node.op not in self.target.gives_float or self.recipe.format == "qoperator" or self.made.feeds(node):
            return False
        if self.trained.of(self.made.result(node)) is not None or _only_relu_reads(self.model, node):
            return False
        if node.op == "Gemm":
            return self.target.stores_biases or len(node.inputs) < 3 or not node.inputs[2].name
        shape = self.model.shape(node.outputs[0])
        return (shape is not None and len(shape) > 2) or all(u.op != "Add" for u in edit.consumers(node.outputs[0]))

    def _groups(self, sources: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Source -> first source of its group. Inputs and output of an int8 Concat form one group: it copies bytes."""
        order = {s: i for i, s in enumerate(dict.fromkeys(sources.values()))}
        parent = {s: s for s in order}  # union-find: source -> a source nearer to the first of its group

        def first(member: Tensor) -> Tensor:
            while parent[member] is not member:
                parent[member] = member = parent[parent[member]]
            return member

        for node in self.made.int8():
            if node.op != "Concat" or self.made.activation_after(node) is not None or not self._alike(node):
                continue
            members = {first(sources[t]) for t in (*node.inputs, node.outputs[0])}
            parent |= dict.fromkeys(members, min(members, key=order.__getitem__))
        return {s: first(s) for s in order}

    def _alike(self, concat: Node) -> bool:
        """Whether one scale suits all inputs: similar ranges, and the same limits by a fused Relu or Clip."""
        if any(isinstance(t, Constant) for t in concat.inputs):
            return False
        limits = {self._limits(t) for t in concat.inputs}
        if len(limits) > 1 or not self._trained_alike(concat):
            return False
        return self.evidence.spread(concat)[0] <= self.recipe.concat_ratio

    def _trained_alike(self, concat: Node) -> bool:
        """Whether the trained scales of the inputs and the output, if there are any, allow them to share one scale."""
        given = [self.trained.of(t) for t in (*concat.inputs, concat.outputs[0])]
        *inputs, output = [(float(g[1].scale), int(g[1].zero_point)) if g else None for g in given]
        return len(set(inputs)) == 1 and (output is None or inputs[0] in (None, output))

    def _limits(self, tensor: Tensor) -> tuple[bool, float | None]:
        """(True if the graph guarantees values >= 0, upper limit of the Clip that produces the tensor or None)."""
        source = self._source(tensor)
        if source not in self.limits:
            self.limits[source] = self._find_limits(edit.producer(source))
        return self.limits[source]

    def _find_limits(self, maker: Node | None) -> tuple[bool, float | None]:
        """The limits of `_limits` for the output of a node."""
        if maker is None:
            return False, None
        if maker.op in ("Concat", "AveragePool", "GlobalAveragePool"):
            parts = {self._limits(t) for t in self.made.data(maker)}
            return parts.pop() if len(parts) == 1 else (all(low for low, _ in parts), None)
        if maker.op == "Clip":
            low, high = edit.clip_limits(maker)
            return low == 0.0, high if low == 0.0 and high < float("inf") else None
        return maker.op in ("Relu", "Sigmoid", "HardSigmoid", "Softmax"), None

    def _source(self, tensor: Tensor) -> Tensor:
        """The tensor that holds the same values before int8 ops that only move values, for example Reshape."""
        passed = []
        while tensor not in self.sources:
            passed.append(tensor)
            maker = edit.producer(tensor)
            if maker is None or self.made.how.get(maker) != STATIC or not op_of(maker).keeps_range:
                self.sources[tensor] = tensor
            else:
                tensor = maker.inputs[0]
        source = self.sources[tensor]
        self.sources |= dict.fromkeys(passed, source)
        return source

    def _residual_inputs(self, node: Node) -> list[Tensor]:
        """Inputs of a residual Add, except the output of the last Conv before it; empty if no Conv is before it."""
        data = self.made.data(node)
        from_conv = [t for t in data if (m := edit.producer(t)) is not None and self.made.how.get(m) == STATIC]
        if len(data) != 2 or not from_conv:
            return []
        if self.places is None:
            self.places = {n: i for i, n in enumerate(self.model.graph.nodes)}
        places = self.places
        main = max(from_conv, key=lambda t: places[t.inputs[0]])
        return [t for t in data if t is not main]

    def _weight_plan(self, node: Node) -> WeightPlan:
        """The scheme of a node's weight: int4 blocks if asked for and possible, else per channel or per tensor."""
        slot = self.made.slot[node]
        rank = len(node.inputs[slot].shape)
        axis = 0 if node.op == "Gather" else channel_axis(node, slot, rank)
        recipe = self.made.asked.of(node)
        _, scheme = schemes(self.target, recipe)
        in_blocks = block_plan(node, slot, self.target, recipe)
        if in_blocks is not None:
            return in_blocks
        if scheme.dtype is INT4:
            scheme = self.target.weight
        per_channel = (recipe.per_channel or node.op == "Gather") and axis is not None
        scheme = replace(scheme, granularity=PerChannel(axis or 0) if per_channel else PerTensor())
        # ONNX Runtime has a MatMul and Gemm kernel for an 8-bit matrix: these keep their DequantizeLinear.
        matrix = node.op in ("MatMul", "Gemm") and slot == 1 and rank == 2
        folds = self.target.stores_weights and scheme.dtype is INT8 and not matrix and node.op != "Gather"
        gathers = node.op == "Gather" and not self.target.gathers_floats
        form = GATHERED if gathers else FOLDED if folds else DEQUANTIZED
        twice = self.made.asked.twice(node) and self.made.how[node] == DYNAMIC and node.op in ("MatMul", "Gemm")
        return WeightPlan(slot, scheme, recipe.weight_method, form, twice=twice)

    def _split_fused_relus(self, kept: Kept, tensors: dict[str, TensorPlan]) -> None:
        """Give a fused Relu or Clip a Q/DQ pair on its input too, if the trained zero point is not the lowest integer.

        Only with the lowest integer does Q cut off values below 0, so that ONNX Runtime drops the Relu and fuses Q with
        the op before it. Without the pair that op would run in float. The integers do not change:
        Q(relu(DQ(Q(x)))) = Q(relu(x)), as 0 is represented exactly.
        """
        if not self.target.quantizes_outputs:
            return
        named = self.model.tensors()
        for name, planned in list(tensors.items()):
            params, after = kept.activations.get(planned.group), edit.producer(named[name])
            if params is None or after is None or self.made.maker(named[name]) is after:
                continue
            if int(params.zero_point) == params.scheme.dtype.qmin:
                continue
            before, group = after.inputs[0], planned.group
            own = self.trained.activations.get(before.name)
            fitting, exact = activation_params(own, self.activation) if own is not None else (params, False)
            if exact:
                group, kept.activations[before.name], kept.fates[before.name] = before.name, fitting, ""
            tensors[before.name] = TensorPlan(self.activation, before.name, group, all_readers=True)

    def _keep_weights(self, kept: Kept, planned: dict[str, WeightPlan]) -> None:
        """Add the trained scales of weights, and of constant operands of int8 ops, to `kept` and to the plan."""
        for node in self.made.how:
            slot = self.made.slot.get(node)
            if slot is None:
                constants = [t for t in self.made.data(node) if isinstance(t, Constant)] if self.trained.weights else []
                for tensor in constants:
                    found = self.trained.of_weight(tensor)
                    if found is not None and not found[1].scale.ndim:
                        params, exact = activation_params(found[1], self.activation)
                        kept.weights[tensor.name] = params
                        kept.fates[found[0]] = "" if exact else "its range is kept"
                continue
            found = self.made.trained_weight(node)
            if found is None:
                continue
            name, given = found
            weight, scheme = node.inputs[slot], planned[node.label].scheme
            axis = 0 if node.op == "Gather" else channel_axis(node, slot, len(weight.shape))
            fitting, reason = weight_params(given, weight, scheme, axis)
            other = kept.weights.get(weight.name)
            if fitting is not None and other is not None and other.scheme != fitting.scheme:
                fitting, reason = None, "another op reads it by another axis"
            if fitting is None:
                kept.fates.setdefault(name, reason)
                continue
            kept.weights[weight.name], kept.fates[name] = fitting, ""
            kept.nodes.add(node.label)
            granularity = fitting.scheme.granularity
            planned[node.label] = replace(planned[node.label], scheme=replace(scheme, granularity=granularity))

    def weighted(self) -> dict[str, Node]:
        """Label -> node, for the quantized nodes with a weight."""
        return {node.label: node for node in self.made.slot if node in self.made.how}

    def wide_concats(self) -> dict[Node, str]:
        """Concat -> skip reason, if its inputs' ranges differ too much for one scale and no weighted op reads it."""
        wide: dict[Node, str] = {}
        for node in self.made.int8():
            if node.op != "Concat" or node in self.made.forced:
                continue
            if any(u in self.made.slot for u in edit.consumers(node.outputs[0])):
                continue
            if self.trained.of(node.outputs[0]) is not None:
                continue  # the model was trained with one scale
            ratio, text = self.evidence.spread(node)
            if ratio > self.recipe.concat_ratio:
                wide[node] = f"its inputs' ranges differ {ratio:.0f}x ({text}): one scale would lose the smaller"
        return wide

    def _products(self) -> list[Node]:
        """The dynamic MatMuls and Gemms with one matrix as weight."""
        return [n for n in self.made.int8(DYNAMIC) if n.op in ("MatMul", "Gemm") and len(n.inputs[1].shape) == 2]

    def smoothed(self, plan: Plan) -> Plan:
        """The plan with SmoothQuant factors for the inputs of dynamic ops that have outliers (`Plan.smoothing`)."""
        factors = {}
        for tensors, nodes in joined_by_weights(self._products()) if self.recipe.smooth is not False else ():
            expected = [self.evidence.dynamic_db(tensor) for tensor in tensors]
            if any(self.made.trained_weight(n) is not None for n in nodes):
                continue  # smoothing would change the trained weight
            if any(is_shared(self.model, node.inputs[1], nodes) for node in nodes):
                continue  # another node reads the weight: it would be stored twice
            if min((db for db in expected if db is not None), default=np.inf) < self.target.smooth_below_db:
                found = self.evidence.smoothing(tensors, nodes)
                if found is not None:
                    factors.update(dict.fromkeys((tensor.name for tensor in tensors), found))
        return replace(plan, smoothing=factors)


def _only_relu_reads(model: Model, node: Node) -> bool:
    """Whether a Relu or Clip is the only reader. ONNX Runtime fuses both only if a Q follows."""
    user = edit.only_consumer(model, node.outputs[0])
    return user is not None and user.op in ("Relu", "Clip")

