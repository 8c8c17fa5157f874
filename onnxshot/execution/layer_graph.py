"""Which nodes make and read the tensors of a model, and where the bias of a layer is added."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from onnxshot.execution.layer_walk import reads
from onnxshot.graph.lean_model import LeanModel


@dataclass(frozen=True, slots=True)
class LayerGraph:
    """A model, and which of its top-level nodes make and read each tensor.

    Attributes:
        model: the model.
        makers: tensor -> the node that makes it.
        readers: tensor -> the nodes that read it, and one without a type where it is an output of the model.
    """

    model: LeanModel
    makers: Mapping[str, NodeProto]
    readers: Mapping[str, Sequence[NodeProto]]

    @classmethod
    def of(cls, model: LeanModel) -> LayerGraph:
        """Look at the top-level nodes; tensors that are outputs of the model have one reader more."""
        readers: dict[str, list[NodeProto]] = {info.name: [NodeProto()] for info in model.proto.graph.output}
        for node in model.proto.graph.node:
            for name in reads(node):
                readers.setdefault(name, []).append(node)
        return cls(model, {name: node for node in model.proto.graph.node for name in node.output}, readers)

    def bias_of(self, node: NodeProto, outputs: int) -> tuple[str, str, str]:
        """The bias of a layer, the tensor that it is added to, and the Add behind a MatMul that adds it; "" for none.

        A bias is a constant with one float per output.
        """
        added = node.input[2] if len(node.input) > 2 else ""
        if self._is_bias(added, outputs):
            return added, node.output[0], ""
        output = node.output[0]
        for op in ("QuantizeLinear", "DequantizeLinear"):  # between a product and its bias
            only = self._only_reader(output)
            output = only.output[0] if only is not None and only.op_type == op else output
        add = self._only_reader(output) if node.op_type == "MatMul" else None
        if add is not None and add.op_type == "Add" and add.name:
            other = add.input[1] if add.input[0] == output else add.input[0]
            if self._is_bias(other, outputs) and self.model.kind_of(other)[1][-1:] == (outputs,):
                return other, add.output[0], add.name
        return "", node.output[0], ""

    def _is_bias(self, name: str, outputs: int) -> bool:
        if not name or not self.model.holds(name):
            return False
        kind, shape = self.model.kind_of(name)
        return kind == TensorProto.FLOAT and math.prod(shape) == outputs

    def _only_reader(self, name: str) -> NodeProto | None:
        found = self.readers.get(name, ())
        return found[0] if len(found) == 1 and found[0].op_type else None
