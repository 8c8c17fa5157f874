"""Profile one run of a model in ONNX Runtime without optimizations: which nodes ran, how often, on what shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.calibration.checks import InputSpec
from onnxshot.errors import ModelError
from onnxshot.files.atomic_write import scratch
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.mapped_weights import serialized
from onnxshot.runtimes.ort_runtime import Feed, Runner, as_array, input_spec, is_large, one_line, run_session, session
from onnxshot.runtimes.parted_run import Opened, walk_parts
from onnxshot.runtimes.parts import Parts

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
    model: LeanModel,
    sample: Feed | None,
    *,
    threads: int,
    look: Callable[[LeanModel], None] = lambda _: None,
) -> tuple[list[Event], dict[str, Shape]]:
    """Profile one run.

    If the model does not run on zeros, or does not load without optimizations, there are no events.

    Args:
        model: The model. A large one is run in parts.
        sample: Input arrays; None to run zeros.
        threads: CPU threads.
        look: Called with each part, or with the whole model, before it is run.

    Returns:
        Every run of every node, and the shapes of the inputs. Nodes that parts compute again are in the first of them.

    Raises:
        ModelError: The model does not run on the sample.
    """
    if is_large(model):
        return _profiled_in_parts(model, sample, threads, look)
    look(model)
    with serialized(model) as (source, folder), scratch() as made:
        try:
            run = session(
                source, optimize=False, threads=threads, folder=folder, profile=made / "profile", pack=False,
                label=model.label,
            )  # fmt: skip
        except ModelError:
            run = None
        feed: Feed = sample if sample is not None else {} if run is None else _zeros(run)
        shapes = {name: tuple(value.shape) for name, value in feed.items()}
        if run is None:
            return [], shapes
        try:
            return _events(run, None, feed, model.label)[0], shapes
        except ModelError:
            if sample is not None:
                raise
            run.end_profiling()  # closes the file, so that its folder can be removed
            return [], shapes


def _profiled_in_parts(
    model: LeanModel, sample: Feed | None, threads: int, look: Callable[[LeanModel], None]
) -> tuple[list[Event], dict[str, Shape]]:
    parts = Parts(model, memory.part_bytes())
    ends = [info.name for info in model.proto.graph.output]

    def opened(number: int, part: LeanModel, passes: Sequence[str]) -> Opened[list[Event]]:
        own = [name for name in ends if name in parts.parts[number].makes]
        wanted = list(dict.fromkeys((*passes, *own)))
        if not wanted:
            return lambda feed: ({}, [])
        part = part.with_outputs(wanted)
        look(part)

        def run(feed: Feed) -> tuple[dict[str, NDArray[Any]], list[Event]]:
            with serialized(part) as (source, folder), scratch() as made:
                one = session(
                    source, optimize=False, threads=threads, folder=folder, profile=made / "profile", pack=False,
                    label=model.label,
                )  # fmt: skip
                events, values = _events(one, list(passes), feed, model.label)
                return values, events

        return run

    feed = sample if sample is not None else _zero_feed(Runner(model).inputs)
    shapes = {name: tuple(value.shape) for name, value in feed.items()}
    found, seen = list[Event](), set[str]()
    try:
        for _, _, events in walk_parts(parts, [feed], opened, workers=1):
            found += [event for event in events if event.node not in seen]
            seen |= {event.node for event in events}
    except ModelError:
        if sample is not None:
            raise
        return [], shapes
    return found, shapes


def _zeros(run: Any) -> dict[str, NDArray[Any]]:
    return _zero_feed(map(input_spec, run.get_inputs()))


def _zero_feed(specs: Iterable[InputSpec]) -> dict[str, NDArray[Any]]:
    return {s.name: np.zeros([d if isinstance(d, int) else 1 for d in s.shape or ()], s.dtype) for s in specs}


def _events(
    run: Any, names: list[str] | None, sample: Feed, what: str
) -> tuple[list[Event], dict[str, NDArray[Any]]]:
    """Run a session, and return every run of every node, and the outputs of these names."""
    values = list[Any]()
    try:
        given = {arg.name: sample[arg.name] for arg in run.get_inputs()}
        values = run_session(run, names or None, given)
    except KeyError as e:
        raise ModelError(f"{what} asks for input {e}, which the sample does not hold") from e
    except RuntimeError as e:
        if "Numpy type" not in str(e):  # the run was fine: its output has no numpy type
            raise ModelError(f"{what} fails in ONNX Runtime: {one_line(e)}") from e
    except Exception as e:  # ONNX Runtime's errors share no base class
        raise ModelError(f"{what} fails in ONNX Runtime: {one_line(e)}") from e
    events: list[dict[str, Any]] = json.loads(Path(run.end_profiling()).read_bytes())
    kernels = (e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"))
    made = {} if names is None else {name: as_array(value) for name, value in zip(names, values, strict=False)}
    return [
        Event(
            e["name"].removesuffix("_kernel_time"),
            _shapes(e["args"].get("input_type_shape", [])),
            _shapes(e["args"].get("output_type_shape", [])),
        )
        for e in kernels
    ], made


def _shapes(stated: list[dict[str, list[int]]]) -> tuple[Shape, ...]:
    return tuple(tuple(next(iter(entry.values()))) for entry in stated)
