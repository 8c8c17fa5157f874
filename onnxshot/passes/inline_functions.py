"""Inline the model's local functions, so that passes see their operators: f(x) -> the nodes of f."""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.errors import ModelError
from onnxshot.graph import Model
from onnxshot.graph.load import first_line
from onnxshot.graph.local_functions import inlined
from onnxshot.graph.skip import Skip
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class InlineFunctions:
    """Replace each call of a local function by the function's nodes, and remove the functions.

    Edits count the functions removed. Skip reason: "it needs an opset ONNX cannot convert to", for a function whose
    opset differs from the model's.
    """

    name: str = "inline_functions"

    def run(self, model: Model) -> Change:
        """Inline the functions.

        Raises:
            ModelError: ONNX's inliner failed.
        """
        change = Change()
        functions = list(model.envelope.functions)
        if not functions:
            return change
        proto, lifted = model.skeleton()
        try:
            flat = inlined(proto, convert_version=True)
        except (RuntimeError, ValueError) as e:
            raise ModelError(f"the model's local functions could not be inlined: {first_line(e)}") from e
        model.rebuild(flat, lifted)
        left = {(f.domain, f.name, f.overload) for f in model.envelope.functions}
        for function in functions:
            if (function.domain, function.name, function.overload) in left:
                change.skips.append(Skip(function.name, "function", "it needs an opset ONNX cannot convert to"))
            else:
                change.edits += 1
        return change
