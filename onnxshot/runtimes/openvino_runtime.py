"""OpenVINO: write its IR, run IR and .onnx files on the CPU, and list what it computes wrongly or in float."""

from __future__ import annotations

from collections.abc import Collection
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import ModelError, OnnxshotError, TargetError
from onnxshot.graph import Model
from onnxshot.graph.load import first_line, load_model
from onnxshot.graph.macs import Shape, Shapes, concrete_shapes
from onnxshot.runtimes import openvino_rules
from onnxshot.runtimes.base import EmitOptions, Emitted, Feed, Finding, Runtime, notes_of, raise_refused
from onnxshot.runtimes.executed import Execution
from onnxshot.runtimes.openvino_executed import is_dequantized, read_execution
from onnxshot.runtimes.openvino_tables import keep_tables

EXACT = "f32"
"""Inference precision for comparing accuracy. OpenVINO's default is bfloat16 on CPUs that have it."""

_CPU, _BF16 = "CPU", "bfloat16"
_PLACES = ("Exception from ", "Check '", "FrontEnd API failed", "Summary:", "Model wasn't fully converted")


class OpenVino(Runtime):
    """OpenVINO's Python package, imported when it is needed. See `Runtime` for the methods."""

    format, suffix, extra = "openvino", ".xml", "openvino"

    def check(self) -> None:
        """Check that OpenVINO is installed. Raises TargetError, saying what to install, if it is not."""
        _package()

    def preflight(self, model: Model) -> list[Finding]:
        """The nodes whose quantization OpenVINO cannot read, computes wrongly or runs in float, with the reason."""
        return openvino_rules.findings(model)

    def emit(self, source: Path, folder: Path, stem: str, options: EmitOptions) -> Emitted:
        """Write the IR of an .onnx file: `stem`.xml and, with its weights, `stem`.bin.

        Free dimensions stay free, so ranges of shapes and builder options are ignored. The usual shapes are used to
        compute the work of each layer. Metadata of the file goes into the IR under rt_info, framework.

        Args:
            source: The quantized .onnx file.
            folder: An existing folder to write into.
            stem: Name of the files, without suffix.
            options: `half` stores float weights in 16 bits.

        Raises:
            TargetError: OpenVINO is not installed, or refuses the model.
            ModelError: The file cannot be read.
        """
        loaded = load_model(source)
        found = self.preflight(loaded)
        raise_refused(found, "OpenVINO", self.format)
        model = _read(source)
        path = folder / f"{stem}{self.suffix}"
        _number_nameless(model, {name for _, n in loaded.walk() for name in (n.name, *(t.name for t in n.outputs))})
        _package().save_model(model, str(path), compress_to_fp16=options.half)
        usual = {name: sizes[1] for name, sizes in options.shapes.items()}
        files = (path.name, path.with_suffix(".bin").name)
        executed = self.executed(path, loaded, usual)
        return Emitted(files, executed, (*notes_of(found), *_integers_note(loaded, executed)))

    def executed(self, path: Path, source: Model, feed_shapes: Shapes | None = None) -> Execution:
        """What each layer of an IR or .onnx file is compiled to, by the node names of the ONNX model.

        Args:
            path: The IR or .onnx file.
            source: The ONNX model it was made from.
            feed_shapes: Shapes of the inputs, for the amount of work. Other free dimensions count as 1.

        Raises:
            ModelError: The file does not load.
        """
        shapes = concrete_shapes(source, feed_shapes) | _sizes(path, feed_shapes or {})
        return read_execution(_compiled(path, threads=1, precision=EXACT).get_runtime_model(), source, shapes)

    def runs_here(self) -> str:
        """Why OpenVINO or its CPU plugin is missing; empty if both are here."""
        try:
            devices = _package().Core().available_devices
        except OnnxshotError as e:
            return str(e)
        return "" if _CPU in devices else "this OpenVINO has no CPU plugin"

    def load(
        self, path: Path, *, threads: int, options: EmitOptions | None = None, precision: str | None = EXACT
    ) -> Network:
        """Load an IR or .onnx file to run it on the CPU.

        Args:
            path: The file.
            threads: CPU threads of each inference.
            options: Not used.
            precision: OpenVINO's INFERENCE_PRECISION_HINT. None for OpenVINO's own default, which is what users get.

        Raises:
            ModelError: The file does not load.
        """
        return Network(path, _compiled(path, threads=threads, precision=precision))


