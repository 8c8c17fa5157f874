"""Replace CastLike by Cast: CastLike(x, like) -> Cast(x) to the type of `like`, if that is known.

torch.export writes the bias of a Conv without bias as CastLike(0, input). As it depends on the input, the Conv has no
constant bias, and no BatchNormalization can be folded into it.
Source: ONNX Operators, CastLike-15, -19 and -21; Cast has the same versions, and the same attributes but for `to`.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from onnxshot.graph import Constant, Model
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change

_LIKE = 1  # index of the input whose type is the target type


@dataclass(frozen=True, slots=True)
class CastLikeToCast:
    """Replace CastLike by Cast, in subgraphs too. The second input is no longer read.

    Edits count the nodes. Skipped: a CastLike whose second input has an unknown type.
    """

    name: str = "castlike_to_cast"

    def run(self, model: Model) -> Change:
        """Replace the nodes."""
        change = Change()
        typed = {id(t) for t in (*model.graph.inputs, *(t for n in model.graph.nodes for t in n.outputs))}
        for _, node in list(model.walk()):
            if node.op != "CastLike" or node.domain not in STANDARD_DOMAINS:
                continue
            like = node.inputs[_LIKE]
            # Types are recorded by name, and a subgraph may reuse a name.
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
