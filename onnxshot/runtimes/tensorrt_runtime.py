"""TensorRT as a runtime: build engines from Q/DQ graphs, report what they were compiled to, and run them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnx import TensorProto

from onnxshot.errors import TargetError
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Model, Node, edit
from onnxshot.graph.load import load_model
from onnxshot.graph.weight_sparsity import nodes_with_2_4_zeros
from onnxshot.runtimes import tensorrt_build, tensorrt_engine, tensorrt_log, tensorrt_rules
from onnxshot.runtimes.base import (
    Dims,
    EmitOptions,
    Emitted,
    Finding,
    Loaded,
    Ranges,
    Runtime,
    Sizes,
    notes_of,
    raise_refused,
    some,
)
from onnxshot.runtimes.executed import Execution
from onnxshot.wording import worded


class TensorRt(Runtime):
    """TensorRT 10 or 11, or TensorRT-RTX, whichever is installed, in that order. See `Runtime` for the methods."""

    format, suffix, extra, ranged = "tensorrt", ".engine", "tensorrt", True

    def check(self) -> None:
        """Check that TensorRT or TensorRT-RTX is installed.

        Raises TargetError, saying what to install, if neither is.
        """
        tensorrt_build.module()

    def check_sizes(self, inputs: Mapping[str, Dims | None], options: EmitOptions) -> None:
        """Check that all shapes are known. Raises UsageError if some are missing or do not fit."""
        tensorrt_build.profiles(inputs, options)

    def preflight(self, model: Model) -> list[Finding]:
        """The nodes that the builder refuses, or runs in float although they are quantized."""
        return tensorrt_rules.findings(model)

    def emit(self, source: Path, folder: Path, stem: str, options: EmitOptions) -> Emitted:
        """Build the engine of an .onnx file as `folder`/`stem`.engine.

        Raises:
            TargetError: TensorRT refuses the model. Names the node.
            UsageError: Shapes are missing.
        """
        if options.half:
            raise TargetError("TensorRT computes in the types that the graph states", "store half floats in the graph")
        rtx = tensorrt_build.module().__name__ == "tensorrt_rtx"
        model = load_model(source)
        found = self.preflight(model)
        raise_refused(found, "TensorRT", self.format)
        ranges = tensorrt_build.profiles({tensor.name: model.shape(tensor) for tensor in model.graph.inputs}, options)
        halves = nodes_with_2_4_zeros(model)
        engine = folder / f"{stem}{self.suffix}"
        with scratch() as made:
            log = made / "build.log"
            tensorrt_build.build(model, engine, log, ranges, options, sparse=bool(halves))
            executed = tensorrt_log.execution(model, {name: usual for name, (_, usual, _) in ranges.items()}, log)
        sizes = _sizes_note({name: ranges[name] for name in ranges if name in options.sampled}, options.shapes)
        notes = [*notes_of(found), *sizes, *_sparsity_notes(halves), *_int4_note(model, executed)]
        if rtx and options.timing_cache is not None:
            notes.append("TensorRT-RTX measures nothing when it builds: there is no timing cache to write")
        return Emitted((engine.name,), executed, tuple(notes))

    def time_notes(self, before: Loaded, after: Loaded) -> list[str]:
        """The time of both engines on the GPU, by CUDA's events."""
        engines = [engine for engine in (before, after) if isinstance(engine, tensorrt_engine.Engine)]
        return [note for note in [tensorrt_engine.time_note(*engines)] if note] if len(engines) == 2 else []

    def runs_here(self) -> str:
        """What is missing to run an engine: the module, the driver or a GPU; empty if nothing is."""
        return tensorrt_engine.missing()

    def load(self, path: Path, *, threads: int, options: EmitOptions | None = None) -> Loaded:
        """Load an engine, or build one from an .onnx file and load that, to run it on the first GPU.

        Args:
            path: The engine or .onnx file.
            threads: Not used.
            options: How to build an engine from an .onnx file.

        Raises:
            TargetError: No engine runs on this machine.
            ModelError: The engine does not load.
            UsageError: The options lack shapes that the build needs.
        """
        if path.suffix != ".onnx":
            return tensorrt_engine.Engine(path)
        with scratch() as made:
            emitted = self.emit(path, made, "model", options or EmitOptions(threads=threads))
            return tensorrt_engine.Engine(made / emitted.files[0])


def _sizes_note(sampled: Ranges, asked: Ranges) -> list[str]:
    """A note on the inputs that are built for the shapes in the samples, and no others."""
    named = [
        f"{name} of {' to '.join(dict.fromkeys((_joined(least), _joined(most))))}, usually {_joined(usual)}"
        for name, (least, usual, most) in sampled.items()
        if name not in asked
    ]
    others = worded("[[shapes]] sets others")
    return [f"built for the sizes found in the samples ({others}): {', '.join(named)}"] if named else []


def _joined(sizes: Sizes) -> str:
    return "x".join(map(str, sizes))


def _int4_note(model: Model, executed: Execution) -> list[str]:
    """A note on how many int4 weights the engine keeps in int4, read from the log of the build."""
    integers = [node for _, node in model.walk() if node.op == "DequantizeLinear"]
    integers = [node for node in integers if model.elem_type(node.inputs[0]) == TensorProto.INT4]
    readers = dict.fromkeys(
        after
        for node in integers
        for user in edit.consumers(node.outputs[0])
        for after in (edit.consumers(user.outputs[0]) if user.op == "Transpose" else [user])
    )
    if not readers or not executed.nodes:
        return []
    kept = sum(ran.stored == "int4" for ran in executed.nodes)
    return [f"{kept} of {len(readers)} int4 weights are kept so in the engine, and multiplied as floats"]


def _sparsity_notes(halves: list[Node]) -> list[str]:
    if not halves:
        return []
    notes = [f"built to use 2:4 zeros, which {len(halves)} weights have: {some([n.label for n in halves])}"]
    makers = [edit.producer(tensor) for node in halves for tensor in node.inputs[:2]]
    if any(maker is not None and maker.op == "DequantizeLinear" for maker in makers):
        notes.append("TensorRT was observed not to use 2:4 zeros after Q/DQ pairs: measure it before relying on both")
    return notes
