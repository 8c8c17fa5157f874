"""The integers, scales and zero points of a weight in blocks, in the layout of com.microsoft.MatMulNBits.

They are computed when the file is written, a slab of the weight at a time: no more than one weight is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxshot.errors import ModelError
from onnxshot.graph import Constant, weights
from onnxshot.graph.weight_pieces import row_blocks
from onnxshot.maths.affine import MIN_SCALE, extremes, quantize, weight_params
from onnxshot.maths.block_scales import fit_blocks
from onnxshot.maths.int4_packing import paired
from onnxshot.maths.quant_scheme import NotFinite, PerBlock, QuantParams, QuantScheme
from onnxshot.planning.block_schemes import scale_type
from onnxshot.planning.plan import RoundedBlocks

LAZY_BYTES = 1 << 20
"""Larger weights are quantized one at a time, when the file is written."""

_Arrays = tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A weight of N outputs and K inputs in B blocks of `size` inputs.

    Attributes:
        values: integers, uint8 [N, B, bytes of a block].
        scales: [N, B], in the float type that the weight came in.
        zeros: zero points, uint8 [N, bytes of B zero points].
        size: inputs of a block; the last one is filled up with zero points.
        inputs: K.
    """

    values: NDArray[np.uint8] | weights.ComputedValues
    scales: NDArray[Any] | weights.ComputedValues
    zeros: NDArray[np.uint8] | weights.ComputedValues
    size: int
    inputs: int


def blocks_of(
    weight: Constant, *, turned: bool, scheme: QuantScheme, method: str, given: RoundedBlocks | None = None,
) -> Blocks:  # fmt: skip
    """Quantize a weight in blocks of its inputs.

    Args:
        weight: floats [.., N, K], or [.., K, N] if `turned`; leading axes count as further outputs.
        turned: whether the inputs are the last axis but one.
        scheme: unsigned type of 4 or 8 bits, with blocks along axis 1 of [N, K].
        method: "minmax" for scales that cover every value; else they are fitted to the least error.
        given: integers, scales and zero points that were chosen with data.

    Raises:
        ModelError: the weight holds NaN or infinity; raised when the values are read, if it is large.
    """
    assert isinstance(scheme.granularity, PerBlock)
    size, bits = scheme.granularity.size, scheme.dtype.bits
    lead, (outputs, inputs) = weight.shape[:-2], weight.shape[:-3:-1] if turned else weight.shape[-2:]
    outputs *= int(np.prod(lead, dtype=np.int64))
    count = -(-inputs // size)
    scales = np.dtype(helper.tensor_dtype_to_np_dtype(scale_type(weight)))
    work = Work(weight, turned, scheme, method, scales, given)
    shapes = ((outputs, count, size * bits // 8), (outputs, count), (outputs, -(-count * bits // 8)))
    types = (np.dtype(np.uint8), scales, np.dtype(np.uint8))
    if weights.size_bytes(weight) <= LAZY_BYTES:
        return Blocks(*work.arrays(), size, inputs)
    values, by, zeros = (
        weights.ComputedValues(shape, dtype, partial(work.take, i))
        for i, (shape, dtype) in enumerate(zip(shapes, types, strict=True))
    )
    return Blocks(values, by, zeros, size, inputs)


def packed(codes: NDArray[np.uint8], scale: NDArray[Any], zero: NDArray[Any], size: int, bits: int) -> _Arrays:
    """Integers [N, K], scales and zero points [N, B] in the layout of MatMulNBits."""
    zeros = np.asarray(zero).astype(np.uint8)
    outputs, inputs = codes.shape
    missing = -inputs % size
    if missing:
        codes = np.concatenate([codes, np.repeat(zeros[:, -1:], missing, axis=1)], axis=1)
    values = codes.reshape(outputs, -1, size)
    return (paired(values), scale, paired(zeros)) if bits == 4 else (values, scale, zeros)


@dataclass(slots=True)
class Work:
    """Computes the three arrays together. They are held until each was read, as a file is written array by array."""

    weight: Constant
    turned: bool
    scheme: QuantScheme
    method: str
    scale_type: np.dtype[Any]
    given: RoundedBlocks | None
    signed: bool = True  # whether scales may be negative; the runtimes that read this layout multiply by them
    _held: dict[int, NDArray[Any]] = field(default_factory=dict)
    _lock: Any = field(default_factory=Lock)

    def take(self, number: int) -> NDArray[Any]:
        """One of the arrays; it is not held any longer."""
        with self._lock:
            if number not in self._held:
                self._held = dict(enumerate(self.arrays()))
                if self.scheme.symmetric:
                    del self._held[2]  # zero points that are all the same are not written
            return self._held.pop(number)

    def arrays(self) -> _Arrays:
        """Integers, scales and zero points, packed."""
        codes, params = self.codes()
        size = params.scheme.granularity.size  # type: ignore[union-attr]
        return packed(codes, params.scale.astype(self.scale_type), params.zero_point, size, self.scheme.dtype.bits)

    def codes(self) -> tuple[NDArray[np.uint8], QuantParams]:
        """Integers [N, K], with scales and zero points [N, B]."""
        try:
            return self.given.read() if self.given is not None else self._fitted()
        except NotFinite as e:
            hint = "export the model again, or leave its op out with [[exclude=OP]]"
            raise ModelError(f"weight {self.weight.name!r} holds NaN or infinity", hint) from e

    def _fitted(self) -> tuple[NDArray[np.uint8], QuantParams]:
        """Integers [N, K] with scales and zero points [N, B], slab by slab."""
        parts = []
        for slab in self._slabs():
            if self.method == "minmax":
                params = _covering(slab, self.scheme) if self.signed else weight_params(slab, self.scheme)
            else:
                params = fit_blocks(slab, self.scheme, scale_type=self.scale_type, signed_scales=self.signed)
            parts.append((quantize(slab, params).astype(np.uint8), params))
        axis = 1 if self.turned and len(self.weight.shape) == 2 else 0
        codes = np.concatenate([part for part, _ in parts], axis=axis)
        scale = np.concatenate([params.scale for _, params in parts], axis=axis)
        zeros = np.concatenate([params.zero_point for _, params in parts], axis=axis)
        return codes, QuantParams(self.scheme, scale, zeros)

    def _slabs(self) -> Iterator[NDArray[Any]]:
        """The weight as [n, K] or, of one matrix that is stored [K, N], as [N, k] with whole blocks."""
        size = self.scheme.granularity.size  # type: ignore[union-attr]
        matrix = len(self.weight.shape) == 2
        for _, block in row_blocks(self.weight, size if self.turned and matrix else 1):
            slab = np.asarray(block, np.float32)
            if self.turned:
                slab = slab.T if matrix else np.swapaxes(slab, -1, -2)
            yield np.ascontiguousarray(slab.reshape(-1, slab.shape[-1]))


def _covering(slab: NDArray[Any], scheme: QuantScheme) -> QuantParams:
    """Scales that cover every value. The larger side of a symmetric block gets the one integer more, -8 or -128."""
    params = weight_params(slab, scheme)
    if not scheme.symmetric:
        return params
    low, high = extremes(slab, scheme.granularity)
    wanted = np.where(high > -low, -high, -low) / scheme.midpoint
    scale = np.where(np.abs(wanted) > MIN_SCALE, wanted, params.scale).astype(np.float32)
    return QuantParams(scheme, scale, params.zero_point)
