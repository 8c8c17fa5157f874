"""Give dynamic dimensions of the inputs fixed sizes, infer all shapes again, and fold what became constant."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ValueInfoProto

from onnxshot.graph import Constant, Model, Node, Tensor, shape_inference
from onnxshot.graph.fixed_shapes import FixedShapes
from onnxshot.passes.base import Change
from onnxshot.passes.fold_constants import FoldConstants
from onnxshot.passes.remove_unused import RemoveUnused


@dataclass(frozen=True, slots=True)
class FixShapes:
    """Set the sizes of input and output dimensions, and fold the shape computations that become constant.

    Nodes that were constant before are not folded: they may dequantize a weight that is stored in fewer bits. Shapes
    that the file states for intermediate tensors are dropped and inferred again: exporters leave the sizes of their
    example there.

    Edits count the inputs with fixed sizes. Nothing is skipped.

    Attributes:
        sizes: The fixed dimensions of each input, and the size of each symbolic dimension.
    """

    sizes: FixedShapes
    name: str = "freeze_shapes"

    def run(self, model: Model) -> Change:
        """Fix the sizes."""
        change = Change(len(self.sizes.inputs))
        if not self.sizes:
            return change
        left = _of_constants(model)
        for graph in model.graphs():
            top = graph is model.graph
            kept = {t.name for t in (*graph.inputs, *graph.outputs)} | graph.overridable.keys()
            graph.value_infos = {
                name: self._fixed(info, top=top, stated=name in kept or not top)
                for name, info in graph.value_infos.items()
            }
            graph.output_infos = [self._fixed(info, top=top, stated=True) for info in graph.output_infos]
        shape_inference.infer(model)
        FoldConstants(left=left).run(model)
        RemoveUnused().run(model)
        return change

    def _fixed(self, info: ValueInfoProto, *, top: bool, stated: bool) -> ValueInfoProto:
        """The value info with fixed sizes; without a shape unless that is `stated` by the model's interface."""
        if not info.type.HasField("tensor_type"):
            return info
        new = ValueInfoProto()
        new.CopyFrom(info)
        kind, before = new.type.tensor_type, info.type.tensor_type.shape.dim
        if top and info.name in self.sizes.inputs:
            del kind.shape.dim[:]
            for axis, size in enumerate(self.sizes.inputs[info.name]):
                if isinstance(size, int):
                    kind.shape.dim.add(dim_value=size)
                else:
                    kind.shape.dim.add().CopyFrom(before[axis])
        elif not stated:
            kind.ClearField("shape")
        for dim in kind.shape.dim:
            if dim.dim_param in self.sizes.symbols:
                dim.dim_value = self.sizes.symbols[dim.dim_param]
        return new


def _of_constants(model: Model) -> frozenset[Node]:
    """The nodes whose results depend on constants alone."""
    found: set[Node] = set()
    made: set[Tensor] = set()
    for _, node in model.walk():
        given = [tensor for tensor in node.inputs if tensor.name]
        if given and all(isinstance(tensor, Constant) or tensor in made for tensor in given):
            found.add(node)
            made.update(node.outputs)
    return frozenset(found)
