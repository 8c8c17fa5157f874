"""The rows of a report, and the limits that its words go by: plain values that know nothing of how they are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GOOD_DB = 10.0
"""A tensor below this SQNR is named as the first suspect: its noise is a third of its signal."""
GAP_DB = 3.0
"""More than this between SQNR with the runtime's optimizations on and off is a mistake, or arithmetic that saturates.

On a few samples two runs that only round differently were seen to differ by up to 2.6 dB.
"""
VECTOR = "a vector, as of biases or norms: these stay float"
"""Why a float constant with one dimension is among `float_weights`; a terminal does not list those."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One artifact that was written: a file, or several of one stem.

    What follows its size is measured in its own runtime, and None or empty where that is not here; of an .onnx file the
    report itself tells it.

    Attributes:
        path: the file that is loaded.
        sqnr_db, agreement: against the float model in ONNX Runtime.
        int8_macs_share: share 0..1 of the multiply-accumulates that it runs, or was compiled to run, in int8.
        honoured: share 0..1 of those whose factors are both dequantized that it runs so; 1 where there are none.
        latency: float_ms, ms, speedup, sure: the float model in the same runtime, in turns.
        seconds: what it took to make.
    """

    path: str
    target: str
    format: str
    bytes: int
    sqnr_db: float | None = None
    agreement: float | None = None
    int8_macs_share: float | None = None
    honoured: float | None = None
    latency: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ValueCounts:
    """How many of the values that calibration saw are in each of a few bins of equal width, from low to high."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor of the candidate against the float model; range and clipped share are those of its Q/DQ pair.

    values: its histogram, of the worst tensors alone, and where calibration saw them.
    """

    tensor: str
    op: str
    sqnr_db: float
    low: float | None = None
    high: float | None = None
    clipped: float | None = None
    scheme: str = ""
    method: str = ""
    values: ValueCounts | None = None


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node of the float model.

    Attributes:
        how: static, dynamic, weights, half or float, as the plan has it.
        tensor: its first output.
        macs_share: share 0..1 of the multiply-accumulates, at the sizes that the report tells.
        sparsity: share 0..1 of zeros in its weight; None where it has none, or the model is large.
    """

    node: str
    op: str
    how: str
    tensor: str
    macs_share: float
    sparsity: float | None


def to_json(values: Mapping[str, Any]) -> str:
    """One JSON object, indented."""
    return json.dumps(values, indent=1, ensure_ascii=False)


def rounded(value: Any) -> Any:
    """Plain values with floats rounded to what is measured."""
    if isinstance(value, float):
        return round(value, 6) if abs(value) < 1e6 else value
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return value
