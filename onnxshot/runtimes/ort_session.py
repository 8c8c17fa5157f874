"""Run models in ONNX Runtime: make sessions, feed arrays, return arrays. Its errors become messages of one line."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import ModelProto

from onnxshot.calibration.checks import InputSpec, NamedFeed
from onnxshot.errors import CalibrationError, ModelError, TargetError, UsageError
from onnxshot.files.messages import shown
from onnxshot.graph.lean_parse import parse_lean
from onnxshot.graph.load import first_line

Feed = Mapping[str, NDArray[Any]]

CPU = ("CPUExecutionProvider",)
_PROVIDERS = {  # device -> (providers in order of preference, what to install)
    "cpu": (CPU, "pip install onnxruntime"),
    "cuda": (("CUDAExecutionProvider", *CPU), "pip install onnxruntime-gpu"),
    "openvino": (("OpenVINOExecutionProvider", *CPU), "pip install onnxruntime-openvino"),
}
IN_MEMORY = "the model in memory"
"""How messages name a model that is run from bytes."""
_TYPES: dict[str, Any] = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "string": np.str_,
    "bool": np.bool_,
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_BFLOAT16 = "tensor(bfloat16)"
_SHOWN = 6  # inputs in a message
_NOT_IN_NUMPY = ("float8", "float4", "int4", "uint4", "int2", "uint2", "complex")


def runtime() -> ModuleType:
    """The onnxruntime package. Raises TargetError if it is not installed."""
    try:
        import onnxruntime
    except ImportError as e:
        raise TargetError(f"ONNX Runtime is not installed: {first_line(e)}", "pip install onnxruntime") from e
    module: ModuleType = onnxruntime
    return module


def providers_for(device: str) -> tuple[str, ...]:
    """Execution providers of a device.

    Args:
        device: "cpu", "cuda" or "openvino".

    Raises:
        TargetError: This ONNX Runtime was built without the device.
        UsageError: The device is unknown.
    """
    if device not in _PROVIDERS:
        raise UsageError(f"ONNX Runtime has no device {device!r}", f"devices: {', '.join(_PROVIDERS)}")
    providers, fix = _PROVIDERS[device]
    if providers[0] not in runtime().get_available_providers():
        raise TargetError(f"this ONNX Runtime was built without {providers[0]}", fix)
    return providers


def session(
    model: Path | bytes,
    *,
    optimize: bool = True,
    threads: int = 2,
    providers: Sequence[str] = CPU,
    save_optimized: Path | None = None,
    profile: Path | None = None,
    folder: Path | None = None,
    keep_plans: bool = True,
    inner: bool = False,
    pack: bool = True,
    label: str = "",
) -> Any:
    """Create an InferenceSession.

    Its threads sleep instead of spinning when idle, so that interleaved models do not disturb each other. An `inner`
    model, or one with float8, is loaded with fewer graph optimizations if it does not load with all of them.

    Args:
        model: A file or serialized model.
        optimize: Whether graph optimizations are on.
        threads: CPU threads of each inference.
        providers: Execution providers, preferred ones first.
        save_optimized: File to write the optimized graph to; its weights go to a file beside it, named `.data`.
        profile: Prefix of a profile file to write.
        folder: Folder of external data of a serialized model.
        keep_plans: Keep a memory plan for each combination of input shapes.
        inner: True if the model is a copy made to show inner tensors of another one.
        pack: Copy weights into the layout of the kernels, which takes time and memory and makes runs faster.
        label: How messages name the model; by default its path.

    Raises:
        ModelError: ONNX Runtime refuses the model.
        TargetError: The first provider cannot start.
    """
    ort = runtime()
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal only: errors are also raised as exceptions
    options.enable_mem_pattern = keep_plans
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not pack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if save_optimized is not None:
        options.optimized_model_filepath = str(save_optimized)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{save_optimized.name}.data"
        )
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    source: Any = model if isinstance(model, bytes) else str(model)
    if isinstance(model, Path) and not _is_unicode(model):  # ONNX Runtime only accepts paths in UTF-8
        source, folder = model.read_bytes(), model.parent
    if folder is not None and _is_unicode(folder.resolve()):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    try:
        try:
            made = ort.InferenceSession(source, options, providers=list(providers))
        except Exception:
            lower = _lower_levels(level, model, inner=inner and optimize)
            if not lower:
                raise
            made = _first_that_loads(source, options, providers, lower)
    except Exception as e:  # ONNX Runtime's errors share no base class
        raise ModelError(f"{label or label_of(model)} does not load in ONNX Runtime: {one_line(e)}") from e
    if providers and made.get_providers()[0] != providers[0]:
        raise TargetError(f"{providers[0]} did not start; ONNX Runtime fell back to {made.get_providers()[0]}")
    return made


def _lower_levels(level: Any, model: Path | bytes, *, inner: bool) -> list[Any]:
    """The optimization levels to try if the model does not load with all optimizations."""
    if inner:
        # The layout optimizer drops the output of a Conv that an Add reads too, and then refuses its own graph.
        return [level.ORT_ENABLE_EXTENDED, level.ORT_DISABLE_ALL]
    # The optimizers treat every Q and DQ as one of integers, and then refuse their own graph.
    return [level.ORT_DISABLE_ALL] if _holds_float8(model) else []


def _first_that_loads(source: Any, options: Any, providers: Sequence[str], levels: Sequence[Any]) -> Any:
    """The session at the first of these levels that loads. Raises the last error if none does."""
    for number, level in enumerate(levels, 1):
        options.graph_optimization_level = level
        try:
            return runtime().InferenceSession(source, options, providers=list(providers))
        except Exception:
            if number == len(levels):
                raise
    raise AssertionError("no level was given")


class SessionRunner:
    """A model in one session of ONNX Runtime.

    Attributes:
        inputs: Name, type and shape of each input.
        outputs: Names of the outputs that `run` returns.
        skipped: Outputs that numpy cannot hold, with their type.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        optimize: bool = True,
        threads: int = 2,
        providers: Sequence[str] = CPU,
        outputs: Sequence[str] | None = None,
        folder: Path | None = None,
        keep_plans: bool = True,
        whole: bool = False,
        inner: bool = False,
        pack: bool = True,
        label: str = "",
        profile: Path | None = None,
        save_optimized: Path | None = None,
    ) -> None:
        """Load a model; the arguments not listed are those of `session`.

        Args:
            model: A file or serialized model.
            optimize: Whether graph optimizations are on.
            threads: CPU threads of each inference.
            providers: Execution providers, preferred ones first.
            outputs: Outputs to return; None for all that numpy can hold.
            folder: Folder of external data of a serialized model.
            keep_plans: As in `session`.
            whole: Also return sequences, maps and optionals of numbers, each as one array (see `as_array`).
            inner: As in `session`.
            pack: As in `session`.
            label: How messages name the model; by default its path.
            profile: As in `session`.
            save_optimized: As in `session`.
        """
        self._label = label or label_of(model)
        self._session = session(
            model, optimize=optimize, threads=threads, providers=providers, folder=folder, keep_plans=keep_plans,
            inner=inner, pack=pack, label=label, profile=profile, save_optimized=save_optimized,
        )  # fmt: skip
        self.inputs: tuple[InputSpec, ...] = tuple(map(input_spec, self._session.get_inputs()))
        found = self._session.get_outputs()
        held = tuple(o.name for o in found if _numpy_holds(o.type, whole=whole))
        self.skipped: dict[str, str] = {o.name: o.type for o in found if not _numpy_holds(o.type, whole=whole)}
        wanted = held if outputs is None else outputs
        self._runs_for_nothing = outputs is None
        self.outputs: tuple[str, ...] = tuple(name for name in wanted if name not in self.skipped)

    def end_profiling(self) -> Path:
        """Close the profile of a session that was given one, and return its path."""
        return Path(self._session.end_profiling())

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run the model on one sample.

        Args:
            feed: Input arrays by name. Entries that are no input of the model are ignored.
            outputs: Outputs to return; None for all. With None, the model runs even if numpy can hold none of its
                outputs.

        Returns:
            Output arrays by name, without those in `skipped`.

        Raises:
            ModelError: An input is missing, or the run fails.
        """
        names = list(self.outputs if outputs is None else outputs)
        bare = not names and outputs is None and self._runs_for_nothing
        if not names and not bare:
            return {}
        missing = [spec.name for spec in self.inputs if spec.name not in feed]
        if missing:
            raise ModelError(
                f"{self._label} asks for input {missing[0]!r}, which the sample does not hold",
                f"it holds {', '.join(map(shown, feed))}: models that run on the same samples have the same inputs",
            )
        try:
            values = run_session(
                self._session, None if bare else names, {spec.name: feed[spec.name] for spec in self.inputs}
            )
        except Exception as e:  # ONNX Runtime's errors share no base class
            if isinstance(feed, NamedFeed):
                raise _of_sample(self._label, feed, one_line(e)) from e
            raise ModelError(f"{self._label} fails in ONNX Runtime: {one_line(e)}") from e
        return {} if bare else {name: as_array(value) for name, value in zip(names, values, strict=True)}


def run_session(session: Any, names: Sequence[str] | None, feed: Feed) -> list[Any]:
    """Run a session on arrays. bfloat16, for which Python has no buffers, is passed in and out by its bits."""
    wanted = None if names is None else set(names)
    asked = [out for out in session.get_outputs() if wanted is None or out.name in wanted]
    halves = {name for name, value in feed.items() if value.dtype.name == "bfloat16"}
    if not halves and not any(out.type == _BFLOAT16 for out in asked):
        found: list[Any] = session.run(names, feed)
        return found
    ort = runtime()
    given = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(value.view(np.uint16), onnx.TensorProto.BFLOAT16)
        if name in halves
        else ort.OrtValue.ortvalue_from_numpy(value)
        for name, value in feed.items()
    }
    order = [out.name for out in asked] if names is None else list(names)
    return [_of_value(value) for value in session.run_with_ort_values(order, given)]


def _of_value(value: Any) -> Any:
    """The array of an OrtValue; bfloat16 converted to float32."""
    if value.data_type() != _BFLOAT16:
        return value.numpy()
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, ml_dtypes.bfloat16).reshape(value.shape()).astype(np.float32)


def as_array(value: Any) -> NDArray[Any]:
    """An output as an array. Equal outputs give equal arrays, even if they are no tensors.

    A sequence of tensors of equal shape is stacked, [n, ...]. Otherwise their values are concatenated. A map becomes
    its values, in the order of its keys. A sequence of maps with the same keys, as ZipMap makes, becomes [n, keys]. An
    empty optional becomes an empty array.
    """
    if value is None:
        return np.zeros(0, np.float32)
    if isinstance(value, dict):
        return np.array([value[key] for key in sorted(value)])
    if not isinstance(value, list):
        return np.asarray(value)
    parts = [as_array(part) for part in value]
    if parts and all(part.shape == parts[0].shape for part in parts):
        return np.stack(parts)
    return np.concatenate([part.reshape(-1) for part in parts]) if parts else np.zeros(0, np.float32)


def _is_unicode(path: Path) -> bool:
    try:
        return bool(str(path).encode("utf-8"))
    except UnicodeEncodeError:
        return False


class SampleError(CalibrationError, ModelError):
    """A model that loads does not run on a sample of the user: an index out of range, or lengths that do not match.

    It is also a ModelError, for callers that only ask whether the model runs.
    """


def _of_sample(label: str, feed: NamedFeed, reason: str) -> SampleError:
    """The error of a failed run.

    Names the sample, and the input if the runtime's message contains one of its values.
    """
    found = re.search(r"idx=(-?\d+)", reason)
    integers = {name: x for name, x in feed.items() if x.dtype.kind in "iu"}
    guilty = [name for name, x in integers.items() if found is not None and (x == int(found[1])).any()]
    if found is not None and guilty:
        hint = f"input {guilty[0]!r} holds {found[1]}, which is outside the table it indexes"
    else:
        hint = ", ".join(f"{name!r} is {x.dtype} {list(x.shape)}" for name, x in list(feed.items())[:_SHOWN])
        if "Invalid input shape" in reason:  # what a Conv or a pool says of less than its kernel spans
            hint += ": it may be too short or too small for the model; leave it out"
    return SampleError(f"{label} fails on sample {feed.sample!r} in ONNX Runtime: {reason}", hint)


def _holds_float8(model: Path | bytes) -> bool:
    """Whether a constant of the model is float8; False if the model cannot be read."""
    try:
        proto = onnx.load_from_string(model if isinstance(model, bytes) else model.read_bytes())
    except (OSError, DecodeError):
        return False
    return any(t.data_type == onnx.TensorProto.FLOAT8E4M3FN for t in proto.graph.initializer)


def one_line(error: BaseException) -> str:
    """ONNX Runtime's message without its prefix of codes, and with a missing space added."""
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", first_line(error))
    return re.sub(r"^(Load model from .* failed:)(?=\S)", r"\1 ", line)


