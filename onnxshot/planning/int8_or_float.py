"""Decide which nodes run in int8 and which stay in float, and give the skip reason ("why is this Conv float").

Nodes with a constant weight (Conv, Gemm, MatMul, LSTM ...) are quantized unless a check speaks against it. Nodes
without a weight ("followers", for example Add and MaxPool) are quantized only between int8 nodes, where this saves Q/DQ
pairs.

The first check that applies gives the skip reason. The order is:

1. The user left the node out (`exclude`, or float in the recipe's `layers`): node_recipe.py.
2. An earlier planning attempt banned the node: its Q/DQ nodes would make the file larger (qdq_overhead.py), or it is a
   Concat whose inputs' ranges differ too much for one scale (`make_plan._Planner.wide_concats`).
3. Checks of one weighted node alone: its weight, operator, form, kernel size, bias and the mode. node_mode.py lists
   them in order; slow_convs.py has the sizes for which int8 kernels are slower than float.
4. Followers: the int8 kernel computes something else (`node_mode.unsupported_pool`).
5. Neighbours, repeated until nothing changes: a follower leaves int8 if it is not between int8 nodes
   (`_settle_follower`); a Conv leaves int8 if a neighbour is float and it is small or depthwise; a MatMul or Gemm with
   too few int8 neighbours is quantized at run time, or stays in float if it is small (`_settle_weighted`).
6. AveragePool whose int8 kernel is slower (`_drop_slow_pools`).
7. All other nodes without a mode: custom domain, nothing to quantize in this mode, subgraph, no weighted node after it,
   not between int8 nodes, no int8 kernel on this target (`_reason`).

`include`, or a mode in the recipe's `layers`, forces a node: checks of speed are skipped, those of correctness are not.
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
from onnxshot.planning.node_mode import elements, is_embedding, is_weighted, node_mode, unsupported_pool
from onnxshot.planning.node_recipe import NodeRecipes
from onnxshot.planning.plan import DYNAMIC, FLOAT, STATIC, WEIGHTS, NodePlan
from onnxshot.planning.shape_only import from_sizes_alone
from onnxshot.planning.slow_convs import ConvSize, is_light, is_rare, is_thin, pools_slower, slower_at_floats
from onnxshot.planning.trained_scales import Trained
from onnxshot.planning.worklist import TrackedDict, Visits, settle
from onnxshot.recipes.recipe import Recipe
from onnxshot.targets.base import Target

_WORTH_A_SCALE = 2
"""Q/DQ pairs that a chain of MatMul and Gemm must save for calibrated scales to pay.

