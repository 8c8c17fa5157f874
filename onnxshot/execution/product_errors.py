"""Measure what products lose in int8 and in blocks, each alone, on the inputs that samples bring to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_runtime import Runner

_ROWS = 128  # of the input of a product that are multiplied
_COLUMNS = 256  # outputs of a product that are computed
_SILENT_DB = 200.0  # where there is no error


@dataclass(frozen=True, slots=True)
class Multiplied:
    """A product x W.

    Attributes:
        label: of the node.
        input: name of x.
        weight: W, of rank 2.
        turned: whether W is stored [outputs, inputs].
        bits: of its blocks.
        block: inputs of a block.
        symmetric: whether blocks have no zero points.
    """

    label: str
    input: str
    weight: Constant
    turned: bool
    bits: int
    block: int
    symmetric: bool


def product_errors(
    model: Model, products: Sequence[Multiplied], feeds: Iterable[Mapping[str, NDArray[Any]]], threads: int
) -> dict[str, tuple[float, float]]:
    """SQNR in dB of each product's output, by label: in int8 with scales at run time, and in blocks.

    It is that of the worst sample. A part of the rows and of the outputs is computed.
    """
    wanted: dict[str, list[Multiplied]] = {}
    for product in products:
        wanted.setdefault(product.input, []).append(product)
    runner = Runner(LeanModel.of(model).with_outputs(tuple(wanted)), threads=threads, outputs=tuple(wanted))
    found: dict[str, tuple[float, float]] = {}
    parts = {product.label: _part(product) for product in products}

    def see(_: int, values: Mapping[str, NDArray[Any]]) -> None:
        for name, value in values.items():
            x = np.asarray(value, np.float32).reshape(-1, value.shape[-1])
            rounded = _int8_input(x)
            rows = np.linspace(0, len(x) - 1, min(len(x), _ROWS)).astype(int)
            for product in wanted.get(name, ()):
                w, as_int8, in_blocks = parts[product.label]
                exact = x[rows] @ w
                now = _db(exact, rounded[rows] @ as_int8), _db(exact, x[rows] @ in_blocks)
                before = found.get(product.label, now)
                found[product.label] = (min(now[0], before[0]), min(now[1], before[1]))

    runner.visit(feeds, see, 1)
    return found


def _part(product: Multiplied) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Some columns [K, n] of a weight: as they are, rounded to int8 per output, and rounded in blocks."""
    stored = product.weight.values if not product.turned else product.weight.values.T
    outputs = np.linspace(0, stored.shape[1] - 1, min(stored.shape[1], _COLUMNS)).astype(int)
    w = np.ascontiguousarray(stored[:, outputs], np.float32)
    scale = np.maximum(np.abs(w).max(0), 1e-30) / 127
    return w, np.rint(w / scale) * scale, _in_blocks(w, product)


def _in_blocks(w: NDArray[np.float32], product: Multiplied) -> NDArray[np.float32]:
    rows, columns = w.shape
    count = -(-rows // product.block)
    padded = np.zeros((count * product.block, columns), np.float32)
    padded[:rows] = w
    split = padded.reshape(count, product.block, columns)
    top = 2**product.bits - 1
    if product.symmetric:
        scale = np.maximum(np.abs(split).max(1, keepdims=True), 1e-30) / (top // 2)
        made = np.rint(split / scale) * scale
    else:
        low, high = np.minimum(split.min(1, keepdims=True), 0), np.maximum(split.max(1, keepdims=True), 0)
        scale = np.maximum(high - low, 1e-30) / top
        zero = np.rint(-low / scale)
        made = (np.clip(np.rint(split / scale) + zero, 0, top) - zero) * scale
    return np.asarray(made.reshape(-1, columns)[:rows], np.float32)


def _int8_input(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """x as DynamicQuantizeLinear and its product see it: one scale for the whole tensor."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = max(high - low, 1e-30) / 255
    zero = round(-low / scale)
    return np.asarray((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale, np.float32)


def _db(exact: NDArray[np.float32], made: NDArray[np.float32]) -> float:
    """SQNR in dB by the mean of the rows' relative errors: the largest rows alone would hide those of the others."""
    noise = np.sum((exact - made).astype(np.float64) ** 2, axis=1)
    power = np.sum(exact.astype(np.float64) ** 2, axis=1)
    heard = power > 0
    share = float(np.mean(noise[heard] / power[heard])) if heard.any() else 0.0
    return float(-10 * np.log10(share)) if share else _SILENT_DB
