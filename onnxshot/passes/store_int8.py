"""Store weights of float nodes as int8: float weight -> op becomes int8 -> Cast -> Mul(scale) -> op.

Runtimes fold Cast and Mul when they load the file. A DequantizeLinear of a constant would run at each inference, as
ONNX Runtime does not fold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Tensor, edit, weights
from onnxshot.maths.affine import INT8
from onnxshot.maths.multi_axis_scales import scales_along
from onnxshot.maths.quant_scheme import NotFinite
from onnxshot.passes.base import Change
from onnxshot.planning.plan import StoredWeight

_LAZY_BYTES = 1 << 20  # larger weights are quantized when the file is written, one at a time


@dataclass(frozen=True, slots=True)
class StoreInt8:
    """Store the given weights as int8, in subgraphs too. A weight that several nodes read is stored once.

    Edits count the inputs that read such a weight. Skipped: weights that hold NaN or infinity.

    Attributes:
        chosen: node label -> its weights to store.
        method: "minmax" or "mse": how the clip range of a weight is chosen.
    """

    chosen: Mapping[str, Sequence[StoredWeight]]
    method: str = "minmax"
    name: str = "store_int8"
    _made: dict[tuple[Constant, tuple[int, ...]], Tensor] = field(default_factory=dict)

    def run(self, model: Model) -> Change:
        """Store the weights."""
        change = Change()
        for _, node in list(model.walk()):
            for one in self.chosen.get(node.label, ()):
                weight = node.inputs[one.slot]
                if not isinstance(weight, Constant):  # another pass stores it in a smaller form
                    continue
                try:
                    node.inputs[one.slot] = self._stored(model, weight, one.axes)
                except NotFinite:
                    change.skip(node, f"its weight {weight.name!r} holds NaN or infinity: it stays float32")
                else:
                    change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change

    def _stored(self, model: Model, weight: Constant, axes: tuple[int, ...]) -> Tensor:
        """The float tensor that replaces the weight. axes: axes along which each index has a scale of its own."""
        if (weight, axes) in self._made:
            return self._made[weight, axes]
        found = scales_along(np.asarray(weights.read(weight)), axes, INT8, method=self.method)

        def compute() -> NDArray[Any]:
            return found.quantize(np.asarray(weights.read(weight)))

        large = weights.size_bytes(weight) > _LAZY_BYTES
        values = weights.ComputedValues(found.shape, np.dtype(np.int8), compute) if large else compute()
        given = [edit.add_constant(model, weight.name, "stored", values)]
        given.append(edit.add_constant(model, weight.name, "scale", found.scale.astype(weight._values.dtype)))
        attrs = {"to": weights.elem_type(weight)}
        cast = edit.add_node(model, "Cast", given[:1], base=weight.name, suffix="as_float", attrs=attrs)
        real = edit.add_node(model, "Mul", [cast.outputs[0], given[1]], base=weight.name, suffix="restored")
        self._made[weight, axes] = real.outputs[0]
        return real.outputs[0]