Three products in a row save two, and so do two after a Conv. Below this, scales computed at run time cost as little and
fit each input.
"""


class Decisions:
    """The mode of each node of a model, or the reason why it stays in float. The module docstring has the order.

    Attributes:
        how: node -> "static", "dynamic" or "weights", for each quantized node.
        slot: node -> index of the input that holds its weight, for each quantized node with a weight.
        why: node -> skip reason, for each node that was kept in float on purpose.
        asked: the recipe of each node.
        forced: nodes that the user wants quantized even if that does not pay.
        top: nodes of the top-level graph, not of a subgraph.
    """

    def __init__(
        self, model: Model, target: Target, recipe: Recipe, banned: Mapping[Node, str], trained: Trained
    ) -> None:
        self._model, self._target, self._recipe, self._trained = model, target, recipe, trained
        self.asked = NodeRecipes(model, recipe)
        self.why: dict[Node, str] = self.asked.excluded | dict(banned)
        self.forced = self.asked.forced
        self.top = {n for n in model.graph.nodes}
        self._sized, self._of_sizes = from_sizes_alone(model)
        self.how: dict[Node, str] = {}
        self.slot: dict[Node, int] = {}
        self._leading: set[Node] | None = None  # nodes whose results reach a weighted node; computed on first use
        self._unlisted: set[Node] = set()  # MatMuls that fixed input shapes would fold
        for _, node in model.walk():
            if node in self.why:
                continue
            if is_weighted(node):
                self._classify(node)
            elif is_embedding(node):
                self.how[node], self.slot[node] = WEIGHTS, 0
        # Excluded nodes count as if they were quantized: excluding one node must not change the decision of another.
        weighted = (node for node in self.asked.excluded if is_weighted(node))
        self._excluded = [node for node in weighted if self._mode_alone(node)[0] != FLOAT]
        self._thin_convs = self._find_thin_convs()
        if recipe.mode == STATIC:
            self._settle_followers()

    def _classify(self, node: Node) -> None:
        """Record the mode of a weighted node seen alone, or its skip reason."""
        how, reason = self._mode_alone(node)
        slot = weight_slot(node)
        if how == FLOAT or slot is None:
            self.why[node] = reason
            if node in self._sized and slot is None:
                self._unlisted.add(node)
        else:
            self.how[node], self.slot[node] = how, slot

    def _mode_alone(self, node: Node) -> tuple[str, str]:
        """Mode of a weighted node seen alone, and the skip reason if it is float."""
        recipe, top, forced = self.asked.of(node), node in self.top, node in self.forced
        return node_mode(node, self._target, recipe, is_top=top, forced=forced, rows=self._rows(node))

    def _rows(self, node: Node) -> int | None:
        """Rows of each matrix of a MatMul's input [..., rows, K]; None if unknown or for other ops."""
        shape = self._model.shape(node.inputs[0]) if node.op == "MatMul" else None
        return shape[-2] if shape is not None and len(shape) > 1 and isinstance(shape[-2], int) else None

    def _settle_followers(self) -> None:
        """Start with every candidate in int8, and take nodes out until each follower stands between int8 nodes.

        The result is the greatest fixed point: two followers may each be the int8 neighbour that the other needs.
        """
        for node in self._model.graph.nodes:
            if node.op in self._target.followers and node not in self.why and node not in self.how:
                slots, unsupported = data_slots(node), unsupported_pool(node)
                if unsupported:
                    self.why[node] = unsupported
                    continue
                if slots and all(self._is_float(node.inputs[i]) for i in slots) and _finite(node):
                    self.how[node] = STATIC
        followers = [n for n, how in self.how.items() if how == STATIC and n not in self.slot]
        products = [n for n in self.slot if self.how.get(n) == STATIC]
        visits = Visits()
        self.how, self.slot = TrackedDict(self.how, visits), TrackedDict(self.slot, visits)
        fed = TrackedDict(Counter(t for n in products for t in self.data(n)), visits)
        sweeps = ((followers, self._settle_follower), (products, self._settle_weighted))
        settle(visits, [(nodes, partial(visit, fed=fed)) for nodes, visit in sweeps])
        self.how, self.slot = dict(self.how), dict(self.slot)
        self._drop_slow_pools()

    def _settle_follower(self, node: Node, fed: dict[Tensor, int]) -> None:
        """Leave a follower in float if it is not between int8 nodes. fed: tensor -> number of weighted int8 readers."""
        if self.how.get(node) != STATIC:
            return
        inputs_int8 = all(self._from_int8(t) or fed.get(t) for t in self.data(node))
        fused = self.maker(node.outputs[0]) is not node  # it is part of the op before it
        if fused or (node not in self.forced and not (inputs_int8 and self._pays(node))):
            del self.how[node]

    def _settle_weighted(self, node: Node, fed: dict[Tensor, int]) -> None:
        """Take a weighted node out of static int8 if it is faster in float, or quantized at run time."""
        if self.how.get(node) != STATIC:
            return
        if reason := self._better_float(node):
            del self.how[node], self.slot[node]
            self.why[node] = f"{reason}, next to a float op: it is faster in float"
        elif self._better_dynamic(node):
            if elements(node.inputs[self.slot[node]]) < self._target.min_dynamic_weights:
                del self.how[node], self.slot[node]
                self.why[node] = "small, and no int8 op next to it: quantizing would cost more than it saves"
            else:
                self.how[node] = DYNAMIC
        if self.how.get(node) != STATIC:
            for tensor in self.data(node):
                fed[tensor] -= 1

    def _drop_slow_pools(self) -> None:
        """Leave the AveragePools in float that are slower in int8. Their neighbours stay in int8."""
        if not self._target.slow_pools:
            return
        for node in [n for n in self.int8() if n not in self.forced]:
            if slower := pools_slower(node, self._model.shape(node.outputs[0])):
                del self.how[node]
                self.why[node] = slower

    def _pays(self, node: Node) -> bool:
        """Whether a follower with int8 inputs pays: an int8 node reads its result, or it is a reducer."""
        if self.feeds(node):
            return True
        # A reducer avoids dequantizing a large tensor, if the op before it is quantized anyway.
        makers = {self.maker(t) for t in self.data(node)}
        return node.op in self._target.reducers and all(m in self.slot for m in makers)

    def _better_float(self, node: Node) -> str:
        """Why a Conv next to a float op is faster in float; empty if it is not."""
        size = ConvSize.of(node) if self._target.slow_thin and node not in self.forced else None
        reason = slower_at_floats(size) if size is not None else ""
        weighted_reader = any(user in self.slot for user in self._static_readers(node))
        # Without a weighted reader, a MaxPool after the Conv would become float too.
        if size is not None and not reason and node in self._thin_convs and weighted_reader:
            reason = f"only {size.ins} input and {size.outs} output channels"
        before, after = all(self._from_int8(t) for t in self.data(node)), self.feeds(node)
        if size is not None and not reason and not before and not after and is_light(size):
            # If it is a large part of the net, the net is small and is timed as a whole.
            rare = is_rare(1, len(self.slot) + len(self._excluded))
            reason = f"only {size.ins} input and {size.outs} output channels" if rare else ""
        if not reason or self.trained_weight(node) is not None or (before and after):
            return ""
        return reason

    def _find_thin_convs(self) -> frozenset[Node]:
        """The static Convs with few channels; empty if they are not rare among the static Convs."""
        static = [n for n in self.slot if self.how.get(n) == STATIC]
        static += [n for n in self._excluded if self._mode_alone(n)[0] == STATIC]
        sizes = {n: ConvSize.of(n) for n in static if n.op == "Conv"}
        thin = frozenset(n for n, size in sizes.items() if size is not None and is_thin(size))
        return thin if is_rare(len(thin), len(sizes)) else frozenset()

    def _better_dynamic(self, node: Node) -> bool:
        """Whether run-time scales are better for a MatMul or Gemm, as it has too few int8 neighbours."""
        if not self._target.prefers_dynamic or node.op not in self._target.dynamic or node in self.forced:
            return False
        if self.trained_weight(node) is not None and self._trained.of(node.inputs[0]) is not None:
            return False  # its input came with a scale
        # With few int8 neighbours, Q/DQ would serve this node alone. Run-time scales cost as little and fit each input.
        return self._saved_pairs(node) < _WORTH_A_SCALE

    def _saved_pairs(self, node: Node) -> int:
        """Number of Q/DQ pairs that calibrated scales save in its chain of MatMul and Gemm, at most _WORTH_A_SCALE.

        Each link between two of them saves one, as does each link to an int8 op before the chain. An int8 op after the
        chain, of another kind, makes the whole chain worth it.
        """
        seen, stack, saved = {node}, [node], 0
        while stack and saved < _WORTH_A_SCALE:
            product = stack.pop()
            for user in self._static_readers(product):
                if user.op not in self._target.dynamic or user not in self.slot:
                    return _WORTH_A_SCALE
                saved += 1
                if saved == _WORTH_A_SCALE:
                    return saved
                if user not in seen:
                    seen.add(user)
                    stack.append(user)
            maker = self.maker(product.inputs[0])
            if maker is None or not self._from_int8(product.inputs[0]):
                continue
            if maker not in self.slot or maker.op not in self._target.dynamic:
                saved += 1
            elif maker not in seen:
                seen.add(maker)
                stack.append(maker)
        return saved

    def int8(self, how: str = STATIC) -> list[Node]:
        """The nodes of one mode, static by default."""
        return [n for n, chosen in self.how.items() if chosen == how]

    def data(self, node: Node) -> list[Tensor]:
        """The inputs of a node that carry activations."""
        return [node.inputs[i] for i in data_slots(node)]

    def _is_float(self, tensor: Tensor) -> bool:
        """Whether the tensor is float32 or of unknown type."""
        return self._model.elem_type(tensor) in (0, TensorProto.FLOAT)

    def activation_after(self, node: Node) -> Node | None:
        """The Relu, or Clip with minimum 0, that is the only reader of the node and that ONNX Runtime fuses with it."""
        user = edit.only_consumer(self._model, node.outputs[0]) if len(node.outputs) == 1 else None
        if user is None or user in self.why:
            return None
        if user.op == "Relu" or (user.op == "Clip" and edit.clip_limits(user)[0] == 0.0):
            return user
        return None

    def result(self, node: Node) -> Tensor:
        """The tensor to quantize: the node's output, or that of the Relu or Clip fused with it."""
        after = self.activation_after(node)
        return after.outputs[0] if after is not None else node.outputs[0]

    def maker(self, tensor: Tensor) -> Node | None:
        """The node that produces the tensor. For a Relu or Clip that is fused with the node before it, that node."""
        maker = edit.producer(tensor)
        before = edit.producer(maker.inputs[0]) if maker is not None and maker.op in ("Relu", "Clip") else None
        if before is not None and self.how.get(before) == STATIC and self.activation_after(before) is maker:
            return before
        return maker

    def _from_int8(self, tensor: Tensor) -> bool:
        """Whether a static node produces the tensor, so that its Q is on it."""
        maker = self.maker(tensor)
        if maker is None or self.how.get(maker) != STATIC:
            return False
        return maker.op == "Split" or self.result(maker) is tensor

    def feeds(self, node: Node) -> bool:
        """Whether a static node reads the result as an activation."""
        outputs = node.outputs if node.op == "Split" else [self.result(node)]
        return any(
            self.how.get(user) == STATIC and any(t is d for d in self.data(user))
            for t in outputs
            for user in edit.consumers(t)
        )

    def _static_readers(self, node: Node) -> Iterator[Node]:
        """The static nodes that read the result as an activation."""
        result = self.result(node)
        users = edit.consumers(result)
        return (u for u in users if self.how.get(u) == STATIC and any(t is result for t in self.data(u)))

    def trained_weight(self, node: Node) -> tuple[str, QuantParams] | None:
        """Name and scale of the weight in the quantized input model; None if it came without a scale."""
        weight = node.inputs[self.slot[node]] if self._trained.weights and node in self.slot else None
        return self._trained.of_weight(weight) if isinstance(weight, Constant) else None

    def plans(self) -> tuple[NodePlan, ...]:
        """A `NodePlan` for each node that is worth a line in the report, in graph order."""
        return tuple(self._node_plan(n) for _, n in self._model.walk() if self._is_listed(n))

    def _is_listed(self, node: Node) -> bool:
        """True for nodes that compute on floats or that have a decision; False for what depends on shapes alone.

        The latter are constants once the input shapes are fixed, so both models give the same plan.
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
        """The plan entry of a node. A Relu or Clip that is fused with a static node is static too."""
        has_weight = node in self.slot or weight_slot(node) is not None
        if node in self.how:
            return NodePlan(node.label, node.op, self.how[node], "", has_weight)
        before = edit.producer(node.inputs[0]) if node.inputs and node.op in ("Relu", "Clip") else None
        if before is not None and self.how.get(before) == STATIC and self.activation_after(before) is node:
            return NodePlan(node.label, node.op, STATIC)
        return NodePlan(node.label, node.op, FLOAT, self._reason(node), has_weight)

    def _reason(self, node: Node) -> str:
        """The skip reason of a node in float."""
        if node in self.why:
            return self.why[node]
        if node.domain not in STANDARD_DOMAINS:
            return f"custom domain {node.domain!r}"
        if self._recipe.mode != STATIC:
            held = [t for t in node.inputs if isinstance(t, Constant) or t in self._of_sizes]
            if any(len(self._model.shape(t) or ()) >= 2 for t in held):
                return f"reads a constant, and onnxshot does not quantize constants of {node.op}"
            return f"has no weight to quantize in {self._recipe.mode} mode"
        if node not in self.top and node.op in self._target.followers:
            return "inside a subgraph (If, Loop, Scan), where activations are not calibrated"
        if node in self.top and node.op in self._target.followers:
            if not self._leads_to_weight(node):
                return "no op with a weight comes after it"
            return "not between int8 ops: a Q/DQ pair would cost more than it saves"
        return self._target.float_reasons.get(node.op, f"{self._target.name} has no int8 kernel for it")

    def _leads_to_weight(self, node: Node) -> bool:
        """Whether a node with a weight depends on the results of this node."""
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
    """Whether the constant operands hold neither NaN nor infinity, which no scale covers."""
    operands = [t for t in node.inputs if isinstance(t, Constant)] if op_of(node).data is None else []
    return all(bool(np.isfinite(weights.read(t)).all()) for t in operands)
