"""Make the constants of quantized weights, once per weight. Passes that quantize weights share this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import ModelError
from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.weight_pieces import reads_rows, row_blocks
from onnxshot.graph.weight_pieces import rows as weight_rows
from onnxshot.maths.affine import (
    PerBlock,
    PerChannel,
    PerTensor,
    QuantParams,
    QuantScheme,
    QuantType,
    quantize,
)
from onnxshot.maths.bias_quantization import bias_safe_scale
from onnxshot.maths.multi_axis_scales import scales_along
from onnxshot.maths.quant_scheme import NotFinite
from onnxshot.maths.weight_blocks import params_of_blocks, params_of_rows, rows_of_scale

_LAZY_BYTES = 1 << 20  # larger weights are quantized one at a time, when the file is written


@dataclass(slots=True)
class QuantizedWeights:
    """Makes the constants of quantized weights. A weight that several nodes share is stored once.

    Attributes:
        model: the model that the constants are added to.
        kept: weight name -> scale and zero point from a quantized input model.
    """

    model: Model
    kept: Mapping[str, QuantParams] = field(default_factory=dict)
    _made: dict[tuple[Constant, QuantScheme, bytes], tuple[Constant, Constant, Constant]] = field(default_factory=dict)
    _moved: dict[tuple[Constant, tuple[int, ...]], Constant] = field(default_factory=dict)
    _sources: dict[Constant, tuple[Constant, bool]] = field(default_factory=dict)  # of weights that were moved
    _along: dict[tuple[Constant, tuple[int, ...], str, str], tuple[Constant, NDArray[np.float32]]] = field(
        default_factory=dict
    )
    _transposed: dict[Constant, QuantParams] = field(default_factory=dict)  # of `kept`, for weights that were moved

    def params(self, weight: Constant, scheme: QuantScheme, method: str) -> QuantParams:
        """Compute scale and zero point of a weight.

        Args:
            weight: the float weight.
            scheme: integer type and granularity (per tensor, per channel or per block).
            method: "minmax" or "mse", as in `maths.affine.weight_params`. Blocks always use "mse": with few integers,
                the clip range matters.

        Raises:
            ModelError: the weight holds NaN or infinity.
        """
        kept = self.kept.get(weight.name, self._transposed.get(weight))
        if kept is not None and kept.scheme.granularity == scheme.granularity:
            return kept
        if isinstance(scheme.granularity, PerBlock):
            method = "mse"
        rank = len(weight.shape)
        with _finite(weight):
            blocks = partial(row_blocks, weight, rows_of_scale(scheme, rank))
            return params_of_blocks(blocks, rank, scheme, method=method)

    def constants(self, weight: Constant, params: QuantParams) -> tuple[Constant, Constant, Constant]:
        """(integers, scale in the float type of the weight, zero point) as new constants."""
        key = (weight, params.scheme, params.scale.tobytes())
        if key in self._made:
            return self._made[key]
        values: NDArray[Any] | weights.ComputedValues
        if weights.size_bytes(weight) > _LAZY_BYTES:
            values = quantized_rows(weight, params)
        else:
            values = quantize(np.asarray(weights.read(weight)), params)
        float_type = weight._values.dtype
        made = (
            edit.add_constant(self.model, weight.name, "quantized", values),
            edit.add_constant(self.model, weight.name, "scale", params.scale.astype(float_type)),
            edit.add_constant(self.model, weight.name, "zero_point", params.zero_point),
        )
        made[0].source, made[0].turned = self._sources.get(weight, (weight, False))
        self._made[key] = made
        return made

    def along(
        self, weight: Constant, axes: tuple[int, ...], dtype: QuantType, method: str
    ) -> tuple[Constant, NDArray[np.float32]]:
        """Quantize a weight symmetrically with one scale per index of several axes.

        Args:
            weight: the float weight.
            axes: axes along which each index has a scale of its own.
            dtype: signed integer type.
            method: "minmax" or "mse".

        Returns:
            (integers, scale, which broadcasts to the weight).

        Raises:
            ModelError: the weight holds NaN or infinity.
        """
        key = (weight, axes, dtype.name, method)
        if key not in self._along:
            with _finite(weight):
                found = scales_along(np.asarray(weights.read(weight)), axes, dtype, method=method)

            def compute() -> NDArray[Any]:
                return found.quantize(np.asarray(weights.read(weight)))

            values: NDArray[Any] | weights.ComputedValues
            if weights.size_bytes(weight) > _LAZY_BYTES:
                values = weights.ComputedValues(found.shape, dtype.storage, compute)
            else:
                values = compute()
            self._along[key] = (edit.add_constant(self.model, weight.name, "quantized", values), found.scale)
        return self._along[key]

    def transposed(self, weight: Constant, perm: tuple[int, ...]) -> Constant:
        """The weight with permuted axes. The same arguments give the same constant."""
        if (weight, perm) not in self._moved:

            def compute() -> NDArray[Any]:
                return np.ascontiguousarray(np.asarray(weights.read(weight)).transpose(perm))

            shape = tuple(weight.shape[axis] for axis in perm)
            values = weights.ComputedValues(shape, weight._values.dtype, compute)
            moved = edit.add_constant(self.model, weight.name, "transposed", values)
            self._moved[weight, perm] = moved
            self._sources[moved] = (weight, perm == (1, 0))
            kept = self.kept.get(weight.name)
            if kept is not None:
                self._transposed[moved] = _transposed(kept, perm)
        return self._moved[weight, perm]

    def dequantized(self, node: Node, slot: int, params: QuantParams, *, suffix: str = "dequantized") -> Tensor:
        """Insert int8 weight -> DequantizeLinear before the node. Returns the tensor that the node reads now."""
        weight = node.inputs[slot]
        granularity, (values, scale, zero_point) = params.scheme.granularity, self.constants(weight, params)
        inputs, attrs = [values, scale, zero_point], {}
        if not isinstance(granularity, PerTensor):
            attrs["axis"] = granularity.axis
        if isinstance(granularity, PerBlock):
            attrs["block_size"] = granularity.size
            inputs = [values, scale]  # no zero points: they are 0, and would add an eighth of the size of the scales
        dq = edit.add_node(self.model, "DequantizeLinear", inputs, base=weight.name, suffix=suffix, attrs=attrs)
        node.inputs[slot] = dq.outputs[0]
        return dq.outputs[0]


def quantized_rows(weight: Constant, params: QuantParams) -> weights.ComputedValues:
    """The integers of a weight, computed when they are read, a block of rows at a time where its rows can be read."""
    shape, rank = tuple(weight.shape), len(weight.shape)
    step = rows_of_scale(params.scheme, rank)

    def rows(start: int, stop: int) -> NDArray[Any]:
        first, last = start // step * step, min(-(-stop // step) * step, shape[0])
        whole = quantize(weight_rows(weight, first, last), params_of_rows(params, rank, first, last))
        return whole[start - first : stop - first]

    def compute() -> NDArray[Any]:
        integers = np.empty(shape, params.scheme.dtype.storage)
        for start, block in row_blocks(weight, step):
            stop = start + len(block) if rank else 0
            integers[start:stop] = quantize(block, params_of_rows(params, rank, start, stop))
        return integers

    return weights.ComputedValues(shape, params.scheme.dtype.storage, compute, rows if reads_rows(weight) else None)


@contextmanager
def _finite(weight: Constant) -> Iterator[None]:
    """Turn NotFinite into a ModelError that names the weight."""
    try:
        yield
    except NotFinite as e:
        hint = "export the model again, or leave its op out with [[exclude=OP]]"
        raise ModelError(f"weight {weight.name!r} holds NaN or infinity", hint) from e


def _transposed(params: QuantParams, perm: tuple[int, ...]) -> QuantParams:
    granularity = params.scheme.granularity
    if not isinstance(granularity, PerChannel):
        return params
    scheme = replace(params.scheme, granularity=PerChannel(perm.index(granularity.axis)))
    return QuantParams(scheme, params.scale, params.zero_point)


def with_room_for_bias(params: QuantParams, x_scale: NDArray[Any], bias: NDArray[Any] | None) -> QuantParams:
    """Raise the scale of a weight where the bias would not fit int32 at the scale x_scale * w_scale.

    Args:
        params: scale and zero point of the weight.
        x_scale: scale of the input, [].
        bias: the float bias, [N] or broadcastable to [M, N]: the largest absolute value of each column must fit. None
            changes nothing.
    """
    if bias is None:
        return params
    if bias.ndim > 1:
        bias = np.abs(bias).max(axis=tuple(range(bias.ndim - 1)))
    return QuantParams(params.scheme, bias_safe_scale(params.scale, x_scale, bias), params.zero_point)
