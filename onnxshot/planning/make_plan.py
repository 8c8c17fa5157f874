"""Plan a model: which tensors get a Q/DQ pair, which of them share a scale, and the schemes of weights.

Which nodes run in int8 is decided in decisions.py; scales come from statistics. Nothing here changes the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnxshot.calibration.stats import TensorStats
from onnxshot.graph import Constant, Model, Node, Tensor, edit
from onnxshot.graph.integer_ops import FORMS
from onnxshot.graph.ops import channel_axis, op_of
from onnxshot.maths.affine import INT4, INT8, PerBlock, PerChannel, PerTensor, QuantScheme
from onnxshot.planning.int8_or_float import Decisions
from onnxshot.planning.node_mode import is_weighted
from onnxshot.planning.plan import DYNAMIC, FLOAT, STATIC, Kept, Plan, TensorPlan, WeightPlan
from onnxshot.planning.qdq_overhead import too_small
from onnxshot.planning.scales import Evidence, with_params
from onnxshot.planning.schemes import schemes
from onnxshot.planning.shared_weights import is_shared, joined_by_weights
from onnxshot.planning.stored_int8 import stored_weights, told
from onnxshot.planning.trained_scales import NOTHING, Trained, activation_params, kept_activations, weight_params
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
    """Plan a normalized model. Pure: same arguments, same plan; the model is not changed.

    Without `stats` the plan says what to observe; with them it holds every scale and zero point. Callers that make many
    plans of one model give the same Evidence, so that ranges are chosen once. `trained`: scales that are known before.

    Raises:
        UsageError: a pattern matches nothing, or the model is quantized already.
        TargetError: the target cannot run what the recipe asks for.
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
    """Nodes that show the model was quantized before."""
    return [n for _, n in model.walk() if n.op in _QUANTIZED_OPS]