class Network:
    """A model compiled by OpenVINO.

    Attributes:
        outputs: ONNX names of the outputs.
        precision: The inference precision OpenVINO chose, such as "f32".
    """

    def __init__(self, path: Path, compiled: Any) -> None:
        self._path, self._request, self._package = path, compiled.create_infer_request(), _package()
        self._inputs = [(_name(port), port.element_type) for port in compiled.inputs]
        self.outputs: tuple[str, ...] = tuple(map(_name, compiled.outputs))
        self.precision: str = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Run the model on one sample. Returns outputs by their ONNX names. Raises ModelError if the run fails."""
        request = self._request
        arrays = [self._values(feed, name, kind) for name, kind in self._inputs]  # tensors do not keep arrays alive
        try:
            for slot, values in enumerate(arrays):
                request.set_input_tensor(slot, self._tensor(values))
            request.start_async()  # `infer` also builds a dictionary of outputs, which takes as long as a small layer
            request.wait()
        except RuntimeError as e:
            raise ModelError(f"{self._path} fails in OpenVINO: {_message(e)}") from e
        return {name: _array(request.get_output_tensor(i)) for i, name in enumerate(self.outputs)}

    def _tensor(self, values: NDArray[Any]) -> Any:
        """The values as an OpenVINO tensor; bfloat16 by its bits, as OpenVINO does not accept it from numpy."""
        if values.dtype.name != _BF16:
            return self._package.Tensor(values, shared_memory=values.flags.writeable)
        package = self._package
        return package.Tensor(values.view(np.uint16), package.Shape(values.shape), package.Type.bf16)

    def _values(self, feed: Feed, name: str, kind: Any) -> NDArray[Any]:
        if name not in feed:
            raise ModelError(f"{self._path} asks for input {name!r}, which the sample does not hold")
        values = np.asarray(feed[name], order="C")
        package = self._package
        held = package.Type.bf16 if values.dtype.name == _BF16 else package.Type(values.dtype)
        if held != kind:  # OpenVINO would reinterpret its bytes
            wanted = kind.get_type_name()
            raise ModelError(f"input {name!r} of {self._path} is {wanted}; the sample holds {values.dtype}")
        return values


def _array(tensor: Any) -> NDArray[Any]:
    """A copy of a tensor's values; bfloat16 converted to float32, as `ort_runtime` does."""
    if tensor.element_type != _package().Type.bf16:
        return np.array(tensor.data)
    bits = np.array(tensor.data).view(np.uint16)
    values: NDArray[Any] = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    return values


def _name(port: Any) -> str:
    """The ONNX name of an input or output. After compilation a port may have several names."""
    name = port.get_node().get_friendly_name().removesuffix("/sink_port_0")
    return str(name if name in port.get_names() else port.any_name)


def _package() -> ModuleType:
    try:
        import openvino
    except ImportError as e:
        raise TargetError(f"OpenVINO is not installed: {first_line(e)}", "pip install 'onnxshot[openvino]'") from e
    module: ModuleType = openvino
    return module


def _read(path: Path) -> Any:
    """Read the file as OpenVINO's graph. Raises TargetError if OpenVINO refuses it."""
    core = _package().Core()
    try:
        model = core.read_model(str(path))
    except RuntimeError as e:
        raise TargetError(f"OpenVINO cannot read {path}: {_message(e)}") from e
    _use_hsigmoid(model)
    keep_tables(_package(), model)
    return model


