"""Move Q/DQ pairs to where the target needs them: Conv, Relu, Q -> Conv, Q, DQ, Relu, Q, or the reverse.

Q(f(DQ(Q(x)))) = Q(f(x)) if both Q have the same scale and zero point and f only moves or clips values. Rounding and
clipping are monotone, and rounding a rounded value changes nothing. So results do not change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshot.graph import Model, Node, Tensor, edit
from onnxshot.graph.ops import moves_exactly
from onnxshot.passes.base import Change
from onnxshot.passes.insert_qdq import insert_pair
from onnxshot.passes.to_qoperator import quantizer_after
from onnxshot.targets.base import Target


@dataclass(frozen=True, slots=True)
class MoveQdq:
    """Add a Q/DQ pair after each product if the target fuses ops with the Q after them, else remove such pairs.

    A product is one of `Target.static` whose two factors are dequantized.

    Edits count the added or removed pairs. Skipped: products that the target would run in float without a pair that
    cannot be added, and products with a pair that the target does not use and that cannot be removed.

    Attributes:
        target: the rules of the runtime.
    """

    target: Target
    name: str = "move_qdq"

    def run(self, model: Model) -> Change:
        """Add or remove the pairs."""
        change = Change()
        for node in list(model.graph.nodes):
            if self.target.quantizes_outputs and self._is_product(node):
                self._add_pair(model, node, change)
            elif not self.target.quantizes_outputs and node.op == "QuantizeLinear":
                self._remove_pairs(model, node, change)
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change

    def _is_product(self, node: Node) -> bool:
        makers = [edit.producer(tensor) for tensor in node.inputs[:2]]
        return node.op in self.target.static and all(m is not None and m.op == "DequantizeLinear" for m in makers)

    def _add_pair(self, model: Model, node: Node, change: Change) -> None:
        """Add a pair after a product, if a later Q makes it exact."""
        out = node.outputs[0]
        if quantizer_after(model, node) is not None:
            return
        q = _requantizer(model, out)
        if q is not None:
            insert_pair(model, out, (q.inputs[1], q.inputs[2]), None)
            change.edits += 1
        elif node.op not in self.target.gives_float:
            reason = "without a QuantizeLinear after it, and adding one would change the results"
            change.skip(node, f"{self.target.name} runs it in float {reason}")

    def _remove_pairs(self, model: Model, q: Node, change: Change) -> None:
        """Remove the pairs of a Q, if a later equal Q makes them redundant."""
        pairs = edit.consumers(q.outputs[0])
        if not pairs or any(n.op != "DequantizeLinear" or _key(n) is None or _key(n) != _key(q) for n in pairs):
            return
        maker, wanted = edit.producer(q.inputs[0]), self.target.static | self.target.followers
        for dq in pairs:
            users = edit.consumers(dq.outputs[0])
            again = _requantizer(model, dq.outputs[0], stop=wanted)
            if again is not None and _key(again) == _key(q):
                change.edits += edit.bypass(model, dq, q.inputs[0])
            elif maker is not None and self._is_product(maker) and not any(self._reads(user) for user in users):
                reason = "its readers compute in float, and removing it would change the results"
                change.skip(maker, f"{self.target.name} does not use the Q/DQ pair after it, which stays: {reason}")

    def _reads(self, user: Node) -> bool:
        """Whether the target uses a Q/DQ pair before the op."""
        residual = self.target.quantizes_residuals and user.op == "Add"
        return user.op in self.target.static or user.op in self.target.followers or residual


def _requantizer(model: Model, tensor: Tensor, stop: frozenset[str] = frozenset()) -> Node | None:
    """The Q that all readers of the tensor share, directly or after ops that move or clip values; None without one.

    Args:
        model: the model.
        tensor: the tensor.
        stop: operators that end the search.
    """
    found: Node | None = None
    stack = [tensor]
    while stack:
        read = stack.pop()
        users = edit.consumers(read)
        if not users or edit.is_output(model, read):
            return None
        for user in users:
            if user.op == "QuantizeLinear":
                if _key(user) is None or (found is not None and _key(user) != _key(found)):
                    return None
                found = user
            elif user.op in stop or not _passes_on(user, read):
                return None
            else:
                stack += [out for out in user.outputs if out.name] if user.op == "Split" else user.outputs[:1]
    return found


def _passes_on(node: Node, tensor: Tensor) -> bool:
    """Whether rounding the input of the node gives the same as rounding its output."""
    if node.op == "Clip":
        return bool(np.isfinite(edit.clip_limits(node)).any()) and not np.isnan(edit.clip_limits(node)).any()
    return node.op in ("Relu", "Concat") or (moves_exactly(node) and node.inputs[0] is tensor)


def _key(node: Node) -> tuple[bytes, str, bytes] | None:
    """Key that is equal for Q and DQ with the same per-tensor scale and zero point; None for other forms."""
    scale, zero = edit.constant_input(node, 1), edit.constant_input(node, 2)
    if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
        return None
    return scale.tobytes(), zero.dtype.name, zero.tobytes()
