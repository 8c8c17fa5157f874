"""Hold what is told to run in int8 against what runs: `python benchmarks/executed.py [FOLDER or MODEL ...]`.

Without arguments, the models of fixtures/. A folder is an entry (model.onnx, calib/, and meta.json with an optional
"preset"), a folder of entries, or any folder of .onnx files: samples are then taken from the first folder or .npz in it
that fits, or made at random.

The count is one of its own, by the shapes in ONNX Runtime's profiles: all work by a run of the file that was written,
without optimizations, and work on integers by one with them. Beside it stands how much work the file has of that of the
model that was given: products of constants are gone from it. Ends with 1 where a planned float node runs in int8, or
where a share is off by more than a point.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import yaml
from readme import head, support, table

import onnxshot
from onnxshot.calibration.readers import split
from onnxshot.errors import OnnxshotError
from onnxshot.graph.load import load_model
from onnxshot.observing.calibrating import open_calib
from onnxshot.settings import Settings

MOST = 0.01  # a share may be off by this
Shape = tuple[int, ...]
Kernel = tuple[str, list[Shape], list[Shape], dict[str, Any]]
SLOTS = {"QLinearConv": (0, 3), "QLinearMatMul": (0, 3), "QGemm": (0, 3)}  # of both factors, where not 0 and 1


@dataclass(frozen=True)
class Job:
    """A model, and where its samples are."""

    name: str
    model: Path
    calib: str
    preset: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--target", default="ort")
    parser.add_argument("--exclude", nargs="*", default=[])
    args = parser.parse_args()
    options = {"effort": args.effort, "target": args.target, "exclude": tuple(args.exclude)}
    head("model", "int8 told", "counted", "points apart", "float by plan, int8 in the run", "made int8 by ORT", "work")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        jobs = [job for path in args.paths for job in jobs_of(path, Path(folder))] if args.paths else fixtures()
        for job in jobs:
            wrong += not row(job, Path(folder) / "int8.onnx", options)
    sys.exit(1 if wrong else 0)


def fixtures() -> Iterator[Job]:
    for name, facts in support.facts().items():
        preset = None if facts["preset"] == "none" else str(support.FIXTURES / facts["preset"])
        yield Job(name, support.fixture(name), str(support.FIXTURES / facts["calib"]), preset)


def jobs_of(path: Path, folder: Path) -> Iterator[Job]:
    """The models of a path; presets are written to `folder`."""
    entries = [path] if (path / "model.onnx").is_file() else sorted(p.parent for p in path.glob("*/model.onnx"))
    for entry in entries:
        meta = entry / "meta.json"
        preset = json.loads(meta.read_text()).get("preset") if meta.is_file() else None
        file = folder / f"{entry.name}.yaml"
        if preset is not None:
            file.write_text(yaml.safe_dump(preset))
        yield Job(entry.name, entry / "model.onnx", str(entry / "calib"), None if preset is None else str(file))
    models = [path] if path.is_file() else sorted(path.glob("*.onnx")) if not entries else []
    for model in models:
        yield Job(model.stem, model, fitting(model))


def fitting(model: Path) -> str:
    """The folder or archive beside a model whose samples fit it; 'random' where none does."""
    for place in sorted(p for p in model.parent.iterdir() if p.is_dir() or p.suffix == ".npz"):
        try:
            with open_calib(str(place), load_model(model), None, Settings()) as data:
                onnxruntime.InferenceSession(str(model), quiet()).run(None, dict(data[0].feed))
        except Exception:  # whatever it is: the next one
            continue
        return str(place)
    return "random"


def row(job: Job, out: Path, options: dict[str, Any]) -> bool:
    """Print a line; whether it is as it should be."""
    try:
        settings = Settings(use_cache=False, bench_seconds=0.01)
        result = onnxshot.quantize(job.model, job.calib, output=out, preset=job.preset, settings=settings, **options)
        with open_calib(job.calib, load_model(job.model), job.preset, settings) as data:
            feed = dict(data[(split(len(data))[1] or [0])[0]].feed)
        told, unplanned = result.report.int8_macs_share, result.report.int8_unplanned
        given = sum(map(macs, kernels(job.model, feed, optimize=False)))
        everything = sum(map(macs, kernels(out, feed, optimize=False)))
        integers = sum(macs(kernel) for kernel in kernels(out, feed) if is_int8(kernel[0]))
    except (OnnxshotError, onnxruntime.capi.onnxruntime_pybind11_state.Fail) as e:
        table(f"`{job.name}`", str(e).splitlines()[0][:90], *[""] * 5)
        return True
    made = new_matrices(out)
    counted = integers / everything if everything else None
    if told is None or counted is None:
        table(f"`{job.name}`", told, counted, "-", len(unplanned), made, "-")
        return told == counted and not unplanned
    apart = abs(told - counted)
    share = f"{everything / given:.4f}" if given else "-"
    marks = "" if not unplanned else f" {unplanned[:3]}"
    cells = (f"{told:.4f}", f"{counted:.4f}", f"{100 * apart:.2f}", f"{len(unplanned)}{marks}", made, share)
    table(f"`{job.name}`", *cells)
    return apart <= MOST and not unplanned and made == 0


# ---------------------------------------------------------------------- a count of its own


def quiet(*, optimize: bool = True) -> Any:
    """Options of a session that prints nothing."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def kernels(model: Path, feed: dict[str, Any], *, optimize: bool = True) -> list[Kernel]:
    """(operator, shapes of inputs, shapes of outputs, attributes) of every kernel of one run."""
    options = quiet(optimize=optimize)
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "p")
        options.optimized_model_filepath = str(Path(folder) / "o.onnx")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent))
        run = onnxruntime.InferenceSession(numbered(model), options, providers=["CPUExecutionProvider"])
        run.run(None, {arg.name: feed[arg.name] for arg in run.get_inputs()})
        events = json.loads(Path(run.end_profiling()).read_text())
        graph = onnx.load(str(Path(folder) / "o.onnx"), load_external_data=False).graph
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
        given = [name for name in node.output if name]
        read = [known.get(name, ()) for name in node.input]
        known |= dict(zip(given, made, strict=len(given) == len(made)))
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        found.append((node.op_type, read, made, attributes))
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


if __name__ == "__main__":
    main()