def _compiled(path: Path, *, threads: int, precision: str | None) -> Any:
    # Pinned threads wait for whatever else runs on their core, such as another model's threads.
    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    if precision is not None:
        config["INFERENCE_PRECISION_HINT"] = precision
    try:
        return _package().Core().compile_model(_read(path), _CPU, config)
    except TargetError as e:
        raise ModelError(e.message, e.hint) from e
    except RuntimeError as e:
        raise ModelError(f"{path} does not load in OpenVINO: {_message(e)}") from e


def _integers_note(model: Model, executed: Execution) -> list[str]:
    """A note on how many weights that are dequantized for float nodes stay integers in memory."""
    asked = {node.label for _, node in model.walk() if is_dequantized(node)}
    if not asked:
        return []
    kept = sum(bool(ran.stored) and ran.name in asked for ran in executed.nodes)
    return [f"{kept} of {len(asked)} weights that are quantized alone stay integers when the IR is compiled"]


def _number_nameless(model: Any, known: Collection[str]) -> None:
    """Rename nodes without a name of their own, so that they have the same name in every process.

    OpenVINO numbers all nodes that a process has made.

    Args:
        model: OpenVINO's graph, which is changed in place.
        known: Names of the ONNX model, such as Concat_41. By chance this may be the default name of its own node, or of
            another node without a name. In the second case OpenVINO names its node Concat_41_1.
    """
    operations = model.get_ordered_ops()
    numbered = {op.get_name() for op in operations if op.get_friendly_name() == op.get_name()}
    named = {op.get_friendly_name(): op for op in operations if op.get_friendly_name() != op.get_name()}
    pushed = {name: op for name in numbered & set(known) if (op := named.get(f"{name}_1")) and f"{name}_1" not in known}
    kept = numbered & set(known) - pushed.keys()
    taken, numbers = {*named, *kept, *pushed}, count()
    for op in operations:
        if op.get_friendly_name() == op.get_name() and op.get_name() not in kept:
            names = (f"{op.get_type_name()}_{number}" for number in numbers)
            op.set_friendly_name(next(name for name in names if name not in taken))
    for name, op in pushed.items():
        op.set_friendly_name(name)


def _sizes(path: Path, feed_shapes: Shapes) -> dict[str, Shape]:
    """Shapes of tensors by ONNX name, as OpenVINO infers them. It follows shape arithmetic further than ONNX does."""
    model = _read(path)
    try:
        model.reshape({name: list(feed_shapes[name]) for name in map(_name, model.inputs) if name in feed_shapes})
    except RuntimeError:
        return {}  # inconsistent sizes: they only affect the amount of work, which is not worth an error
    outputs = (output for node in model.get_ordered_ops() for output in node.outputs())
    known = {name: out.partial_shape for out in outputs for name in out.get_names() if out.partial_shape.is_static}
    return {name: tuple(shape.to_shape()) for name, shape in known.items()}


def _use_hsigmoid(model: Any) -> None:
    """Replace HardSigmoid(1/6, 1/2) by HSigmoid: clip(x + 3, 0, 6) / 6.

    HardSigmoid only has a reference kernel, between two changes of layout. HSigmoid is fused into the previous op, and
    becomes HSwish with the product after it. A text recognizer with 28 of them takes 40 ms instead of 96.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "HardSigmoid":
            continue
        slope, offset = (node.input_value(i).get_node() for i in (1, 2))
        if any(n.get_type_name() != "Constant" for n in (slope, offset)):
            continue
        if np.allclose(slope.data, 1 / 6, rtol=1e-5) and np.allclose(offset.data, 0.5, rtol=1e-5):
            fused = _package().opset5.hsigmoid(node.input_value(0))
            fused.set_friendly_name(node.get_friendly_name())
            node.output(0).replace(fused.output(0))


def _message(error: BaseException) -> str:
    """OpenVINO's message without places in its source code."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(_PLACES) and not line.endswith("with a message:")]
    return first_line(told[0] if told else error)
