"""Fix dimensions of inputs at sizes, everywhere they stand, and infer all shapes anew."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ValueInfoProto

from onnxshot.graph import Constant, Model, Node, Tensor, shape_inference
from onnxshot.graph.fixed_shapes import Frozen
from onnxshot.passes.base import Change
from onnxshot.passes.fold_constants import FoldConstants
from onnxshot.passes.remove_unused import RemoveUnused


@dataclass(frozen=True, slots=True)
class FreezeShapes:
    """Set the dimensions of inputs and outputs, and fold what follows from them.

    What was constant before stays as it is: it may stand for a weight that is stored in fewer bits.
    Shapes that the file states of tensors in between are dropped: exporters leave the example's sizes there.
    """

    sizes: Frozen
    name: str = "freeze_shapes"

    def run(self, model: Model) -> Change:
        """Freeze; edits counts the inputs."""
        change = Change(len(self.sizes.inputs))
        if not self.sizes:
            return change
        left = _of_constants(model)
        for graph in model.graphs():
            top = graph is model.graph
            kept = {t.name for t in (*graph.inputs, *graph.outputs)} | graph.overridable.keys()
            graph.value_infos = {
                name: self._frozen(info, top=top, stated=name in kept or not top)
                for name, info in graph.value_infos.items()
            }
            graph.output_infos = [self._frozen(info, top=top, stated=True) for info in graph.output_infos]
        shape_inference.infer(model)
        FoldConstants(left=left).run(model)
        RemoveUnused().run(model)
        return change

    def _frozen(self, info: ValueInfoProto, *, top: bool, stated: bool) -> ValueInfoProto:
        """The type with frozen dimensions, and without its shape where that is not stated but followed."""
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
    """The nodes that read constants alone, or what such nodes make."""
    found: set[Node] = set()
    made: set[Tensor] = set()
    for _, node in model.walk():
        given = [tensor for tensor in node.inputs if tensor.name]
        if given and all(isinstance(tensor, Constant) or tensor in made for tensor in given):
            found.add(node)
            made.update(node.outputs)
    return frozenset(found)
