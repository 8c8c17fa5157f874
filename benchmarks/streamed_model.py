"""Write an ONNX model whose weights are made one at a time: a model of any size takes the memory of one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

Make = Callable[[], Any]

ALIGNED = 4096  # so that a reader can map every tensor
KINDS: dict[str, tuple[int, Any]] = {
    "float32": (TensorProto.FLOAT, np.dtype(np.float32)),
    "float16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bfloat16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}


@dataclass(frozen=True)
class Weight:
    """A weight that is not made yet: `make` gives its values, of any float type."""

    name: str
    kind: str
    shape: tuple[int, ...]
    make: Make

    @property
    def length(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * int(KINDS[self.kind][1].itemsize)

    def header(self) -> TensorProto:
        return TensorProto(name=self.name, data_type=KINDS[self.kind][0], dims=self.shape)

    def values(self) -> Any:
        values = np.ascontiguousarray(self.make().astype(KINDS[self.kind][1], copy=False))
        if values.shape != self.shape:
            raise ValueError(f"{self.name} is {values.shape}, not {self.shape}")
        return values.view(np.uint8).reshape(-1)  # a buffer of any float type


@dataclass
class Graph:
    """A graph as it is put together. `add` gives the name of the node's first output."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[tuple[Any, ...], str] = field(default_factory=dict)
    small: list[TensorProto] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)

    def add(self, op: str, *inputs: str, name: str = "", out: Sequence[str] = (), **attributes: Any) -> str:
        name = name or f"/{op}_{len(self.nodes)}"
        outputs = list(out) or [f"{name}_output_0"]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=name, **attributes))
        return outputs[0]

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        array = np.array(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = f"constant_{len(self.constants)}"
            self.small.append(onnx.numpy_helper.from_array(array, self.constants[key]))
        return self.constants[key]

    def weight(self, name: str, kind: str, shape: tuple[int, ...], make: Make) -> str:
        self.weights.append(Weight(name, kind, shape, make))
        return name


def write(graph: Graph, path: Path, inputs: Sequence[Any], outputs: Sequence[Any], opset: int, external: bool) -> None:
    """Write `path`, with the weights in `path`.data if `external`, else within the file."""
    proto = helper.make_graph(graph.nodes, path.stem, list(inputs), list(outputs), graph.small)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model.producer_name = "generated_models"
    if external:
        _write_data(graph.weights, path.with_name(path.name + ".data"), model.graph)
        path.write_bytes(model.SerializeToString())
        return
    small = model.graph.SerializeToString()
    model.ClearField("graph")
    headers = [weight.header().SerializeToString() for weight in graph.weights]
    sizes = [len(h) + len(_head(9, w.length)) + w.length for h, w in zip(headers, graph.weights, strict=True)]
    total = len(small) + sum(len(_head(5, size)) + size for size in sizes)
    with path.open("wb") as file:  # fields of ModelProto, GraphProto and TensorProto, by their numbers in onnx.proto
        file.write(model.SerializeToString() + _head(7, total) + small)
        for weight, header, size in zip(graph.weights, headers, sizes, strict=True):
            file.write(_head(5, size) + header + _head(9, weight.length))
            file.write(weight.values())


def _write_data(weights: Sequence[Weight], path: Path, graph: onnx.GraphProto) -> None:
    with path.open("wb") as file:
        for weight in weights:
            _pad(file)
            tensor = weight.header()
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", path.name), ("offset", file.tell()), ("length", weight.length)):
                tensor.external_data.add(key=key, value=str(value))
            graph.initializer.append(tensor)
            file.write(weight.values())


def _pad(file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % ALIGNED))


def _head(number: int, length: int) -> bytes:
    """Number and length of a protobuf field that holds bytes."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
