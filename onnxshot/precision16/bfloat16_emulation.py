"""Emulate bfloat16 in float32, since the CPU kernels of ONNX Runtime do not support it."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Constant, weights
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.load import load_model
from onnxshot.graph.save import write
from onnxshot.graph.shape_inference import infer_proto
from onnxshot.passes.widen_precision16 import WidenPrecision16


def emulate_bfloat16(model: ModelProto | LeanModel) -> LeanModel:
    """Return the model with float32 instead of bfloat16, and every bfloat16 tensor rounded to bfloat16.

    This is what kernels compute that accumulate in float32 and round once. Subgraphs of If, Loop and Scan are not
    changed. Large weights are widened when they are read.
    """
    lean = LeanModel.of(model)
    known = infer_proto(lean.outline()).graph
    bf16 = {i.name for i in (*known.value_info, *known.output) if i.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    large = {
        name: _widened(constant) if weights.elem_type(constant) == TensorProto.BFLOAT16 else constant
        for name, constant in lean.weights.items()
    }
    return replace(lean.edited(lambda proto: _emulate(proto, bf16)), weights=large)


def _widened(constant: Constant) -> Constant:
    def computed() -> NDArray[Any]:
        return weights.read(constant).astype(np.float32)

    return Constant(constant.name, weights.ComputedValues(tuple(constant.shape), np.dtype(np.float32), computed))


def _emulate(made: ModelProto, bf16: Container[str]) -> None:
    """Edit a model with these tensors in bfloat16."""
    graph = made.graph
    for i, tensor in enumerate(graph.initializer):
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            graph.initializer[i].CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = list[NodeProto]()
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
        for i, name in enumerate(node.output):
            if name in bf16:
                exact, rounded = (f"{name}/{what}" for what in ("exact", "rounded"))
                node.output[i] = exact
                nodes.append(helper.make_node("Cast", [exact], [rounded], to=TensorProto.BFLOAT16))
                nodes.append(helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def computes_bfloat16(source: str | Path | ModelProto) -> bool:
    """Whether a model computes in bfloat16, for which ONNX Runtime has no CPU kernels."""
    widened = WidenPrecision16()
    widened.run(load_model(source))
    return widened.runs_nowhere


@contextlib.contextmanager
def in_float32(path: Path, *, wanted: bool) -> Iterator[Path]:
    """Yield the path of the model widened to float32; the file itself if `wanted` is false."""
    if not wanted:
        yield path
        return
    model = load_model(path)
    WidenPrecision16().run(model)
    with scratch() as folder:
        made = folder / "model.onnx"
        write(model, made)
        yield made


@contextlib.contextmanager
def runnable_on_cpu(paths: Sequence[Path]) -> Iterator[tuple[list[Path], list[str]]]:
    """Yield paths of models that ONNX Runtime runs on CPUs, and notes; bfloat16 models are widened to float32."""
    found, notes = [], []
    with contextlib.ExitStack() as stack:
        for path in paths:
            nowhere = computes_bfloat16(path)
            found.append(stack.enter_context(in_float32(path, wanted=nowhere)))
            if nowhere:
                notes.append(f"{path} computes in bfloat16, which ONNX Runtime lacks on CPUs: run in float32")
        yield found, notes


@contextlib.contextmanager
def emulated_if_bf16(path: Path, precision: str | None) -> Iterator[Path]:
    """Yield a path that ONNX Runtime runs: the file itself, or its emulation if `precision` is 'bf16'."""
    if precision != "bf16":
        yield path
        return
    onnx.checker.check_model(str(path), full_check=True)
    with scratch() as folder:
        made = folder / "model.onnx"
        write(emulate_bfloat16(LeanModel.of(path)).to_graph(), made)
        yield made
