"""The values that a report consists of, and limits on them; nothing about how they are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1
"""Version of the keys of all JSON, as `schema_version`. It grows when a key goes, or changes type, unit or meaning."""
GOOD_DB = 10.0
"""SQNR below which a tensor is named as the likely cause of an error: its noise is a third of its signal."""
GAP_DB = 3.0
"""Largest difference of SQNR with and without the runtime's graph optimizations that counts as normal.

A larger one is a fault of the runtime, or arithmetic that saturates. On a few samples, two runs that only round
differently were observed to differ by up to 2.6 dB.
"""
MEASURED = "left in float, as measured"
"""How the reason of a node begins that a search left in float."""
NOT_QUANTIZABLE = "there is nothing to quantize"
"""How the note on a model begins that has no layer with weights."""
VECTOR = "a vector, as of biases or norms: these stay float"
"""The reason of vectors in `Report.float_weights`; the terminal does not list them."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One artifact that was written: a file, or several files with the same stem.

    The fields after `bytes` are measured in the artifact's own runtime. They are None or empty where that runtime does
    not run on this machine, and for an .onnx file, whose figures are in the report itself.

    Attributes:
        path: the file to load.
        target: the target it is made for.
        format: 'onnx', 'openvino' or 'tensorrt'.
        bytes: size of all its files.
        sqnr_db, agreement: compared with the float model in ONNX Runtime.
        int8_macs_share: share 0..1 of the multiply-accumulates that it runs, or was compiled to run, in int8.
        honoured: of the products with two dequantized factors, the share 0..1 that runs in int8; 1 if there are none.
        latency: `float_ms`, `ms`, `speedup`, `sure`, from interleaved runs with the float model in the same runtime.
        notes: what else is known.
        seconds: how long it took to make.
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
    """A histogram of the values that calibration observed, in bins of equal width from low to high."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor of the result, compared with the float model.

    Attributes:
        tensor: its name.
        op: the operator that computes it.
        sqnr_db: includes the error of all earlier layers.
        low, high: the range of its Q/DQ pair; None where it has none.
        clipped: share 0..1 of its values outside of that range.
        scheme: type, scale and zero point, as text.
        method: the range method that chose the range.
        values: its histogram; only for the worst tensors, and where calibration observed them.
        depth: its place in the graph of the float model, from 0 at the inputs; None where it is not known.
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
    depth: int | None = None


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node of the float model.

    Attributes:
        node: its name.
        op: its operator.
        how: 'static', 'dynamic', 'weights', 'half' or 'float': how the plan treats it.
        tensor: name of its first output.
        macs_share: share 0..1 of the multiply-accumulates, at the sizes in `Report.sizes`.
        sparsity: share 0..1 of zeros in its weight; None where it has no weight, or the model is too large to count.
        bits: bits of a value of its weight in the result, without scales; None where it has no weight.
        module: path of the module of the network that it belongs to, as far as the file says; "" where it does not.
    """

    node: str
    op: str
    how: str
    tensor: str
    macs_share: float
    sparsity: float | None
    bits: int | None = None
    module: str = ""


def stamped(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values behind their `schema_version`."""
    return {"schema_version": SCHEMA_VERSION, **values}


def to_json(values: Mapping[str, Any]) -> str:
    """Plain values as indented JSON."""
    return json.dumps(values, indent=1, ensure_ascii=False)


def rounded(value: Any) -> Any:
    """Plain values with floats rounded to six decimals."""
    if isinstance(value, float):
        return round(value, 6) if abs(value) < 1e6 else value
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return value