def label_of(model: Path | bytes) -> str:
    """How messages name the model."""
    return str(model) if isinstance(model, Path) else IN_MEMORY


def stored_bytes(model: Path) -> int:
    """Bytes of a model's file and its external data files. Raises ModelError if it cannot be read."""
    try:
        return model.stat().st_size + external_bytes(parse_lean(model), model.parent, own=model.name)
    except (OSError, DecodeError) as e:
        raise ModelError(f"{label_of(model)} cannot be read: {first_line(e)}") from e


def external_bytes(proto: ModelProto, folder: Path, own: str = "") -> int:
    """Bytes of the external data files of a model in this folder, without the model's `own` file."""
    places = {e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"} - {own}
    return sum(int(file.stat().st_size) for place in places if (file := folder / place).is_file())


def input_spec(arg: Any) -> InputSpec:
    """Name, type and shape of a session's input.

    Raises ModelError for sequences, maps and types numpy does not have.
    """
    match = re.fullmatch(r"tensor\((\w+)\)", arg.type)
    if match is None or match[1] not in _TYPES:
        raise ModelError(f"input {arg.name!r} is a {arg.type}, which cannot be fed from arrays")
    shape = tuple(d if isinstance(d, int | str) else None for d in arg.shape)
    return InputSpec(arg.name, np.dtype(_TYPES[match[1]]), shape)


def _numpy_holds(kind: str, *, whole: bool = False) -> bool:
    """Whether outputs of this type are returned. `whole`: including sequences, maps and optionals of numbers."""
    match = re.fullmatch(r"tensor\((\w+)\)", kind)
    if match is None and whole:
        match = re.fullmatch(r"(?:seq\(|optional\(|map\(\w+,)+tensor\((\w+)\)+", kind)
    return match is not None and not match[1].startswith(_NOT_IN_NUMPY)
