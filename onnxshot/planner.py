"""Decide what becomes int8, from the graph, the target's rules and the recipe; scales come from statistics.

Weighted ops (Conv, Gemm, MatMul) are quantized unless something speaks against it. Ops without a weight ("followers")
are quantized only where they stand between int8 ops, so that a Q/DQ pair is saved and not added; that is a fixed
point, since each may be the neighbour another relies on. Nothing here changes the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from onnx import TensorProto

from onnxshot.calibration.stats import TensorStats
from onnxshot.errors import TargetError
from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS, channel_axis, data_slots, op_of, weight_slot
from onnxshot.match import match_nodes
from onnxshot.maths.affine import PerChannel, PerTensor, QuantParams, QuantScheme
from onnxshot.plan import DYNAMIC, FLOAT, STATIC, WEIGHTS, Kept, NodePlan, Plan, TensorPlan, WeightPlan
from onnxshot.recipe import TYPES, Recipe
from onnxshot.scales import Evidence, with_params
from onnxshot.targets.base import Target
from onnxshot.trained import NOTHING, Trained, activation_params, kept_activations, weight_params
from onnxshot.treatment import elements, is_embedding, is_weighted, treatment

_QUANTIZED_OPS = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger")
) | {"MatMulInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "QGemm"}


def schemes(target: Target, recipe: Recipe) -> tuple[QuantScheme, QuantScheme]:
    """Schemes of activations and weights. Raises TargetError for a pair the target cannot run, with the reason."""
    activation, weight = target.activation, target.weight
    if recipe.activation_type is not None and recipe.activation_type != activation.dtype.name:
        activation = replace(activation, dtype=TYPES[recipe.activation_type])
    if recipe.weight_type is not None and recipe.weight_type != weight.dtype.storage_name:
        weight = replace(weight, dtype=TYPES[recipe.weight_type])
    if recipe.mode == STATIC:
        reason = target.accepts(activation.dtype, weight.dtype)
        if reason:
            raise TargetError(
                f"{activation.dtype.name} activations with {weight.dtype.name} weights: {reason}",
                "leave out --activation-type and --weight-type",
            )
    elif recipe.mode == WEIGHTS and weight.dtype.floating:
        raise TargetError("float8 weights need a calibrated float8 activation", "use an integer --weight-type")
    elif recipe.mode == DYNAMIC:
        _refuse_dynamic(target, recipe, weight)
    return activation, weight


def _refuse_dynamic(target: Target, recipe: Recipe, weight: QuantScheme) -> None:
    """Raise TargetError where dynamic quantization has no such form: DynamicQuantizeLinear-11 gives uint8 only."""
    if not target.dynamic:
        raise TargetError(f"{target.name} has no dynamic quantization", "use --mode static or --mode weights")
    if recipe.activation_type not in (None, "uint8"):
        raise TargetError(f"dynamic activations are uint8, not {recipe.activation_type}", "leave out --activation-type")
    if weight.dtype.floating or weight.dtype.bits > 8:
        raise TargetError(f"MatMulInteger takes 8-bit weights, not {weight.dtype.name}", "leave out --weight-type")


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
    banned: dict[Node, str] = {}
    evidence = stats if isinstance(stats, Evidence) else Evidence(stats or {})
    while True:
        planner = _Planner(model, target, recipe, activation, weight, banned, evidence, trained)
        plan = planner.run()
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
        excluded = match_nodes(model, recipe.exclude, "exclude pattern")
        self.why: dict[Node, str] = {n: f"excluded by {p!r}" for n, p in excluded.items()} | dict(banned)
        self.forced = match_nodes(model, recipe.include, "include pattern")
        self.top = {n for n in model.graph.nodes}
        self.how: dict[Node, str] = {}
        self.slot: dict[Node, int] = {}
        self.limits: dict[Tensor, tuple[bool, float | None]] = {}

    # ------------------------------------------------------------------ decisions

    def run(self) -> Plan:
        for _, node in self.model.walk():
            if node in self.why:
                continue
            if is_weighted(node):
                self._classify(node)
            elif is_embedding(node):
                self.how[node], self.slot[node] = WEIGHTS, 0
        if self.recipe.mode == STATIC:
            self._settle_followers()
        tensors, watched = {}, ()
        if self.recipe.mode == STATIC:
            tensors = self._tensors()
            dynamic = [n for n in self._int8(DYNAMIC) if n in self.top and self._trained_weight(n) is None]
            watched = tuple(dict.fromkeys(n.inputs[0].name for n in dynamic))
        nodes = tuple(self._node_plan(n) for _, n in self.model.walk() if self._worth_a_line(n))
        planned = {n.label: self._weight_plan(n) for n in self.slot if n in self.how}
        kept = Kept()
        if self.trained:
            kept = kept_activations(self.trained, tensors, self.model.tensors())
            self._part_activations(kept, tensors)
            self._keep_weights(kept, planned)
        return Plan(self.target.name, self.recipe.mode, nodes, watched, tensors, planned, kept=kept)

    def _classify(self, node: Node) -> None:
        how, reason = treatment(node, self.target, self.recipe, is_top=node in self.top, forced=node in self.forced)
        slot = weight_slot(node)
        if how == FLOAT or slot is None:
            self.why[node] = reason
        else:
            self.how[node], self.slot[node] = how, slot

    def _settle_followers(self) -> None:
        """Shrink the set of candidates until every follower stands between int8 ops (the greatest fixed point)."""
        for node in self.model.graph.nodes:
            if node.op in self.target.followers and node not in self.why and node not in self.how:
                slots = data_slots(node)
                if slots and all(self._is_float(node.inputs[i]) for i in slots) and _finite(node):
                    self.how[node] = STATIC
        changed = True
        while changed:
            changed = False
            fed = {t for n in self._int8() if n in self.slot for t in self._data(n)}
            for node in [n for n in self.how if self.how[n] == STATIC and n not in self.slot]:
                inputs_int8 = all(self._from_int8(t) or t in fed for t in self._data(node))
                fused = self._maker(node.outputs[0]) is not node  # part of the op before it: no pair between the two
                if fused or (node not in self.forced and not (inputs_int8 and self._pays(node))):
                    del self.how[node]
                    changed = True
            for node in [n for n in self.slot if self.how.get(n) == STATIC]:
                if self._better_dynamic(node):
                    changed = True
                    if elements(node.inputs[self.slot[node]]) < self.target.min_dynamic_weights:
                        del self.how[node], self.slot[node]
                        self.why[node] = "small, and no int8 op next to it: quantizing would cost more than it saves"
                    else:
                        self.how[node] = DYNAMIC

    def _pays(self, node: Node) -> bool:
        if self._feeds(node):
            return True
        # A reducer spares dequantizing a large tensor, where the op before it has to be quantized anyway.
        makers = {self._maker(t) for t in self._data(node)}
        return node.op in self.target.reducers and all(m in self.slot for m in makers)

    def _better_dynamic(self, node: Node) -> bool:
        if not self.target.prefers_dynamic or node.op not in self.target.dynamic or node in self.forced:
            return False
        if self._trained_weight(node) is not None and self.trained.of(node.inputs[0]) is not None:
            return False  # it has a scale for its input already
        # Nothing takes its output in int8: spare the output's quantization. A product in a chain keeps it.
        return not self._feeds(node, (STATIC, DYNAMIC))

    def _int8(self, how: str = STATIC) -> list[Node]:
        return [n for n, chosen in self.how.items() if chosen == how]

    def _data(self, node: Node) -> list[Tensor]:
        return [node.inputs[i] for i in data_slots(node)]

    def _is_float(self, tensor: Tensor) -> bool:
        return self.model.elem_type(tensor) in (0, TensorProto.FLOAT)

    def _activation_after(self, node: Node) -> Node | None:
        """The Relu or Clip at 0 that ONNX Runtime fuses with the node, where it is the only reader."""
        user = edit.only_consumer(self.model, node.outputs[0]) if len(node.outputs) == 1 else None
        if user is None or user in self.why:
            return None
        if user.op == "Relu" or (user.op == "Clip" and edit.clip_limits(user)[0] == 0.0):
            return user
        return None

    def _result(self, node: Node) -> Tensor:
        """The tensor a Q belongs on: the node's output, or that of the activation fused with it."""
        after = self._activation_after(node)
        return after.outputs[0] if after is not None else node.outputs[0]

    def _maker(self, tensor: Tensor) -> Node | None:
        """The node that makes the tensor; where that is a Relu or Clip fused with the node before, that one."""
        maker = edit.producer(tensor)
        before = edit.producer(maker.inputs[0]) if maker is not None and maker.op in ("Relu", "Clip") else None
        if before is not None and self.how.get(before) == STATIC and self._activation_after(before) is maker:
            return before
        return maker

    def _from_int8(self, tensor: Tensor) -> bool:
        maker = self._maker(tensor)
        if maker is None or self.how.get(maker) != STATIC:
            return False
        return maker.op == "Split" or self._result(maker) is tensor

    def _feeds(self, node: Node, kinds: tuple[str, ...] = (STATIC,)) -> bool:
        """True where a node of these kinds takes the result as data."""
        outputs = node.outputs if node.op == "Split" else [self._result(node)]
        return any(
            self.how.get(user) in kinds and any(t is d for d in self._data(user))
            for t in outputs
            for user in edit.consumers(t)
        )

    # ------------------------------------------------------------------ tensors

    def _tensors(self) -> dict[str, TensorPlan]:
        """Tensors that get a Q/DQ pair, in graph order, with the group they share scale and zero point with."""
        wanted: dict[Tensor, bool] = {}
        residual: dict[Tensor, tuple[str, ...]] = {}
        for node in self.model.graph.nodes:
            if self.how.get(node) != STATIC:
                if self.target.quantizes_residuals and node.op == "Add" and node not in self.why:
                    for tensor in self._residual_inputs(node):
                        wanted.setdefault(tensor, False)
                        residual[tensor] = (*residual.get(tensor, ()), node.label)
                continue
            for tensor in self._data(node):
                wanted.setdefault(tensor, False)
            if self.target.quantizes_outputs and not self._gives_float(node):
                for tensor in node.outputs if node.op == "Split" else [self._result(node)]:
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
                residual.get(t, ()),
            )
            for t, readers in wanted.items()
        }

    def _gives_float(self, node: Node) -> bool:
        """True where the op is fused without a Q behind it, and no int8 op would take the quantized value.

        In an encoder, the Q of what a product adds to the residual branch was by far the loudest of all noises.
        """
        if node.op not in self.target.gives_float or self.recipe.format == "qoperator" or self._feeds(node):
            return False
        if self.trained.of(self._result(node)) is not None:
            return False
        if node.op == "Gemm":
            return len(node.inputs) < 3 or not node.inputs[2].name
        shape = self.model.shape(node.outputs[0])
        return (shape is not None and len(shape) > 2) or all(u.op != "Add" for u in edit.consumers(node.outputs[0]))

    def _groups(self, sources: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """The first member of each source's group. An int8 Concat whose inputs share one scale only copies bytes."""
        first = {s: s for s in sources.values()}
        for node in self._int8():
            if node.op != "Concat" or self._activation_after(node) is not None or not self._alike(node):
                continue
            members = {first[sources[t]] for t in (*node.inputs, node.outputs[0])}
            lead = next(s for s in first if s in members)
            first = {s: lead if head in members else head for s, head in first.items()}
        return first

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
            parts = {self._limits(t) for t in self._data(maker)}
            return parts.pop() if len(parts) == 1 else (all(low for low, _ in parts), None)
        if maker.op == "Clip":
            low, high = edit.clip_limits(maker)
            return low == 0.0, high if low == 0.0 and high < float("inf") else None
        return maker.op in ("Relu", "Sigmoid", "HardSigmoid", "Softmax"), None

    def _source(self, tensor: Tensor) -> Tensor:
        """Follow int8 ops that only move values back to where the values were made."""
        maker = edit.producer(tensor)
        while maker is not None and self.how.get(maker) == STATIC and op_of(maker).keeps_range:
            tensor = maker.inputs[0]
            maker = edit.producer(tensor)
        return tensor

    def _residual_inputs(self, node: Node) -> list[Tensor]:
        """Inputs of a residual Add but the one that comes straight from the last Conv before it."""
        data = self._data(node)
        position = {n: i for i, n in enumerate(self.model.graph.nodes)}
        from_conv = [t for t in data if (m := edit.producer(t)) is not None and self.how.get(m) == STATIC]
        if len(data) != 2 or not from_conv:
            return []
        main = max(from_conv, key=lambda t: position[t.inputs[0]])
        return [t for t in data if t is not main]

    def _weight_plan(self, node: Node) -> WeightPlan:
        slot = self.slot[node]
        rank = len(node.inputs[slot].shape)
        axis = 0 if node.op == "Gather" else channel_axis(node, slot, rank)
        per_channel = (self.recipe.per_channel or node.op == "Gather") and axis is not None
        return WeightPlan(slot, replace(self.weight, granularity=PerChannel(axis or 0) if per_channel else PerTensor()))

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
            if params is None or after is None or self._maker(named[name]) is after:
                continue
            if int(params.zero_point) == params.scheme.dtype.qmin:
                continue
            before, group = after.inputs[0], planned.group
            own = self.trained.activations.get(before.name)
            fitting, exact = activation_params(own, self.activation) if own is not None else (params, False)
            if exact:
                group, kept.activations[before.name], kept.fates[before.name] = before.name, fitting, ""
            tensors[before.name] = TensorPlan(self.activation, before.name, group, all_readers=True)

    def _trained_weight(self, node: Node) -> tuple[str, QuantParams] | None:
        weight = node.inputs[self.slot[node]] if self.trained.weights and node in self.slot else None
        return self.trained.of_weight(weight) if isinstance(weight, Constant) else None

    def _keep_weights(self, kept: Kept, planned: dict[str, WeightPlan]) -> None:
        """Put the trained scales of weights, and of constants that int8 ops read as data, into `kept` and the plan."""
        for node in self.how:
            slot = self.slot.get(node)
            if slot is None:
                constants = [t for t in self._data(node) if isinstance(t, Constant)] if self.trained.weights else []
                for tensor in constants:
                    found = self.trained.of_weight(tensor)
                    if found is not None and not found[1].scale.ndim:
                        params, exact = activation_params(found[1], self.activation)
                        kept.weights[tensor.name] = params
                        kept.fates[found[0]] = "" if exact else "its range is kept"
                continue
            found = self._trained_weight(node)
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
            planned[node.label] = WeightPlan(slot, replace(scheme, granularity=fitting.scheme.granularity))

    # ------------------------------------------------------------------ what statistics forbid

    def wide_concats(self) -> dict[Node, str]:
        """Concats whose inputs' ranges differ too much for one scale, unless a weighted op reads the result anyway."""
        wide: dict[Node, str] = {}
        for node in self._int8():
            if node.op != "Concat" or node in self.forced:
                continue
            if any(u in self.slot for u in edit.consumers(node.outputs[0])):
                continue
            if self.trained.of(node.outputs[0]) is not None:
                continue  # it was trained to make do with one
            ratio, text = self.evidence.spread(node)
            if ratio > self.recipe.concat_ratio:
                wide[node] = f"its inputs' ranges differ {ratio:.0f}x ({text}): one scale would erase the smaller"
        return wide

    def smoothed(self, plan: Plan) -> Plan:
        """The plan in which the outliers of dynamic ops' inputs are moved into their weights."""
        readers: dict[Tensor, list[Node]] = {}
        for node in self._int8(DYNAMIC):
            readers.setdefault(node.inputs[0], []).append(node)
        factors = {}
        for tensor, nodes in readers.items():
            expected = self.evidence.dynamic_db(tensor)
            if any(self._trained_weight(n) is not None for n in nodes):
                continue  # its weight would not stay what was trained
            if expected is not None and expected < self.target.smooth_below_db:
                found = self.evidence.smoothing(tensor, nodes)
                if found is not None:
                    factors[tensor.name] = found
        return replace(plan, smoothing=factors)

    # ------------------------------------------------------------------ reasons

    def _worth_a_line(self, node: Node) -> bool:
        """Nodes that compute on float values, or that were asked for; shape arithmetic is not worth a line."""
        if node in self.how or node in self.why:
            return True
        out = node.outputs[0] if node.outputs else None
        if out is None or node.op in ("Constant", "Shape", "Size", "Identity", "Cast"):
            return False
        return self.model.elem_type(out) in (0, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16) and bool(
            data_slots(node)
        )

    def _node_plan(self, node: Node) -> NodePlan:
        has_weight = node in self.slot or weight_slot(node) is not None
        if node in self.how:
            return NodePlan(node.label, node.op, self.how[node], "", has_weight)
        before = edit.producer(node.inputs[0]) if node.inputs and node.op in ("Relu", "Clip") else None
        if before is not None and self.how.get(before) == STATIC and self._activation_after(before) is node:
            return NodePlan(node.label, node.op, STATIC)
        return NodePlan(node.label, node.op, FLOAT, self._reason(node), has_weight)

    def _reason(self, node: Node) -> str:
        if node in self.why:
            return self.why[node]
        if node.domain not in STANDARD_DOMAINS:
            return f"custom domain {node.domain!r}"
        if self.recipe.mode != STATIC:
            return f"has no weight to quantize in {self.recipe.mode} mode"
        if node not in self.top and node.op in self.target.followers:
            return "inside a subgraph (If, Loop, Scan), where activations are not calibrated"
        if node in self.top and node.op in self.target.followers:
            if not self._leads_to_weight(node):
                return "after the last weighted op"
            return "not between int8 ops: a Q/DQ pair would cost more than it saves"
        return self.target.float_reasons.get(node.op, f"{self.target.name} has no int8 kernel for it")

    def _leads_to_weight(self, node: Node) -> bool:
        seen, stack = {node}, [node]
        while stack:
            for tensor in stack.pop().outputs:
                for user in edit.consumers(tensor):
                    if weight_slot(user) is not None:
                        return True
                    if user not in seen:
                        seen.add(user)
                        stack.append(user)
        return False


def _finite(node: Node) -> bool:
    """False where a constant operand holds NaN or infinity: no scale covers it."""
    operands = [t for t in node.inputs if isinstance(t, Constant)] if op_of(node).data is None else []
    return all(bool(np.isfinite(weights.read(t)).all()) for t in operands)
