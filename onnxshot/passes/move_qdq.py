"""Put Q/DQ pairs behind ops, or take them away there, as the target wants them, where the answers stay the same.

Q(f(DQ(Q(x)))) = Q(f(x)) where both Q have the same scale and zero point, and f only moves values or cuts them off:
rounding, moving and cutting off are monotone, and what was rounded once is not rounded again.
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
    """Pairs behind every product where the target fuses ops with the Q behind them, none that it has no use for else.

    A product is one of the target's static ops of which both factors are dequantized.
    """

    target: Target
    name: str = "move_qdq"

    def run(self, model: Model) -> Change:
        """Move; edits counts the pairs that were put in or taken out, skips name products that the target runs slower.

        That is in float without a Q behind them, or with one that nothing has use for.
        """
        change = Change()
        for node in list(model.graph.nodes):
            if self.target.quantizes_outputs and self._is_product(node):
                self._put_behind(model, node, change)
            elif not self.target.quantizes_outputs and node.op == "QuantizeLinear":
                self._take_away(model, node, change)
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change

    def _is_product(self, node: Node) -> bool:
        makers = [edit.producer(tensor) for tensor in node.inputs[:2]]
        return node.op in self.target.static and all(m is not None and m.op == "DequantizeLinear" for m in makers)

    def _put_behind(self, model: Model, node: Node, change: Change) -> None:
        out = node.outputs[0]
        if quantizer_after(model, node) is not None:
            return
        q = _requantizer(model, out)
        if q is not None:
            insert_pair(model, out, (q.inputs[1], q.inputs[2]), None)
            change.edits += 1
        elif node.op not in self.target.gives_float:
            reason = "without a QuantizeLinear behind it, and one there would change the answers"
            change.skip(node, f"{self.target.name} runs it in float {reason}")

    def _take_away(self, model: Model, q: Node, change: Change) -> None:
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
                reason = "what reads it computes in float, and without it the answers would change"
                change.skip(maker, f"the pair behind it has no use on {self.target.name} and stays: {reason}")

    def _reads(self, user: Node) -> bool:
        """Whether the target has use for a pair in front of the op."""
        residual = self.target.quantizes_residuals and user.op == "Add"
        return user.op in self.target.static or user.op in self.target.followers or residual


def _requantizer(model: Model, tensor: Tensor, stop: frozenset[str] = frozenset()) -> Node | None:
    """A Q like all that read the tensor, directly or behind ops that move or cut off values; None where others do.

    stop: ops that are not looked behind.
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
    """True where rounding this input before the node is the same as rounding what comes out of it."""
    if node.op == "Clip":
        return bool(np.isfinite(edit.clip_limits(node)).any()) and not np.isnan(edit.clip_limits(node)).any()
    return node.op in ("Relu", "Concat") or (moves_exactly(node) and node.inputs[0] is tensor)


def _key(node: Node) -> tuple[bytes, str, bytes] | None:
    """What two Q or DQ with the same scale and zero point, one for all values, have in common; None for others."""
    scale, zero = edit.constant_input(node, 1), edit.constant_input(node, 2)
    if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
        return None
    return scale.tobytes(), zero.dtype.name, zero.tobytes()
