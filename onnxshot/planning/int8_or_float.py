"""Which nodes run in int8, and how: from the graph, the target's rules and the recipe.

Weighted ops (Conv, Gemm, MatMul) are quantized unless something speaks against it. Ops without a weight ("followers")
are quantized only where they stand between int8 ops, so that a Q/DQ pair is saved and not added; that is a fixed
point, since each may be the neighbour another relies on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from onnx import TensorProto

from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS, data_slots, op_of, weight_slot
from onnxshot.maths.affine import QuantParams
from onnxshot.planning.node_mode import elements, is_embedding, is_weighted, pools_otherwise, treatment
from onnxshot.planning.node_recipe import NodeRecipes
from onnxshot.planning.plan import DYNAMIC, FLOAT, STATIC, WEIGHTS, NodePlan
from onnxshot.planning.shape_only import from_sizes_alone
from onnxshot.planning.slow_convs import ConvSize, is_light, is_rare, is_thin, pools_slower, slower_at_floats
from onnxshot.planning.trained_scales import Trained
from onnxshot.planning.worklist import Watch, Watched, settle
from onnxshot.recipes.recipe import Recipe
from onnxshot.targets.base import Target

_WORTH_A_SCALE = 2
"""Pairs that a chain of products must spare to be quantized by fixed scales: three products, or two behind a Conv."""


class Decisions:
    """What becomes of every node.

    Attributes:
        how: static, dynamic or weights, of the nodes that are quantized.
        slot: the input that holds the weight, of those that have one.
        why: the reason, of nodes that were kept in float on purpose.
        asked: what the recipe asks of each.
        forced: nodes that are quantized also where that does not pay.
        top: nodes of the graph itself, not of a subgraph.
    """

    def __init__(
        self, model: Model, target: Target, recipe: Recipe, banned: Mapping[Node, str], trained: Trained
    ) -> None:
        self._model, self._target, self._recipe, self._trained = model, target, recipe, trained
        self.asked = NodeRecipes(model, recipe)
        self.why: dict[Node, str] = self.asked.left | dict(banned)
        self.forced = self.asked.forced
        self.top = {n for n in model.graph.nodes}
        self._sized, self._of_sizes = from_sizes_alone(model)
        self.how: dict[Node, str] = {}
        self.slot: dict[Node, int] = {}
        self._leading: set[Node] | None = None  # nodes in front of weights, once they are asked for
        self._unlisted: set[Node] = set()  # products that would be folded, were the sizes of the inputs fixed
        for _, node in model.walk():
            if node in self.why:
                continue
            if is_weighted(node):
                self._classify(node)
            elif is_embedding(node):
                self.how[node], self.slot[node] = WEIGHTS, 0
        # A node is not worth more in int8 because the user leaves others in float: those count as what they would be.
        self._left = [node for node in self.asked.left if is_weighted(node) and self._treated(node)[0] != FLOAT]
        self._thin = self._find_thin()
        if recipe.mode == STATIC:
            self._settle_followers()

    def _classify(self, node: Node) -> None:
        how, reason = self._treated(node)
        slot = weight_slot(node)
        if how == FLOAT or slot is None:
            self.why[node] = reason
            if node in self._sized and slot is None:
                self._unlisted.add(node)
        else:
            self.how[node], self.slot[node] = how, slot

    def _treated(self, node: Node) -> tuple[str, str]:
        """How a node with a weight is treated by itself, and why."""
        recipe, top, forced = self.asked.of(node), node in self.top, node in self.forced
        return treatment(node, self._target, recipe, is_top=top, forced=forced, rows=self._rows(node))

    def _rows(self, node: Node) -> int | None:
        """Rows of a MatMul's input, for each of its matrices; None where they are not known."""
        shape = self._model.shape(node.inputs[0]) if node.op == "MatMul" else None
        return shape[-2] if shape is not None and len(shape) > 1 and isinstance(shape[-2], int) else None

    def _settle_followers(self) -> None:
        """Shrink the set of candidates until every follower stands between int8 ops (the greatest fixed point)."""
        for node in self._model.graph.nodes:
            if node.op in self._target.followers and node not in self.why and node not in self.how:
                slots, other = data_slots(node), pools_otherwise(node)
                if other:
                    self.why[node] = other
                    continue
                if slots and all(self._is_float(node.inputs[i]) for i in slots) and _finite(node):
                    self.how[node] = STATIC
        followers = [n for n, how in self.how.items() if how == STATIC and n not in self.slot]
        products = [n for n in self.slot if self.how.get(n) == STATIC]
        watch = Watch()
        self.how, self.slot = Watched(self.how, watch), Watched(self.slot, watch)
        fed = Watched(Counter(t for n in products for t in self.data(n)), watch)
        sweeps = ((followers, self._settle_follower), (products, self._settle))
        settle(watch, [(nodes, partial(look, fed=fed)) for nodes, look in sweeps])
        self.how, self.slot = dict(self.how), dict(self.slot)
        self._leave_pools()

    def _settle_follower(self, node: Node, fed: dict[Tensor, int]) -> None:
        """Leave a node without a weight in float where it does not stand between int8 ops. fed: readers in int8."""
        if self.how.get(node) != STATIC:
            return
        inputs_int8 = all(self._from_int8(t) or fed.get(t) for t in self.data(node))
        fused = self.maker(node.outputs[0]) is not node  # part of the op before it: no pair between the two
        if fused or (node not in self.forced and not (inputs_int8 and self._pays(node))):
            del self.how[node]

    def _settle(self, node: Node, fed: dict[Tensor, int]) -> None:
        """Take a node with a weight out of int8 where it is faster in float, or quantized at run time."""
        if self.how.get(node) != STATIC:
            return
        if reason := self._better_float(node):
            del self.how[node], self.slot[node]
            self.why[node] = f"{reason}, and not between int8 ops: it is faster in float"
        elif self._better_dynamic(node):
            if elements(node.inputs[self.slot[node]]) < self._target.min_dynamic_weights:
                del self.how[node], self.slot[node]
                self.why[node] = "small, and no int8 op next to it: quantizing would cost more than it saves"
            else:
                self.how[node] = DYNAMIC
        if self.how.get(node) != STATIC:
            for tensor in self.data(node):
                fed[tensor] -= 1

    def _leave_pools(self) -> None:
        """Take out the pools that are slower in int8. Ops next to them stay as they are: what they read has a Q."""
        if not self._target.slow_pools:
            return
        for node in [n for n in self.int8() if n not in self.forced]:
            if slower := pools_slower(node, self._model.shape(node.outputs[0])):
                del self.how[node]
                self.why[node] = slower

    def _pays(self, node: Node) -> bool:
        if self.feeds(node):
            return True
        # A reducer spares dequantizing a large tensor, where the op before it has to be quantized anyway.
        makers = {self.maker(t) for t in self.data(node)}
        return node.op in self._target.reducers and all(m in self.slot for m in makers)

    def _better_float(self, node: Node) -> str:
        """Why a Conv is faster in float where an op next to it is float; empty where it is not."""
        size = ConvSize.of(node) if self._target.slow_thin and node not in self.forced else None
        reason = slower_at_floats(size) if size is not None else ""
        taken = any(user in self.slot for user in self._takers(node))  # or a MaxPool behind it would be float too
        if size is not None and not reason and node in self._thin and taken:
            reason = f"{size.ins} channels in and {size.outs} out"
        before, behind = all(self._from_int8(t) for t in self.data(node)), self.feeds(node)
        if size is not None and not reason and not before and not behind and is_light(size):
            # A net of which it is a large part is small, and timed as a whole.
            rare = is_rare(1, len(self.slot) + len(self._left))
            reason = f"{size.ins} channels in and {size.outs} out" if rare else ""
        if not reason or self.trained_weight(node) is not None or (before and behind):
            return ""
        return reason

    def _find_thin(self) -> frozenset[Node]:
        """The static Convs with few channels, where there are many others."""
        static = [n for n in self.slot if self.how.get(n) == STATIC]
        static += [n for n in self._left if self._treated(n)[0] == STATIC]
        sizes = {n: ConvSize.of(n) for n in static if n.op == "Conv"}
        thin = frozenset(n for n, size in sizes.items() if size is not None and is_thin(size))
        return thin if is_rare(len(thin), len(sizes)) else frozenset()

    def _better_dynamic(self, node: Node) -> bool:
        if not self._target.prefers_dynamic or node.op not in self._target.dynamic or node in self.forced:
            return False
        if self.trained_weight(node) is not None and self._trained.of(node.inputs[0]) is not None:
            return False  # it has a scale for its input already
        # Its input or output would be quantized for it alone: at run time that costs as little, and fits each input.
        return self._spared(node) < _WORTH_A_SCALE

    def _spared(self, node: Node) -> int:
        """How many pairs of Q and DQ its chain of products spares that are quantized at run time, up to what pays.

        A link of two products spares one, as does an int8 op in front.
        """
        seen, stack, spared = {node}, [node], 0
        while stack and spared < _WORTH_A_SCALE:
            product = stack.pop()
            for user in self._takers(product):
                if user.op not in self._target.dynamic or user not in self.slot:
                    return _WORTH_A_SCALE
                spared += 1
                if spared == _WORTH_A_SCALE:
                    return spared
                if user not in seen:
                    seen.add(user)
                    stack.append(user)
            maker = self.maker(product.inputs[0])
            if maker is None or not self._from_int8(product.inputs[0]):
                continue
            if maker not in self.slot or maker.op not in self._target.dynamic:
                spared += 1
            elif maker not in seen:
                seen.add(maker)
                stack.append(maker)
        return spared

    def int8(self, how: str = STATIC) -> list[Node]:
        """The nodes of one treatment."""
        return [n for n, chosen in self.how.items() if chosen == how]

    def data(self, node: Node) -> list[Tensor]:
        """The inputs that carry activations."""
        return [node.inputs[i] for i in data_slots(node)]

    def _is_float(self, tensor: Tensor) -> bool:
        return self._model.elem_type(tensor) in (0, TensorProto.FLOAT)

    def activation_after(self, node: Node) -> Node | None:
        """The Relu or Clip at 0 that ONNX Runtime fuses with the node, where it is the only reader."""
        user = edit.only_consumer(self._model, node.outputs[0]) if len(node.outputs) == 1 else None
        if user is None or user in self.why:
            return None
        if user.op == "Relu" or (user.op == "Clip" and edit.clip_limits(user)[0] == 0.0):
            return user
        return None

    def result(self, node: Node) -> Tensor:
        """The tensor a Q belongs on: the node's output, or that of the activation fused with it."""
        after = self.activation_after(node)
        return after.outputs[0] if after is not None else node.outputs[0]

    def maker(self, tensor: Tensor) -> Node | None:
        """The node that makes the tensor; where that is a Relu or Clip fused with the node before, that one."""
        maker = edit.producer(tensor)
        before = edit.producer(maker.inputs[0]) if maker is not None and maker.op in ("Relu", "Clip") else None
        if before is not None and self.how.get(before) == STATIC and self.activation_after(before) is maker:
            return before
        return maker

    def _from_int8(self, tensor: Tensor) -> bool:
        maker = self.maker(tensor)
        if maker is None or self.how.get(maker) != STATIC:
            return False
        return maker.op == "Split" or self.result(maker) is tensor

    def feeds(self, node: Node) -> bool:
        """True where a static node takes the result as data."""
        outputs = node.outputs if node.op == "Split" else [self.result(node)]
        return any(
            self.how.get(user) == STATIC and any(t is d for d in self.data(user))
            for t in outputs
            for user in edit.consumers(t)
        )

    def _takers(self, node: Node) -> Iterator[Node]:
        """The static nodes that take the result as data."""
        result = self.result(node)
        users = edit.consumers(result)
        return (u for u in users if self.how.get(u) == STATIC and any(t is result for t in self.data(u)))

    def trained_weight(self, node: Node) -> tuple[str, QuantParams] | None:
        """Name and params of the weight's trained scale; None where it came without one."""
        weight = node.inputs[self.slot[node]] if self._trained.weights and node in self.slot else None
        return self._trained.of_weight(weight) if isinstance(weight, Constant) else None

    def plans(self) -> tuple[NodePlan, ...]:
        """A line for every node that is worth one, in graph order."""
        return tuple(self._node_plan(n) for _, n in self._model.walk() if self._worth_a_line(n))

    def _worth_a_line(self, node: Node) -> bool:
        """Nodes that compute on float values, or that were asked for; what follows from sizes is not worth a line.

        A model whose sizes are frozen has none of that: so it gives the same plan.
        """
        if (node in self.how or node in self.why) and node not in self._unlisted:
            return True
        if node in self._sized:
            return False
        out = node.outputs[0] if node.outputs else None
        if out is None or node.op in ("Constant", "Shape", "Size", "Identity", "Cast"):
            return False
        return self._model.elem_type(out) in (0, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16) and bool(
            data_slots(node)
        )

    def _node_plan(self, node: Node) -> NodePlan:
        has_weight = node in self.slot or weight_slot(node) is not None
        if node in self.how:
            return NodePlan(node.label, node.op, self.how[node], "", has_weight)
        before = edit.producer(node.inputs[0]) if node.inputs and node.op in ("Relu", "Clip") else None
        if before is not None and self.how.get(before) == STATIC and self.activation_after(before) is node:
            return NodePlan(node.label, node.op, STATIC)
        return NodePlan(node.label, node.op, FLOAT, self._reason(node), has_weight)

    def _reason(self, node: Node) -> str:
        if node in self.why:
            return self.why[node]
        if node.domain not in STANDARD_DOMAINS:
            return f"custom domain {node.domain!r}"
        if self._recipe.mode != STATIC:
            held = [t for t in node.inputs if isinstance(t, Constant) or t in self._of_sizes]
            if any(len(self._model.shape(t) or ()) >= 2 for t in held):
                return f"reads a constant; those of {node.op} are not among the weights that onnxshot quantizes"
            return f"has no weight to quantize in {self._recipe.mode} mode"
        if node not in self.top and node.op in self._target.followers:
            return "inside a subgraph (If, Loop, Scan), where activations are not calibrated"
        if node in self.top and node.op in self._target.followers:
            if not self._leads_to_weight(node):
                return "after the last weighted op"
            return "not between int8 ops: a Q/DQ pair would cost more than it saves"
        return self._target.float_reasons.get(node.op, f"{self._target.name} has no int8 kernel for it")

    def _leads_to_weight(self, node: Node) -> bool:
        """Whether some node that is computed from its results has a weight."""
        if self._leading is None:
            self._leading, stack = set(), [n for _, n in self._model.walk() if weight_slot(n) is not None]
            while stack:
                for tensor in stack.pop().inputs:
                    maker = edit.producer(tensor)
                    if maker is not None and maker not in self._leading:
                        self._leading.add(maker)
                        stack.append(maker)
        return node in self._leading


def _finite(node: Node) -> bool:
    """False where a constant operand holds NaN or infinity: no scale covers it."""
    operands = [t for t in node.inputs if isinstance(t, Constant)] if op_of(node).data is None else []
    return all(bool(np.isfinite(weights.read(t)).all()) for t in operands)
