"""Run models of any size in ONNX Runtime: small ones in one session, large ones part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import ValueInfoProto

from onnxshot import memory
from onnxshot.calibration.checks import InputSpec
from onnxshot.errors import ModelError
from onnxshot.graph.lean_model import LeanModel, input_dtype
from onnxshot.runtimes.mapped_weights import serialized
from onnxshot.runtimes.ort_session import (
    CPU,
    IN_MEMORY,
    Feed,
    SampleError,
    SessionRunner,
    as_array,
    external_bytes,
    input_spec,
    label_of,
    one_line,
    providers_for,
    run_session,
    runtime,
    session,
    stored_bytes,
)
from onnxshot.runtimes.parallel import in_order
from onnxshot.runtimes.parted_run import CHUNK, Opened, Step, walk_parts
from onnxshot.runtimes.parts import Parts
from onnxshot.runtimes.spool import Spool

__all__ = [
    "CPU", "IN_MEMORY", "Feed", "Runnable", "Runner", "SampleError", "as_array", "external_bytes", "input_spec",
    "is_large", "label_of", "one_line", "providers_for", "run_session", "runtime", "session", "stored_bytes",
]  # fmt: skip

Values = dict[str, NDArray[Any]]
Runnable = Path | bytes | LeanModel
"""A model that `Runner` takes: a file, a serialized model or a lean one."""
_PACKED_FROM = 4  # runs of a session from which packing weights saves more time than it takes


class Runner:
    """A model to run in ONNX Runtime.

    A model with more than `memory.part_bytes()` of weights is run in parts. The session of a part is created when the
    part is run, and let go after it. Run such a model on many samples at once, with `run_all` or `events`.

    Attributes:
        inputs: Name, type and shape of each input.
        outputs: Names of the outputs that are returned.
        skipped: Outputs that numpy cannot hold, with their type.
        parts: The parts; None for a model that is run as a whole.
    """

    def __init__(
        self,
        model: Path | bytes | LeanModel,
        *,
        optimize: bool = True,
        threads: int = 2,
        providers: Sequence[str] = CPU,
        outputs: Sequence[str] | None = None,
        folder: Path | None = None,
        keep_plans: bool = True,
        whole: bool = False,
        inner: bool = False,
        stops: Sequence[Sequence[str]] | None = None,
        split: bool = True,
    ) -> None:
        """Load a model, or cut it into parts.

        Args:
            model: A file, a serialized model or a lean one.
            optimize: Whether graph optimizations are on.
            threads: CPU threads of each inference.
            providers: Execution providers, preferred ones first.
            outputs: Outputs to return; None for all that numpy can hold.
            folder: Folder of external data of a serialized model, which is then run as a whole.
            keep_plans: As in `session`.
            whole: Also return sequences, maps and optionals of numbers, each as one array (see `as_array`).
            inner: As in `session`.
            stops: Cut the model as another one is cut, whose `parts.stops` these are.
            split: Run a model over the budget in parts; else in one session that maps its weights, to time it.
        """
        how: dict[str, Any] = {
            "optimize": optimize, "threads": threads, "providers": providers, "keep_plans": keep_plans, "whole": whole,
            "inner": inner,
        }  # fmt: skip
        self._how = how
        self._whole: SessionRunner | None = None
        self.parts: Parts | None = None
        lean = _lean(model) if folder is None else None
        if lean is not None and split and (stops or lean.weight_bytes > memory.part_bytes()):
            self.parts = Parts(lean, memory.part_bytes(), stops)
            self._adopt(lean, outputs)
            return
        if lean is None:
            assert not isinstance(model, LeanModel)
            self._whole = SessionRunner(model, outputs=outputs, folder=folder, **how)
        else:
            with serialized(lean) as (source, place):
                self._whole = SessionRunner(source, outputs=outputs, folder=place, label=lean.label, **how)
        self.inputs: tuple[InputSpec, ...] = self._whole.inputs
        self.outputs: tuple[str, ...] = self._whole.outputs
        self.skipped: dict[str, str] = self._whole.skipped

    def _adopt(self, lean: LeanModel, outputs: Sequence[str] | None) -> None:
        """Take over what a session tells of a model, without creating one."""
        graph = lean.proto.graph
        self.inputs = tuple(_spec(info) for info in graph.input if not lean.holds(info.name))
        self.skipped = {info.name: kind for info in graph.output if (kind := _unheld(info, whole=self._how["whole"]))}
        wanted = [info.name for info in graph.output] if outputs is None else outputs
        self.outputs = tuple(name for name in wanted if name not in self.skipped)
        self._model = lean

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> Values:
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
        if self._whole is not None:
            return self._whole.run(feed, outputs)
        return next(iter(self.run_all([feed], 1, outputs)))

    def run_all(
        self, feeds: Iterable[Feed], workers: int, outputs: Sequence[str] | None = None, *, step: Step | None = None
    ) -> Iterator[Values]:
        """Yield what `run` returns for every sample, in order.

        Memory: outputs of a few samples; in parts, outputs past `memory.held_bytes()` wait in a temporary file.

        Args:
            feeds: Samples.
            workers: Samples that run at once.
            outputs: As in `run`.
            step: Called as (part, parts, samples done, samples), for a model in parts.
        """
        if self._whole is not None:
            whole = self._whole
            yield from in_order(lambda feed: whole.run(feed, outputs), feeds, workers)
            return
        rest = iter(feeds)
        while chunk := list(islice(rest, CHUNK)):
            with Spool() as spool:
                names = [dict[str, None]() for _ in chunk]
                for sample, values in self.events(chunk, workers, outputs, step=step):
                    names[sample] |= dict.fromkeys(values)
                    for name, value in values.items():
                        spool.put((sample, name), value)
                order = list(self.outputs if outputs is None else outputs)
                for sample in range(len(chunk)):
                    yield {name: spool.get((sample, name)) for name in order if name in names[sample]}
                    for name in names[sample]:
                        spool.drop((sample, name))

    def events(
        self, feeds: Iterable[Feed], workers: int, outputs: Sequence[str] | None = None, *, step: Step | None = None
    ) -> Iterator[tuple[int, Values]]:
        """Yield (sample, outputs of one part) for each part and sample, so that tensors of all depths are never held.

        Arguments as in `run_all`. A model that runs as a whole is one part.
        """
        if self._whole is not None:
            yield from enumerate(self.run_all(feeds, workers, outputs))
            return
        assert self.parts is not None
        names = [n for n in (self.outputs if outputs is None else outputs) if n not in self.skipped]
        given = {spec.name for spec in self.inputs}
        fixed = {name: self._model.array(name) for name in names if self._model.holds(name)}
        feeds = feeds if isinstance(feeds, Sequence) else iter(feeds)
        seen: set[int] = set()
        kept: dict[int, Values] = {}

        def noted(feed: Feed, sample: int) -> Feed:
            kept[sample] = {name: feed[name] for name in names if name in given and name in feed} | fixed
            return feed

        if fixed or given.intersection(names):
            feeds = [noted(feed, i) for i, feed in enumerate(feeds)]
        for _, sample, values in walk_parts(
            self.parts, feeds, self._opener(names, len(feeds) if isinstance(feeds, Sequence) else CHUNK),
            workers=workers, step=step, count=self.parts.until(names) if outputs is not None else None,
        ):  # fmt: skip
            if sample not in seen:
                seen.add(sample)
                values = kept.pop(sample, {}) | values
            if values or len(self.parts) == 1:
                yield sample, values

    def visit(
        self, feeds: Iterable[Feed], see: Callable[[int, Values], None], workers: int,
        outputs: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Call `see` with what `events` yields."""
        for sample, values in self.events(feeds, workers, outputs):
            see(sample, values)

    def _opener(self, names: Sequence[str], samples: int) -> Callable[[int, LeanModel, Sequence[str]], Opened[Values]]:
        parts = self.parts
        assert parts is not None

        def opened(number: int, model: LeanModel, passes: Sequence[str]) -> Opened[Values]:
            own = [name for name in names if name in parts.parts[number].makes]
            wanted = list(dict.fromkeys((*passes, *own)))
            if not wanted:
                return lambda feed: ({}, {})
            packed = samples >= _PACKED_FROM and model.weight_bytes <= memory.part_bytes()
            with serialized(model.with_outputs(wanted)) as (source, folder):
                runner = SessionRunner(source, outputs=None, folder=folder, pack=packed, label=model.label, **self._how)

            def run(feed: Feed) -> tuple[Mapping[str, NDArray[Any]], Values]:
                found = runner.run(feed, [name for name in wanted if name not in runner.skipped])
                return found, {name: found[name] for name in own if name in found}

            return run

        return opened

    @cached_property
    def in_parts(self) -> int:
        """The number of parts; 1 for a model that runs as a whole."""
        return len(self.parts) if self.parts is not None else 1


