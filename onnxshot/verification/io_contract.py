"""The inputs and outputs that callers of a model depend on, and checks that a written file still has them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, numpy_helper

from onnxshot.comparison.random_nodes import RANDOM
from onnxshot.errors import ModelError
from onnxshot.graph import Model, weights
from onnxshot.graph.fixed_shapes import FixedShapes
from onnxshot.graph.ir import Constant
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.lean_parse import parse_lean
from onnxshot.graph.load import first_line
from onnxshot.graph.weight_pieces import row_blocks, rows
from onnxshot.runtimes.ort_runtime import Feed, Runner


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output.

    Attributes:
        way: "input" or "output".
        name: Its name.
        type: Element type, in lower case, such as "float"; the whole type if it is no tensor.
        dims: Size, name of a free dimension, or None for an unnamed one; None if the rank is unknown.
    """

    way: str
    name: str
    type: str
    dims: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        if self.dims is None:
            return f"{self.way} {self.name!r} {self.type} of any shape"
        return f"{self.way} {self.name!r} {self.type} [{', '.join('?' if d is None else str(d) for d in self.dims)}]"


def contract(source: Path | bytes | ModelProto | Model | LeanModel) -> tuple[Port, ...]:
    """The inputs, then the outputs, in the order of the graph. Initializers listed as inputs are left out."""
    if isinstance(source, Model):
        graph = source.export(lambda _: None).graph
        stored = set(source.graph.overridable)
    elif isinstance(source, LeanModel):
        graph = source.proto.graph
        stored = {*source.initializers, *source.weights, *(s.values.name for s in graph.sparse_initializer)}
    else:
        proto = source if isinstance(source, ModelProto) else _parsed(source)
        graph = proto.graph
        stored = {i.name for i in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    return (
        *(_port("input", info) for info in graph.input if info.name not in stored),
        *(_port("output", info) for info in graph.output),
    )


def with_frozen(ports: Iterable[Port], sizes: FixedShapes) -> tuple[Port, ...]:
    """The contract a model has once these dimensions are fixed."""
    return tuple(replace(port, dims=sizes.dims(port.name, port.dims)) for port in ports)


def same_contract(a: Iterable[Port], b: Iterable[Port]) -> None:
    """Check that two contracts are equal, order included.

    Raises:
        ModelError: They differ. Names the first difference.
    """
    found = difference(a, b)
    if found:
        raise ModelError(f"the model's inputs and outputs have changed: {found}", "a fault of onnxshot: report it")


def difference(a: Iterable[Port], b: Iterable[Port]) -> str:
    """The first difference of two contracts, as a clause; empty if they are equal."""
    first, second = tuple(a), tuple(b)
    for left, right in zip(first, second, strict=False):
        if left != right:
            return f"{left} against {right}"
    if len(first) > len(second):
        return f"{first[len(second)]} is missing"
    return f"{second[len(first)]} is new" if len(second) > len(first) else ""


def reload_check(model: Model, written: Path, feed: Feed, *, run: bool = True) -> None:
    """Check that the file on disk holds the model in memory.

    The same graph and the same weights, compared one at a time, are enough. Where the graph is written in another way,
    both models must give the same outputs to the bit on the sample. A model that ONNX Runtime does not run, or that may
    draw random numbers, is compared by its weights alone.

    Args:
        model: The model in memory.
        written: The file.
        feed: One sample.
        run: False if ONNX Runtime does not run the model.

    Raises:
        ModelError: The file differs. Names the output or the weight.
    """
    same_contract(contract(model), contract(written))
    meant, stored = LeanModel.of(model), LeanModel.of(written)
    _same_weights(meant, stored, written)
    if not run or _rest(meant) == _rest(stored) or any(node.op in RANDOM for _, node in model.walk()):
        return
    # One thread: with several, sums may be added in another order.
    expected, found = Runner(meant, threads=1).run(feed), Runner(written, threads=1).run(feed)
    for name, value in expected.items():
        other = found[name]
        same = value.dtype == other.dtype and value.shape == other.shape
        if same and value.dtype.kind in "OUS":
            same = bool(np.array_equal(value, other))
        elif same:
            same = value.tobytes() == other.tobytes()
        if not same:
            raise _changed(written, f"output {name!r} differs from what was computed")


def _rest(model: LeanModel) -> bytes:
    """Everything but the weights, serialized."""
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.initializer[:]
    return bytes(proto.SerializeToString(deterministic=True))


def _same_weights(meant: LeanModel, stored: LeanModel, written: Path) -> None:
    """Check that the file has all weights of the model. Large ones are read one after the other, in pieces."""
    for name, tensor in meant.initializers.items():
        if not stored.holds(name):
            raise _changed(written, f"weight {name!r} is missing")
        if stored.initializers.get(name) != tensor and not _same(numpy_helper.to_array(tensor), stored.array(name)):
            raise _changed(written, f"weight {name!r} differs from what was computed")
    for name, constant in meant.weights.items():
        found = stored.weights.get(name)
        if found is None and not stored.holds(name):
            raise _changed(written, f"weight {name!r} is missing")
        if found is None:  # small in the file, where two 4-bit values share a byte, and large in memory
            if not _same(np.asarray(weights.read(constant)), stored.array(name)):
                raise _changed(written, f"weight {name!r} differs from what was computed")
            continue
        alike = weights.elem_type(found) == weights.elem_type(constant) and tuple(found.shape) == tuple(constant.shape)
        if not alike or not _same_pieces(constant, found):
            raise _changed(written, f"weight {name!r} differs from what was computed")


def _same_pieces(one: Constant, other: Constant) -> bool:
    """Whether two weights of the same type and shape have the same bits."""
    return all(_same(part, rows(other, start, start + len(part))) for start, part in row_blocks(one))


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind in "OUS":
        return bool(np.array_equal(a, b))
    left, right = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return bool(np.array_equal(left, right))


def _changed(path: Path | None, what: str) -> ModelError:
    hint = "the disk or onnxshot is at fault: write it again, and report it if that does not help"
    return ModelError(f"{path}: {what}", hint)


def _parsed(source: Path | bytes) -> ModelProto:
    try:
        if isinstance(source, bytes):
            return onnx.load_from_string(source)
        return parse_lean(source)
    except (OSError, DecodeError) as e:
        what = "the model in memory" if isinstance(source, bytes) else str(source)
        raise ModelError(f"{what} cannot be read: {first_line(e)}") from e


def _port(way: str, info: ValueInfoProto) -> Port:
    kind = info.type.WhichOneof("value")
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return Port(way, info.name, " ".join(str(info.type).split()), None)
    tensor = getattr(info.type, kind)
    name = TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return Port(way, info.name, name, None)
    dims = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim)
    return Port(way, info.name, name, dims)
