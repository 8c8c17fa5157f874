"""Profile one run of a model in ONNX Runtime without optimizations: which nodes ran, how often, on what shapes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import ModelError
from onnxshot.files.atomic_write import scratch
from onnxshot.runtimes.ort_runtime import Feed, input_spec, one_line, run_session, session

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One run of one node.

    Attributes:
        node: Its name.
        inputs: Shapes of the tensors it read; optional inputs that are absent are left out.
        outputs: Shapes of the tensors it made, likewise.
    """

    node: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]


def profiled(
    model: bytes, sample: Feed | None, *, threads: int, folder: Path | None, what: str
) -> tuple[list[Event], dict[str, Shape]]:
    """Profile one run.

    If the model does not run on zeros, or does not load without optimizations, there are no events.

    Args:
        model: Serialized model.
        sample: Input arrays; None to run zeros.
        threads: CPU threads.
        folder: Folder of external data.
        what: Name of the model in error messages.

    Returns:
        Every run of every node, and the shapes of the inputs.

    Raises:
        ModelError: The model does not run on the sample.
    """
    with scratch() as made:
        try:
            run = session(model, optimize=False, threads=threads, folder=folder, profile=made / "profile")
        except ModelError:
            run = None
        feed: Feed = sample if sample is not None else {} if run is None else _zeros(run)
        shapes = {name: tuple(value.shape) for name, value in feed.items()}
        if run is None:
            return [], shapes
        try:
            return _events(run, feed, what), shapes
        except ModelError:
            if sample is not None:
                raise
            run.end_profiling()  # closes the file, so that its folder can be removed
            return [], shapes


def _zeros(run: Any) -> dict[str, NDArray[Any]]:
    specs = map(input_spec, run.get_inputs())
    return {s.name: np.zeros([d if isinstance(d, int) else 1 for d in s.shape or ()], s.dtype) for s in specs}


def _events(run: Any, sample: Feed, what: str) -> list[Event]:
    try:
        run_session(run, None, {arg.name: sample[arg.name] for arg in run.get_inputs()})
    except KeyError as e:
        raise ModelError(f"{what} asks for input {e}, which the sample does not hold") from e
    except RuntimeError as e:
        if "Numpy type" not in str(e):  # the run was fine: its output has no numpy type
            raise ModelError(f"{what} fails in ONNX Runtime: {one_line(e)}") from e
    except Exception as e:  # ONNX Runtime's errors share no base class
        raise ModelError(f"{what} fails in ONNX Runtime: {one_line(e)}") from e
    events: list[dict[str, Any]] = json.loads(Path(run.end_profiling()).read_bytes())
    kernels = (e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"))
    return [
        Event(
            e["name"].removesuffix("_kernel_time"),
            _shapes(e["args"].get("input_type_shape", [])),
            _shapes(e["args"].get("output_type_shape", [])),
        )
        for e in kernels
    ]


def _shapes(stated: list[dict[str, list[int]]]) -> tuple[Shape, ...]:
    return tuple(tuple(next(iter(entry.values()))) for entry in stated)