class _Planner:
    """One attempt at a plan; `banned` are nodes that earlier attempts found must stay float, with the reason."""

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
        self.places: dict[Node, int] | None = None  # of the nodes in their graph, once they are asked for

    def run(self) -> Plan:
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
            self._part_activations(kept, tensors)
            self._keep_weights(kept, planned)
        notes = self._notes(planned)
        stored = {}
        if not self.trained:
            stored = stored_weights(self.model, self.target, self.recipe, made.how, made.asked.left)
        nodes = tuple(told(self.model, made.plans(), stored))
        return Plan(
            self.target.name, self.recipe.mode, nodes, watched, tensors, planned, notes=notes, kept=kept, stored=stored
        )

    def _tensors(self) -> dict[str, TensorPlan]:
        """Tensors that get a Q/DQ pair, in graph order, with the group they share scale and zero point with."""
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
        """True where the op is fused without a Q behind it, and no int8 op would take the quantized value.

        In an encoder, the Q of what a product adds to the residual branch was by far the loudest of all noises.
        """
        if node.op not in self.target.gives_float or self.recipe.format == "qoperator" or self.made.feeds(node):
            return False
        if self.trained.of(self.made.result(node)) is not None or _is_cut(self.model, node):
            return False
        if node.op == "Gemm":
            return self.target.stores_biases or len(node.inputs) < 3 or not node.inputs[2].name
        shape = self.model.shape(node.outputs[0])
        return (shape is not None and len(shape) > 2) or all(u.op != "Add" for u in edit.consumers(node.outputs[0]))

    def _groups(self, sources: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """The first member of each source's group. An int8 Concat whose inputs share one scale only copies bytes."""
        order = {s: i for i, s in enumerate(dict.fromkeys(sources.values()))}
        before = {s: s for s in order}  # a member of the same group that is nearer to the first, or the first itself

        def first(member: Tensor) -> Tensor:
            while before[member] is not member:
                before[member] = member = before[before[member]]
            return member

        for node in self.made.int8():
            if node.op != "Concat" or self.made.activation_after(node) is not None or not self._alike(node):
                continue
            members = {first(sources[t]) for t in (*node.inputs, node.outputs[0])}
            before |= dict.fromkeys(members, min(members, key=order.__getitem__))
        return {s: first(s) for s in order}

    def _alike(self, concat: Node) -> bool:
        """True where one scale suits all inputs: similar ranges, and none that a fused Relu or Clip ties down alone."""
        if any(isinstance(t, Constant) for t in concat.inputs):
            return False
        limits = {self._limits(t) for t in concat.inputs}
        if len(limits) > 1 or not self._trained_alike(concat):
            return False
        return self.evidence.spread(concat)[0] <= self.recipe.concat_ratio

    def _trained_alike(self, concat: Node) -> bool:
        """True where trained scales do not keep the inputs and the output from sharing one."""
        given = [self.trained.of(t) for t in (*concat.inputs, concat.outputs[0])]
        *inputs, output = [(float(g[1].scale), int(g[1].zero_point)) if g else None for g in given]
        return len(set(inputs)) == 1 and (output is None or inputs[0] in (None, output))

    def _limits(self, tensor: Tensor) -> tuple[bool, float | None]:
        """Whether the graph itself says that no value is below 0, and the limit a Clip puts above them."""
        source = self._source(tensor)
        if source not in self.limits:
            self.limits[source] = self._find_limits(edit.producer(source))
        return self.limits[source]

    def _find_limits(self, maker: Node | None) -> tuple[bool, float | None]:
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
        """Follow int8 ops that only move values back to where the values were made."""
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
        """Inputs of a residual Add but the one that comes straight from the last Conv before it."""
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
        slot = self.made.slot[node]
        rank = len(node.inputs[slot].shape)
        axis = 0 if node.op == "Gather" else channel_axis(node, slot, rank)
        recipe = self.made.asked.of(node)
        _, scheme = schemes(self.target, recipe)
        if scheme.dtype is INT4:
            blocks = _blocks(node, slot, recipe.block)
            if blocks is not None:
                return WeightPlan(slot, replace(scheme, granularity=blocks))
            scheme = self.target.weight
        per_channel = (recipe.per_channel or node.op == "Gather") and axis is not None
        scheme = replace(scheme, granularity=PerChannel(axis or 0) if per_channel else PerTensor())
        # ONNX Runtime computes a MatMul or Gemm with an 8-bit matrix as it is: that one keeps its DequantizeLinear.
        matrix = node.op in ("MatMul", "Gemm") and slot == 1 and rank == 2
        folds = self.target.stores_weights and scheme.dtype is INT8 and not matrix and node.op != "Gather"
        return WeightPlan(slot, scheme, recipe.weight_method, self.target.gathers_floats, folds)

    def _notes(self, planned: Mapping[str, WeightPlan]) -> tuple[str, ...]:
        """Weights that have no form in int4 where that was asked for, and layers that are not treated as asked for."""
        notes = []
        asked = [self.made.asked.of(n) for n in self.made.slot if n in self.made.how]
        in_int4 = [recipe for recipe in asked if recipe.weight_type == INT4.name]
        others = len(in_int4) - sum(plan.scheme.dtype is INT4 for plan in planned.values())
        if others:
            name, blocks = self.target.weight.dtype.name, " or ".join(sorted({str(recipe.block) for recipe in in_int4}))
            why = f"only matrices whose inputs divide into blocks of {blocks} are int4"
            notes.append(f"{others} of {len(in_int4)} weights are kept in {name}: {why}")
        treated = {node: self.made.how.get(node, FLOAT) for node in self.made.asked.modes if is_weighted(node)}
        unmet = [node for node, how in treated.items() if how != self.made.asked.modes[node]]
        if unmet:
            node, why = unmet[0], self.made.why.get(unmet[0], "")
            said = f"{self.made.asked.modes[node]} for {node.label!r}, which is {treated[node]}"
            notes.append(f"{len(unmet)} of {len(treated)} layers are not treated as asked: {said}{why and ': '}{why}")
        return tuple(notes)

    def _part_activations(self, kept: Kept, tensors: dict[str, TensorPlan]) -> None:
        """Give a fused Relu or Clip a pair on its input too, where the trained zero point is not the lowest code.

        Only with that one does Q do the work of the Relu, so that ONNX Runtime drops it and fuses Q with the op before;
        else the op would run in float. The integers are the same: Q(relu(DQ(Q(x)))) = Q(relu(x)), as zero is exact.
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
        """Put the trained scales of weights, and of constants that int8 ops read as data, into `kept` and the plan."""
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
        """The nodes with a weight that are quantized, by name."""
        return {node.label: node for node in self.made.slot if node in self.made.how}

    def wide_concats(self) -> dict[Node, str]:
        """Concats whose inputs' ranges differ too much for one scale, unless a weighted op reads the result anyway."""
        wide: dict[Node, str] = {}
        for node in self.made.int8():
            if node.op != "Concat" or node in self.made.forced:
                continue
            if any(u in self.made.slot for u in edit.consumers(node.outputs[0])):
                continue
            if self.trained.of(node.outputs[0]) is not None:
                continue  # it was trained to make do with one
            ratio, text = self.evidence.spread(node)
            if ratio > self.recipe.concat_ratio:
                wide[node] = f"its inputs' ranges differ {ratio:.0f}x ({text}): one scale would erase the smaller"
        return wide

    def _products(self) -> list[Node]:
        """Products with one matrix whose input is quantized at run time."""
        return [n for n in self.made.int8(DYNAMIC) if n.op in ("MatMul", "Gemm") and len(n.inputs[1].shape) == 2]

    def smoothed(self, plan: Plan) -> Plan:
        """The plan in which the outliers of dynamic ops' inputs are moved into their weights."""
        factors = {}
        for tensors, nodes in joined_by_weights(self._products()) if self.recipe.smooth is not False else ():
            expected = [self.evidence.dynamic_db(tensor) for tensor in tensors]
            if any(self.made.trained_weight(n) is not None for n in nodes):
                continue  # its weight would not stay what was trained
            if any(is_shared(self.model, node.inputs[1], nodes) for node in nodes):
                continue  # somebody else reads the weight: it would be stored twice
            if min((db for db in expected if db is not None), default=np.inf) < self.target.smooth_below_db:
                found = self.evidence.smoothing(tensors, nodes)
                if found is not None:
                    factors.update(dict.fromkeys((tensor.name for tensor in tensors), found))
        return replace(plan, smoothing=factors)


def _is_cut(model: Model, node: Node) -> bool:
    """Whether a Relu or Clip alone reads the result: ONNX Runtime looks for a Q behind it, and else fuses neither."""
    user = edit.only_consumer(model, node.outputs[0])
    return user is not None and user.op in ("Relu", "Clip")


def _blocks(node: Node, slot: int, size: int) -> PerBlock | None:
    """Blocks along the summed axis of a matrix; None for what is no right factor, or does not divide into them."""
    shape = node.inputs[slot].shape
    axis = channel_axis(node, slot, len(shape))
    if node.op not in ("MatMul", "Gemm") or slot != 1 or len(shape) != 2 or axis is None:
        return None
    return PerBlock(1 - axis, size) if shape[1 - axis] % size == 0 else None
