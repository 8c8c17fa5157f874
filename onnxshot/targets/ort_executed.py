"""What ONNX Runtime really runs: precision and work of every node, read from its optimized graph and a profile."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto

from onnxshot.errors import ModelError
from onnxshot.graph import edit
from onnxshot.graph.ir import Node
from onnxshot.graph.load import first_line
from onnxshot.graph.macs import Shape, concrete_shapes, count
from onnxshot.graph.model import Model
from onnxshot.targets.execution import Execution, Ran
from onnxshot.targets.ort_runtime import Feed, external_bytes, input_spec, label, one_line, session
from onnxshot.writing.places import scratch

LIMIT = 1_500_000_000
"""Bytes of a model above which its optimized graph is not written: it would not fit one protobuf file."""

_INT8 = ("MatMulInteger", "ConvInteger", "DynamicQuantize", "QGemm", "QAttention", "QMoE", "QEmbedLayer", "QLinear")
_AFTER = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "HardSigmoid")
_QDQ = ("QuantizeLinear", "DequantizeLinear")


def executed(model: Path | bytes, *, sample: Feed | None = None, threads: int = 2) -> Execution:
    """Read what ONNX Runtime makes of a model on the CPU.

    The sample is run once and the work counted is what ran, loops and branches included. Without one, zeros are run,
    with free dimensions of 1; where the model cannot take those, shapes are inferred as far as they can be. The layouts
    that ONNX Runtime chooses for float Convs pad channels: float work may come out a few percent high.

    Raises ModelError where the model does not load, or does not run on the sample.
    """
    proto = _loaded(model)
    folder = model.parent if isinstance(model, Path) else None
    size = _size(proto, folder)
    if size > LIMIT:
        return Execution((), {}, note=f"the model has {size / 1e9:.1f} GB: its optimized graph was not read")
    name_nodes(proto.graph, set())
    source = proto.SerializeToString()
    with scratch() as made:
        at = made / "optimized.onnx"
        prefix = made / "profile"
        run = session(source, threads=threads, folder=folder, save_optimized=at, profile=prefix)
        feed = _zeros(run) if sample is None else sample
        try:
            events = _profile(run, feed, label(model))
        except ModelError:
            if sample is not None:
                raise
            run.end_profiling()  # closes the file, so that its folder can go
            events = []
        del run
        try:
            # Weights that were outside stay where they were; their shapes are all that is needed of them.
            optimized = Model(onnx.load(str(at), load_external_data=False), folder=folder)
        except (OSError, DecodeError, ValueError, ModelError) as e:
            return Execution((), {}, note=f"ONNX Runtime's optimized graph cannot be read: {first_line(e)}")
    return _read(optimized, events, {k: v.shape for k, v in feed.items()})


def _read(model: Model, events: list[dict[str, Any]], feed_shapes: Mapping[str, Shape]) -> Execution:
    shapes, runs = concrete_shapes(model, feed_shapes), {}
    if events:
        runs = _measured(model, events, shapes)
    work = {row.node: row for row in count(model, shapes)}
    nodes = []
    for _, node in model.walk():
        row, precision = work.get(node), _precision(node)
        if row is None and precision == "float":
            continue
        # A branch not taken is in no profile; where nothing was run, a node counts once.
        times = runs.get(node, 0) if events else 1
        macs, exact = (row.macs, row.exact) if row is not None else (0, True)
        nodes.append(Ran(node.label, node.op, precision, macs * times, exact))
    ops = Counter(node.op for _, node in model.walk())
    return Execution(tuple(nodes), dict(ops.most_common()), tuple(_unfused(model)))


def _precision(node: Node) -> str:
    if node.op in ("MatMulNBits", "MatMulBnb4"):
        return f"int{node.attrs.get('bits', 4)}"
    if node.op.startswith(_INT8) and node.op != "DynamicQuantizeLinear":
        return "int8"
    return "float"


def _unfused(model: Model) -> Iterator[str]:
    """Float nodes that read a DequantizeLinear and feed a QuantizeLinear, directly or through one activation."""
    for _, node in model.walk():
        if node.op in _QDQ or _precision(node) != "float":
            continue
        makers = (edit.producer(t) for t in node.inputs)
        if not any(maker is not None and maker.op == "DequantizeLinear" for maker in makers):
            continue
        users = [user for out in node.outputs for user in edit.consumers(out)]
        users += [u for user in users if user.op in _AFTER for u in edit.consumers(user.outputs[0])]
        if any(user.op == "QuantizeLinear" for user in users):
            yield f"{node.op} {node.label}"


# ---------------------------------------------------------------------- the profile of one run


def _measured(model: Model, events: list[dict[str, Any]], shapes: dict[str, Shape]) -> dict[Node, int]:
    """How often each node ran; fills `shapes` with those its outputs had."""
    by_name = defaultdict(list)
    for event in events:
        by_name[(event["name"].removesuffix("_kernel_time"), event["args"].get("op_name"))].append(event["args"])
    runs = {}
    for _, node in model.walk():
        ran = by_name.get((node.name, node.op), [])
        runs[node] = len(ran)
        made = [t.name for t in node.outputs if t.name]
        stated = ran[-1].get("output_type_shape", []) if ran else []
        if len(stated) == len(made):
            shapes |= {name: tuple(next(iter(entry.values()))) for name, entry in zip(made, stated, strict=True)}
    return runs


def _zeros(run: Any) -> dict[str, NDArray[Any]]:
    specs = map(input_spec, run.get_inputs())
    return {s.name: np.zeros([d if isinstance(d, int) else 1 for d in s.shape or ()], s.dtype) for s in specs}


def _profile(run: Any, sample: Feed, what: str) -> list[dict[str, Any]]:
    try:
        run.run(None, {arg.name: sample[arg.name] for arg in run.get_inputs()})
    except KeyError as e:
        raise ModelError(f"{what} asks for input {e}, which the sample does not hold") from e
    except RuntimeError as e:
        if "Numpy type" not in str(e):  # the run was fine: its output has no numpy type
            raise ModelError(f"{what} fails in ONNX Runtime: {one_line(e)}") from e
    except Exception as e:  # ONNX Runtime's errors share no base class
        raise ModelError(f"{what} fails in ONNX Runtime: {one_line(e)}") from e
    events: list[dict[str, Any]] = json.loads(Path(run.end_profiling()).read_bytes())
    return [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def _loaded(model: Path | bytes) -> ModelProto:
    try:
        if isinstance(model, bytes):
            return onnx.load_from_string(model)
        return onnx.load(str(model), load_external_data=False)
    except (OSError, DecodeError) as e:
        raise ModelError(f"{label(model)} cannot be read: {first_line(e)}") from e


def _size(proto: ModelProto, folder: Path | None) -> int:
    """Bytes of the model and of the files its weights lie in."""
    size = int(proto.ByteSize())
    return size if folder is None else size + external_bytes(proto, folder)


def name_nodes(graph: GraphProto, taken: set[str]) -> None:
    """Give every node a name of its own, so that a profile tells them apart."""
    for node in graph.node:
        if not node.name or node.name in taken:
            stem = node.name or next(iter(o for o in node.output if o), node.op_type)
            node.name = next(name for name in _variants(stem) if name not in taken)
        taken.add(node.name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                name_nodes(attribute.g, taken)


def _variants(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}_{number}"
        number += 1
