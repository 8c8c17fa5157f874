"""Count the work of one real run, by the kernels and shapes of ONNX Runtime's profile. Knows nothing of onnxshot."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime

Shape = tuple[int, ...]
Kernel = tuple[str, list[Shape], list[Shape], dict[str, Any]]
SLOTS = {"QLinearConv": (0, 3), "QLinearMatMul": (0, 3), "QGemm": (0, 3)}  # of both factors, where not 0 and 1


def quiet(*, optimize: bool = True, folded: bool = False) -> Any:
    """Options of a session that prints nothing; folded: what constants make is computed once, little is fused."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_BASIC if folded else level.ORT_DISABLE_ALL
    return options


def kernels(model: Path, feed: dict[str, Any], *, optimize: bool = True, folded: bool = False) -> list[Kernel]:
    """(operator, shapes of inputs, shapes of outputs, attributes) of every kernel of one run."""
    options = quiet(optimize=optimize, folded=folded)
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "p")
        options.optimized_model_filepath = str(Path(folder) / "o.onnx")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent))
        run = onnxruntime.InferenceSession(numbered(model), options, providers=["CPUExecutionProvider"])
        run.run(None, {arg.name: feed[arg.name] for arg in run.get_inputs()})
        events = json.loads(Path(run.end_profiling()).read_text())
        graph = onnx.load(str(Path(folder) / "o.onnx"), load_external_data=False).graph
    return of_profile(events, graph, feed)


def of_profile(events: list[dict[str, Any]], graph: onnx.GraphProto, feed: dict[str, Any]) -> list[Kernel]:
    """The kernels of the events of a profile of one run, by the optimized graph of the same session."""
    known = {name: np.shape(value) for name, value in feed.items()}
    every = list(graphs(graph))
    known |= {t.name: tuple(t.dims) for inner in every for t in inner.initializer}
    named = {node.name: node for inner in every for node in inner.node}
    found = []
    for event in events:
        node = named.get(re.sub(r"_kernel_time$", "", event["name"])) if event.get("cat") == "Node" else None
        if node is None or not event["name"].endswith("_kernel_time"):
            continue
        # A profile leaves out weights that were packed: what is read is known from what made it.
        made = [tuple(*shape.values()) for shape in event["args"].get("output_type_shape", [])]
        told = [tuple(*shape.values()) for shape in event["args"].get("input_type_shape", [])]
        given = [name for name in node.output if name]
        known |= unknown(node.input, told, known)
        read = [known.get(name, ()) for name in node.input]
        known |= dict(zip(given, made, strict=len(given) == len(made)))
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        found.append((node.op_type, read, made, attributes))
    return found


def unknown(names: Sequence[str], told: list[Shape], known: dict[str, Shape]) -> dict[str, Shape]:
    """Shapes of inputs that nothing is known of, as those that a node without a name has made.

    told: of what the node reads, in order, without some of the weights.
    """
    found, at = {}, 0
    for name in filter(None, names):
        if at == len(told):
            break
        if name not in known:
            found[name] = told[at]
        at += name not in known or known[name] == told[at]
    return found


def numbered(model: Path) -> bytes:
    """The model with a name of its own for every node."""
    proto = onnx.inliner.inline_local_functions(onnx.load(str(model), load_external_data=False))
    for i, node in enumerate(node for graph in graphs(proto.graph) for node in graph.node):
        node.name = f"n{i}"
    return proto.SerializeToString()


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def is_int8(op: str) -> bool:
    return op.startswith(("QLinear", "QGemm", "MatMulInteger", "ConvInteger")) or op in (
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
    )


def macs(kernel: Kernel) -> int:
    """Multiply-accumulates of one kernel; 0 of those that multiply no matrices."""
    op, read, made, attributes = kernel
    a, b = SLOTS.get(op, (0, 1))
    if op in ("Conv", "FusedConv", "QLinearConv", "ConvInteger", "DeformConv"):
        return math.prod(made[0]) * math.prod(read[b][1:])
    if op == "ConvTranspose":
        return math.prod(read[0]) * math.prod(read[1][1:])
    if op in ("Gemm", "FusedGemm", "QGemm"):
        return math.prod(made[0]) * read[a][0 if attributes.get("transA") else 1]
    if op in ("MatMul", "FusedMatMul", "QLinearMatMul", "DynamicQuantizeMatMul") or op.startswith("MatMulInteger"):
        inner = read[a][-2] if attributes.get("transA") and len(read[a]) > 1 else read[a][-1]
        return math.prod(made[0]) * inner
    if op in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"):
        return math.prod(read[0][:2]) * (math.prod(read[1]) + math.prod(read[2]))
    if op == "Einsum":
        return einsum(attributes["equation"].decode(), read)
    if op == "Attention" and len(read[0]) == 3 and len(read[1]) == 2:  # of com.microsoft, without a past
        rows, steps, values = math.prod(read[0][:2]), read[0][1], made[0][-1]
        return rows * read[0][2] * read[1][1] + rows * steps * ((read[1][1] - values) // 2 + values)
    if op == "MultiHeadAttention":
        return 2 * math.prod(read[0]) * read[1][-2]
    return 0


def einsum(equation: str, shapes: list[Shape]) -> int:
    """Operands one after the other, each product over all letters of both that are still needed."""
    left, _, right = equation.replace(" ", "").partition("->")
    terms = [spelled(term, len(shape)) for term, shape in zip(left.split(","), shapes, strict=True)]
    sizes = {c: size for term, shape in zip(terms, shapes, strict=True) for c, size in zip(term, shape, strict=True)}
    right += "0123456789" * ("." in right)
    total, held = 0, set(terms[0])
    for i, term in enumerate(terms[1:], start=1):
        held |= set(term)
        total += math.prod(sizes[c] for c in held)
        held &= set(right).union(*terms[i + 1 :])
    return total


def spelled(term: str, rank: int) -> str:
    """The letters of a term, with digits for the dimensions that an ellipsis stands for."""
    before, dots, after = term.partition("...")
    return before + "0123456789"[: rank - len(before) - len(after)] * bool(dots) + after


def new_matrices(model: Path) -> int:
    """How many more weights on 8 bits the optimized graph holds than the file."""
    with tempfile.TemporaryDirectory() as folder:
        options = quiet()
        options.optimized_model_filepath = str(Path(folder) / "o.onnx")
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        after = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
        return max(0, matrices(after) - matrices(onnx.load(str(model), load_external_data=False).graph))


def matrices(graph: onnx.GraphProto) -> int:
    kinds = Counter(t.data_type for t in graph.initializer if sum(d > 1 for d in t.dims) > 1)
    return kinds[onnx.TensorProto.INT8] + kinds[onnx.TensorProto.UINT8]
