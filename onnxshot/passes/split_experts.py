"""Split a product by a stack of matrices (experts) into one product by each of them.

MatMul(x, w [E, K, N]) -> Concat of E products MatMul(x_e, w_e [K, N]). Runtimes multiply by integers in blocks of one
matrix only: a stack becomes floats when the file is loaded, at the time and the memory of floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, Variable, edit, weights
from onnxshot.graph.weight_pieces import rows
from onnxshot.maths.quant_scheme import PerBlock, QuantParams, QuantScheme
from onnxshot.passes.base import Change
from onnxshot.passes.node_writer import Writer
from onnxshot.planning.block_schemes import MOST_EXPERTS, unsigned
from onnxshot.planning.plan import FOLDED, WEIGHTS, NodePlan, Plan, RoundedBlocks, WeightPlan
from onnxshot.targets.base import Target

_Rounded = tuple[NDArray[np.uint8], QuantParams]


@dataclass(slots=True)
class SplitExperts:
    """Split the products by stacks of matrices whose weights are in blocks, in subgraphs too.

    Edits count the products that were split. One whose input has an unknown number of experts stays as it is; for ONNX
    Runtime, its weight is unpacked when the file is loaded. Nothing is reported as skipped.

    Attributes:
        plan: the plan. After `run`, it is the plan of the graph with the split products.
        target: the rules of the runtime.
    """

    plan: Plan
    target: Target
    name: str = "split_experts"
    _matrices: dict[tuple[Constant, int], Constant] = field(default_factory=dict)

    def run(self, model: Model) -> Change:
        """Split the products and update `plan`."""
        change = Change()
        if not self.target.splits_experts:
            return change
        labels = self.plan.labels(WEIGHTS)
        for graph, node in [(g, n) for g, n in model.walk() if n.label in labels]:
            planned = self.plan.weights[node.label]
            if not planned.in_blocks or planned.form == FOLDED or node.op != "MatMul":
                continue
            if len(node.inputs[planned.slot].shape) != 3:
                continue
            if _splits(model, node):
                self._split(model, graph, node, planned)
                change.edits += 1
            elif not self.target.shares_blocks:
                scheme = replace(planned.scheme, dtype=unsigned(planned.scheme.dtype))
                self._adopt(node.label, {node.label: replace(planned, scheme=scheme, form=FOLDED)})
        if change.edits:
            edit.toposort(model)
        return change

    def _split(self, model: Model, graph: Graph, node: Node, planned: WeightPlan) -> None:
        x, stack, out = node.inputs[0], node.inputs[1], node.outputs[0]
        shape, count = model.shape(x), int(stack.shape[0])
        assert shape is not None
        write, label = Writer(model, graph, node), node.label
        alone = len(shape) < 3
        axis = 0 if alone else len(shape) - 3
        same = alone or shape[axis] == 1
        parts: list[Tensor] = [x] * count if same else write.split(x, [1] * count, axis)
        products, made = [], {}
        granularity = planned.scheme.granularity
        assert isinstance(granularity, PerBlock)
        row = replace(planned, scheme=replace(planned.scheme, granularity=PerBlock(0, granularity.size)))
        node.outputs.clear()
        for number, part in enumerate(parts):
            matrix = self._matrix(model, stack, number)
            product = write.ops("MatMul", [part, matrix], [Variable(write.fresh(f"expert_{number}"))])
            made[product.label] = row
            products.append(write.axes("Unsqueeze", product.outputs[0], 0) if alone else product.outputs[0])
        write.op("Concat", *products, out=out, axis=axis)
        write.done()
        self._adopt(label, made)

    def _matrix(self, model: Model, stack: Constant, number: int) -> Constant:
        """One matrix of a stack. It is read when it is needed."""
        if (stack, number) not in self._matrices:
            shape, dtype = tuple(stack.shape[1:]), stack._values.dtype
            values = weights.ComputedValues(shape, dtype, partial(_read, stack, number))
            made = edit.add_constant(model, stack.name, f"expert_{number}", values)
            made.stored_as = getattr(stack, "stored_as", 0)
            self._matrices[stack, number] = made
            given = self.plan.rounded.get(stack.name)
            if given is not None:
                part = RoundedBlocks(given.scheme, partial(_part, given.read, number, int(stack.shape[0])))
                self.plan = replace(self.plan, rounded={**self.plan.rounded, made.name: part})
        return self._matrices[stack, number]

    def _adopt(self, label: str, made: dict[str, WeightPlan]) -> None:
        """Replace a product by others in the plan."""
        kept = tuple(n for n in self.plan.nodes if n.node != label)
        planned = {name: row for name, row in self.plan.weights.items() if name != label}
        added = tuple(NodePlan(name, "MatMul", WEIGHTS, "", True) for name in made)
        self.plan = replace(self.plan, nodes=(*kept, *added), weights=planned | made)


def _splits(model: Model, node: Node) -> bool:
    """Whether the input has as many matrices as the stack, or one that all of it multiply."""
    shape, count = model.shape(node.inputs[0]), int(node.inputs[1].shape[0])
    if shape is None or count > MOST_EXPERTS:
        return False
    return len(shape) == 2 or (len(shape) > 2 and shape[-3] in (1, count))


def _read(stack: Constant, number: int) -> NDArray[Any]:
    return np.ascontiguousarray(rows(stack, number, number + 1)[0])


def _part(read: Callable[[], _Rounded], number: int, count: int) -> _Rounded:
    """The integers, scales and zero points of one matrix of a stack."""
    codes, params = read()
    step = len(codes) // count
    own = slice(number * step, (number + 1) * step)
    scheme: QuantScheme = params.scheme
    return codes[own], QuantParams(scheme, params.scale[own], np.asarray(params.zero_point)[own])
