"""Convert float32 nodes to float16 or bfloat16: 16-bit constants, and a Cast where float32 begins or ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxshot.graph import Constant, Model, Node, Tensor, Variable, edit
from onnxshot.graph.weight_pieces import by_rows
from onnxshot.passes.base import Change
from onnxshot.planning.precision16_ops import ANY_TYPE, HalfType
from onnxshot.planning.precision16_plan import HalfPlan, half_slots


@dataclass(frozen=True, slots=True)
class ToPrecision16:
    """Let the nodes that the plan chose compute in 16 bits. All other nodes and the model's interface stay float32.

    Edits count the nodes. Nothing is skipped: the plan holds only nodes that can be converted.

    Attributes:
        plan: The labels of the nodes to convert, and the 16-bit type.
    """

    plan: HalfPlan
    name: str = "to_half"

    def run(self, model: Model) -> Change:
        """Convert the nodes. Tensors that become 16-bit keep their names, except outputs of the model."""
        labels = self.plan.chosen
        chosen = dict.fromkeys(n for n in model.graph.nodes if n.label in labels)
        if not chosen:
            return Change()
        # Before any type changes: half_slots looks up which inputs are float32.
        slots = {node: half_slots(model, node) for node in chosen}
        writer = _Writer(model, self.plan.kind)
        made = [
            (node, i) for node in chosen for i, t in enumerate(node.outputs) if model.elem_type(t) == TensorProto.FLOAT
        ]
        halves = {node.outputs[i] for node, i in made}
        for node, inputs in slots.items():
            for slot in inputs:
                if node.inputs[slot] not in halves:
                    node.inputs[slot] = writer.narrowed(node.inputs[slot])
            if node.op == "Cast":
                node.attrs["to"] = self.plan.kind.elem_type
        for node, i in made:
            writer.put_out(node, i, slots)
        edit.toposort(model)
        _drop_casts(model)
        edit.remove_unused(model)
        edit.toposort(model)
        return Change(len(chosen))


@dataclass(slots=True)
class _Writer:
    """Makes 16-bit versions of tensors, each once."""

    model: Model
    kind: HalfType
    made: dict[Tensor, Tensor] = field(default_factory=dict)

    def narrowed(self, tensor: Tensor) -> Tensor:
        """A float32 tensor in 16 bits: a constant, or the output of a Cast."""
        if tensor not in self.made:
            self.made[tensor] = self._constant(tensor) if isinstance(tensor, Constant) else self._cast(tensor)
        return self.made[tensor]

    def put_out(self, node: Node, index: int, slots: dict[Node, list[int]]) -> None:
        """Make an output of the node 16-bit, with a Cast for the nodes that read it as float32."""
        model, tensor = self.model, node.outputs[index]
        others = [
            (user, i)
            for user in edit.consumers(tensor)
            for i, t in enumerate(user.inputs)
            if t is tensor and user.op not in ANY_TYPE and i not in slots.get(user, ())
        ]
        if edit.is_output(model, tensor):  # an output of the model keeps its name and type
            half = self._half_variable(tensor)
            node.outputs[index] = half
            for user in edit.consumers(tensor):
                for i, t in enumerate(user.inputs):
                    if t is tensor and (user, i) not in others:
                        user.inputs[i] = half
            edit.add_node(
                model, "Cast", [half], base=tensor.name, suffix="to_float", outputs=[tensor],
                attrs={"to": TensorProto.FLOAT},
            )  # fmt: skip
            return
        if others:
            cast = edit.add_node(
                model, "Cast", [tensor], base=tensor.name, suffix="to_float", attrs={"to": TensorProto.FLOAT}
            )
            self._set_type(cast.outputs[0], tensor, TensorProto.FLOAT)
            for user, i in others:
                user.inputs[i] = cast.outputs[0]
        self._set_type(tensor, tensor, self.kind.elem_type)

    def _cast(self, tensor: Tensor) -> Tensor:
        """Add a Cast of a tensor to 16 bits; its output."""
        half = self._half_variable(tensor)
        edit.add_node(
            self.model, "Cast", [tensor], base=tensor.name, suffix=f"to_{self.kind.name}", outputs=[half],
            attrs={"to": self.kind.elem_type},
        )  # fmt: skip
        return half

    def _constant(self, constant: Constant) -> Tensor:
        """A 16-bit copy of a constant, computed each time it is read."""
        source, dtype = Constant(constant.name, constant._values), self.kind.storage

        def narrow(values: NDArray[Any]) -> NDArray[Any]:
            if self.kind.largest is not None:  # only limits of a Clip exceed float16's range: the plan checked the rest
                values = np.clip(values, -_FP16_MAX, _FP16_MAX)
            return np.asarray(values.astype(dtype))

        values = by_rows(tuple(constant.shape), dtype, [source], narrow)
        return edit.add_constant(self.model, constant.name, self.kind.name, values)

    def _half_variable(self, tensor: Tensor) -> Tensor:
        """A new 16-bit tensor of the same shape."""
        half = Variable(self.model.fresh(tensor.name, self.kind.name))
        self._set_type(half, tensor, self.kind.elem_type)
        return half

    def _set_type(self, tensor: Tensor, like: Tensor, elem_type: int) -> None:
        """Give a tensor a value info with this type and the shape of another tensor."""
        shape = self.model.shape(like)
        info = helper.make_tensor_value_info(tensor.name, elem_type, None if shape is None else list(shape))
        self.model.graph.value_infos[tensor.name] = info


_FP16_MAX = float(np.finfo(np.float16).max)


def _drop_casts(model: Model) -> None:
    """Remove every Cast to the type of its input."""
    for node in [n for n in model.graph.nodes if n.op == "Cast"]:
        if model.elem_type(node.inputs[0]) == int(node.attrs["to"]):
            edit.bypass(model, node, node.inputs[0])
