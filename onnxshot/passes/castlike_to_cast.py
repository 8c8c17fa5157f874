"""Write CastLike as Cast, where the type that it asks for is known.

torch.export writes the bias of every Conv without one as CastLike(0, input): while it is computed from the input, the
Conv has no constant bias, and no BatchNormalization folds into it.
Source: ONNX Operators, CastLike-15, -19 and -21; Cast has the same versions, and the same attributes but for `to`.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from onnxshot.graph import Constant, Model
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change

_LIKE = 1  # the input whose type is asked for


@dataclass(frozen=True, slots=True)
class CastLikeToCast:
    """Turn a CastLike into a Cast to the type of its second input, which is then not read any more."""

    name: str = "castlike_to_cast"

    def run(self, model: Model) -> Change:
        """Rewrite; edits counts the nodes, skips name those whose type is not known."""
        change = Change()
        typed = {id(t) for t in (*model.graph.inputs, *(t for n in model.graph.nodes for t in n.outputs))}
        for _, node in list(model.walk()):
            if node.op != "CastLike" or node.domain not in STANDARD_DOMAINS:
                continue
            like = node.inputs[_LIKE]
            # Types are known by name, and a branch may use a name again.
            known = isinstance(like, Constant) or id(like) in typed
            kind = model.elem_type(like) if known else TensorProto.UNDEFINED
            if kind == TensorProto.UNDEFINED:
                change.skip(node, "the type of its second input is not known")
                continue
            node.op = "Cast"
            node.attrs["to"] = kind
            del node.inputs[_LIKE]
            change.edits += 1
        return change