def is_large(model: Path | bytes | LeanModel) -> bool:
    """Whether a model runs in parts. Raises ModelError if a file cannot be read."""
    lean = _lean(model)
    return lean is not None and lean.weight_bytes > memory.part_bytes()


def _lean(model: Path | bytes | LeanModel) -> LeanModel | None:
    """The model as a lean one if it is one, or if it may be too large for one session; else None."""
    if isinstance(model, LeanModel):
        return model
    most = memory.part_bytes()
    if isinstance(model, bytes):
        return LeanModel.of(model) if len(model) > most else None
    try:
        size = model.stat().st_size
    except OSError:
        return None  # creating the session raises the right error
    if size <= most and _external_or_none(model) <= most:
        return None
    return LeanModel.of(model)


def _external_or_none(model: Path) -> int:
    try:
        return stored_bytes(model)
    except ModelError:
        return 0


def _spec(info: ValueInfoProto) -> InputSpec:
    dtype = input_dtype(info)
    if dtype is None:
        kind = info.type.WhichOneof("value")
        raise ModelError(f"input {info.name!r} is a {kind}, which cannot be fed from arrays")
    shape = info.type.tensor_type
    if not shape.HasField("shape"):
        return InputSpec(info.name, dtype, None)
    dims = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in shape.shape.dim)
    return InputSpec(info.name, dtype, dims)


def _unheld(info: ValueInfoProto, *, whole: bool) -> str:
    """The type of an output that is not returned; else empty. `whole`: sequences, maps and optionals are."""
    kind = info.type.WhichOneof("value")
    if kind in (None, "tensor_type"):
        dtype = input_dtype(info)
        return dtype.name if dtype is not None and dtype.name.startswith(("float8", "float4", "int4", "uint4")) else ""
    return "" if whole else str(kind)
