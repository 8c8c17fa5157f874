"""Let the float nodes that read one dequantized tensor share it, where ONNX Runtime runs them better so.

    DQ -> (Div -> Erf -> ...), Mul        DQ -> Sum -> (Div -> Erf -> ...), Mul
    DQ -> three float nodes or more       DQ -> Sum -> these nodes

Its EnsureUniqueDQForNodeUnit gives every reader of a DequantizeLinear (DQ) one of its own. A Gelu then reads two
tensors where its pattern wants one, and runs as five kernels; what many nodes read is dequantized many times. A Sum of
one input keeps the readers together. It copies the values, which takes about half as long as dequantizing them.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from onnxshot.graph import Constant, Model, Node, Tensor, edit
from onnxshot.passes.base import Change

_MANY = 3  # readers: with two, a copy saves nothing
_SCALED = ("Div", "Mul")


@dataclass(frozen=True, slots=True)
class OneDequantizedReader:
    """Put a Sum between a DQ and the float nodes that read it. Edits count the Sums.

    Attributes:
        floats: Labels of the nodes that compute in float.
    """

    floats: Set[str]
    name: str = "one_dequantized_reader"

    def run(self, model: Model) -> Change:
        """Insert the Sums in the top-level graph."""
        change = Change()
        for node in list(model.graph.nodes):
            if node.op != "DequantizeLinear" or isinstance(node.inputs[0], Constant):
                continue
            out = node.outputs[0]
            readers = [user for user in dict.fromkeys(edit.consumers(out)) if user.label in self.floats]
            gelu = len(readers) > 1 and any(_leads_to_erf(reader) for reader in readers)
            if (gelu or len(readers) >= _MANY) and not edit.is_output(model, out):
                _share(model, out, readers)
                change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


def _leads_to_erf(node: Node) -> bool:
    return node.op in _SCALED and any(user.op == "Erf" for user in edit.consumers(node.outputs[0]))


def _share(model: Model, tensor: Tensor, readers: list[Node]) -> None:
    """Let these nodes read the Sum of the tensor."""
    one = edit.add_node(model, "Sum", [tensor], base=tensor.name, suffix="once").outputs[0]
    for reader in readers:
        for slot, read in enumerate(reader.inputs):
            if read is tensor:
                reader.inputs[slot] = one
