"""The products of a model whose weights are quantized in blocks, and which of them read the same input."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxshot.execution.layer_graph import LayerGraph
from onnxshot.execution.layer_rows import MatrixForm
from onnxshot.graph.ir import Constant
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.weights import ComputedValues
from onnxshot.maths.block_codes import BlockCodes
from onnxshot.maths.quant_scheme import UINT4, UINT8, PerBlock, QuantScheme
from onnxshot.planning.plan import WEIGHTS, Plan, WeightPlan


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a weight on the right, as matrices [N, K] of N outputs and K inputs, one per expert.

    Attributes:
        node: name of the node.
        input: name of its other input.
        weight: name of its weight.
        shape: shape of the weight as it is stored.
        form: how the weight is stored.
        scheme: how it is quantized: unsigned, with blocks along axis 1 of the matrices.
        experts: number of matrices; 1 for a weight of rank 2.
        bias: name of the constant that is added, which nothing else reads; "" for none.
        adds: name of the Add behind a MatMul that adds it; else "".
    """

    node: str
    input: str
    weight: str
    shape: tuple[int, ...]
    form: MatrixForm
    scheme: QuantScheme
    experts: int
    bias: str
    adds: str

    @property
    def size(self) -> int:
        """Inputs a block."""
        granularity = self.scheme.granularity
        assert isinstance(granularity, PerBlock)
        return granularity.size

    @property
    def inputs(self) -> int:
        """Number of inputs, K."""
        return self.shape[-2 if self.form.transposed else -1]

    @property
    def outputs(self) -> int:
        """Number of outputs, N."""
        return self.shape[-1 if self.form.transposed else -2]

    def table(self, weight: NDArray[Any], expert: int) -> NDArray[Any]:
        """The matrix [N, K] of an expert, as a view of the stored weight."""
        return as_matrix(weight[expert] if weight.ndim == 3 else weight, transposed=self.form.transposed)

    def stored(self, rounded: BlockCodes) -> Constant:
        """The weight that the integers stand for, as it is stored. It is computed whenever it is read."""
        return stored_floats(self.weight, rounded, self.shape, transposed=self.form.transposed)

    def places(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The axes of its input that count rows, given the shape of the input; for one expert."""
        own = len(self.shape) == 3 and len(shape) > 2  # an input of rank 2 is that of every expert
        return (*shape[:-3], shape[-2]) if own else tuple(shape[:-1])

    def rows(self, values: NDArray[Any], expert: int) -> NDArray[Any]:
        """The inputs of an expert [n, K] in the product's input on one sample."""
        if len(self.shape) == 3 and values.ndim > 2:
            values = values[..., min(expert, values.shape[-3] - 1), :, :]
        return values.reshape(-1, values.shape[-1])


def as_matrix(weight: NDArray[Any], *, transposed: bool) -> NDArray[Any]:
    """A weight of rank 2 as [N, K]."""
    return weight.T if transposed else weight


def stored_floats(name: str, rounded: BlockCodes, shape: Sequence[int], *, transposed: bool) -> Constant:
    """A constant with what integers [N, K] stand for, in the shape of the weight; [K, N] if `transposed`."""

    def computed() -> NDArray[np.float32]:
        found = rounded.floats()
        if not transposed:
            return found.reshape(shape)
        matrices = found.reshape(*shape[:-2], shape[-1], shape[-2])
        return np.ascontiguousarray(np.swapaxes(matrices, -1, -2))

    return Constant(name, ComputedValues(tuple(shape), np.dtype(np.float32), computed))


def products_of(graph: LayerGraph, plan: Plan) -> list[Product]:
    """The top-level products whose weights the plan puts in blocks, in graph order.

    Left out are those in subgraphs, those with the weight on the left, and weights that several products read.
    """
    planned = plan.labels(WEIGHTS)
    nodes = [node for node in graph.model.proto.graph.node if node.name in planned]
    found = (_product(node, graph, plan) for node in nodes)
    return [product for product in found if product is not None]


def _product(node: NodeProto, graph: LayerGraph, plan: Plan) -> Product | None:
    model, how = graph.model, plan.weights[node.name]
    if node.op_type not in ("MatMul", "Gemm") or how.slot != 1 or not how.in_blocks:
        return None
    weight, given = node.input[1], node.input[0]
    others = [reader for reader in graph.readers.get(weight, ()) if reader is not node]
    if not model.holds(weight) or model.holds(given) or any(reader.op_type != "Gather" for reader in others):
        return None
    kind, shape = model.kind_of(weight)
    if kind != TensorProto.FLOAT or len(shape) not in ((2, 3) if node.op_type == "MatMul" else (2,)):
        return None
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attrs.get("transA", 0) or attrs.get("alpha", 1.0) != 1.0 or attrs.get("beta", 1.0) != 1.0:
        return None
    form = MatrixForm(node.op_type, attrs)
    experts = math.prod(shape[:-2])
    inputs, outputs = shape[-2:] if form.transposed else shape[:-3:-1]
    bias, _, adds = graph.bias_of(node, outputs) if experts == 1 else ("", "", "")
    if bias and len(graph.readers[bias]) != 1:
        bias = adds = ""
    return Product(node.name, given, weight, shape, form, matrix_scheme(how, inputs), experts, bias, adds)


def matrix_scheme(how: WeightPlan, inputs: int) -> QuantScheme:
    """How the matrix [N, K] of a weight of K inputs is quantized, in unsigned integers."""
    granularity = how.scheme.granularity
    size = granularity.size if isinstance(granularity, PerBlock) else inputs
    dtype = UINT4 if how.scheme.dtype.bits == 4 else UINT8
    return QuantScheme(dtype, how.scheme.symmetric, PerBlock(1, size))


def by_input(products: Iterable[Product]) -> list[list[Product]]:
    """The products that read the same tensor, in the order of the first of each.

    Products of experts stand alone: their inputs are other rows of the tensor.
    """
    groups: dict[Any, list[Product]] = {}
    for product in products:
        alone = product.node if len(product.shape) == 3 else ""
        groups.setdefault((product.input, alone), []).append(product)
    return list(groups.values())


def tables_of(model: LeanModel, plan: Plan) -> Mapping[str, QuantScheme]:
    """Names of the tables that a Gather reads and the plan puts in blocks, with their schemes."""
    planned = plan.labels(WEIGHTS)
    gathers = [node for node in model.proto.graph.node if node.op_type == "Gather" and node.name in planned]
    found = {node.input[0]: plan.weights[node.name] for node in gathers if node.input[0] in model.weights}
    return {
        name: matrix_scheme(how, model.kind_of(name)[1][-1])
        for name, how in found.items()
        if how.in_blocks and len(model.kind_of(name)[1]) == 2
    }
