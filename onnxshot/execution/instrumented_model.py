"""Instrument the float model for calibration: nodes inside it reduce each tensor to extremes and a subsample.

Only the reduced values leave the graph, not the tensors.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxshot.calibration.observers import Glimpse, glimpse, row_axes
from onnxshot.calibration.sampling import MOST, STRIDES, lengths
from onnxshot.comparison.random_nodes import fix_randomness
from onnxshot.errors import ModelError
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Model, weights
from onnxshot.graph.save import write
from onnxshot.runtimes.ort_runtime import CPU, Feed, Runner

IN_MEMORY = 32_000_000
"""Bytes of weights above which a model runs from a temporary file.

ONNX Runtime maps a file into memory. Of a model given in memory it holds three copies for a while.
"""

Shape = tuple[int | str | None, ...]

LEAST_OPSET = 13
"""The lowest opset whose models can be instrumented."""
_MARK = "onnxshot_probe_"
_VALUES, _SIZES = _MARK + "values", _MARK + "sizes"


class Probe(ABC):
    """Runs a model and returns a glimpse of the named tensors: what calibration keeps of one sample.

    Args:
        model: The model.
        names: Tensors to observe.
        channels: Those of `names` that are also reduced per channel of their last axis.
        threads: CPU threads of the session.
        providers: Execution providers of ONNX Runtime.
    """

    def __init__(
        self,
        model: Model,
        names: Sequence[str],
        channels: Collection[str],
        *,
        threads: int,
        providers: Sequence[str] = CPU,
    ) -> None:
        self.names = list(names)
        self.channels = [i for i, name in enumerate(names) if name in channels]
        change, outputs = self._change(model)
        with _runnable(model, change) as (source, folder):
            self._runner = Runner(
                source, threads=threads, providers=providers, outputs=outputs, folder=folder, keep_plans=False,
                inner=True,
            )

    @abstractmethod
    def _change(self, model: Model) -> tuple[Callable[[ModelProto], None], Sequence[str]]:
        """The function that edits the model before it runs, and the outputs of the edited model."""

    @abstractmethod
    def observe(self, feed: Feed) -> Glimpse:
        """Run the model on one sample. Raises ModelError if the run fails."""


def probe(
    model: Model, names: Sequence[str], channels: Collection[str], *, threads: int, providers: Sequence[str] = CPU
) -> Probe:
    """A probe of the named tensors.

    Falls back to `OutsideProbe` if the model cannot be instrumented; arguments as in `Probe`.
    """
    with contextlib.suppress(ModelError):
        if model.opset >= LEAST_OPSET:
            return InsideProbe(model, names, channels, threads=threads, providers=providers)
    return OutsideProbe(model, names, channels, threads=threads, providers=providers)


class OutsideProbe(Probe):
    """Returns whole tensors from the model and reduces them in numpy.

    For models that cannot be instrumented, and to check `InsideProbe`.
    """

    def _change(self, model: Model) -> tuple[Callable[[ModelProto], None], Sequence[str]]:
        return partial(_expose, names=self.names), self.names

    def values(self, feed: Feed) -> list[NDArray[Any]]:
        """The whole tensors, in the order of the names."""
        found = self._runner.run(feed)
        return [found[name] for name in self.names]

    def observe(self, feed: Feed) -> Glimpse:
        """Run the model on one sample. Raises ModelError if the run fails."""
        return glimpse(self.values(feed), self.channels)


class InsideProbe(Probe):
    """Reduces each tensor in the graph right after it is made, in little more memory than inference takes.

    ReduceMin and ReduceMax of ONNX Runtime ignore NaN. The subsample shows it.
    """

    def __init__(
        self, model: Model, names: Sequence[str], channels: Collection[str], **how: Any  # as of Probe
    ) -> None:
        super().__init__(model, names, channels, **how)
        self._layouts = Layouts(self.names, self.channels)
        self._outside: OutsideProbe | None = None
        self._make_outside = partial(OutsideProbe, model, names, channels, **how)

    def _change(self, model: Model) -> tuple[Callable[[ModelProto], None], Sequence[str]]:
        tensors = model.tensors()
        casts = {name for name in self.names if model.elem_type(tensors[name]) != TensorProto.FLOAT}
        shapes = {name: model.shape(tensors[name]) for name in self.names}
        by_channel = {self.names[i] for i in self.channels}
        change = partial(
            instrument, names=self.names, channels=by_channel, casts=casts, shapes=shapes, opset=model.opset
        )
        return change, [_VALUES, _SIZES]

    def observe(self, feed: Feed) -> Glimpse:
        """Run the model on one sample. Raises ModelError if the run fails."""
        if self._outside is not None:
            return self._outside.observe(feed)
        seen = self._layouts.glimpse(self._runner.run(feed))
        if seen is None:
            self._outside = self._make_outside()
            return self._outside.observe(feed)
        return seen


class Layouts:
    """Turns the outputs of an instrumented model into glimpses.

    Args:
        names: Tensors that the model was instrumented for.
        channels: Numbers of those that are also reduced per channel.
    """

    def __init__(self, names: Sequence[str], channels: Sequence[int]) -> None:
        self._count, self._channels = len(names), channels
        self._layout: _Layout | None = None

    def glimpse(self, found: Mapping[str, NDArray[Any]]) -> Glimpse | None:
        """The glimpse of one run; None if the model states wrong shapes, so that the outputs cannot be understood."""
        values, sizes = found[_VALUES], found[_SIZES]
        layout = self._layout
        if layout is None or not np.array_equal(layout.lengths, sizes):
            self._layout = layout = _Layout(sizes, self._count, self._channels)
        if len(values) != layout.total:
            return None
        absmax = {i: np.maximum(-values[low], values[high]) for i, low, high in layout.channels}
        bottoms, tops, picks = (np.concatenate([values[at] for at in parts]) for parts in layout.parts)
        return Glimpse(layout.sizes, layout.picked, layout.rows, picks, bottoms, tops, absmax)


class _Layout:
    """Where the values of each tensor lie in the one output vector.

    Per tensor: minima and maxima of its rows, its subsample, then minima and maxima per channel.

    Args:
        lengths_: [2n + channels] elements of each tensor, rows of each tensor, and length of the last axis of those
            with channels.
        count: Number of tensors, n.
        channels: Indices of the tensors with channels.
    """

    def __init__(self, lengths_: NDArray[np.int64], count: int, channels: Sequence[int]) -> None:
        self.lengths = lengths_
        self.sizes, self.rows = lengths_[:count], lengths_[count : 2 * count]
        self.picked = lengths(self.sizes)
        widths = np.zeros(count, np.int64)
        widths[channels] = lengths_[2 * count :]
        parts = np.stack([self.rows, self.rows, self.picked, widths, widths], axis=1)
        ends = np.cumsum(parts).reshape(parts.shape)
        self.total = int(parts.sum())
        starts = ends - parts
        self.parts = [list(map(slice, starts[:, kind].tolist(), ends[:, kind].tolist())) for kind in range(3)]
        self.channels = [
            (i, slice(starts[i, 3], ends[i, 3]), slice(starts[i, 4], ends[i, 4])) for i in channels if self.sizes[i]
        ]


def _expose(proto: ModelProto, names: Sequence[str]) -> None:
    """Make the tensors outputs, in place."""
    present = {o.name for o in proto.graph.output}
    proto.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in present)


def instrument(
    proto: ModelProto,
    names: Sequence[str],
    channels: Collection[str],
    casts: Collection[str],
    shapes: Mapping[str, Shape | None],
    opset: int,
) -> None:
    """Replace the outputs by two vectors, in place: the kept values of all tensors, and their lengths.

    ONNX Runtime orders nodes by a depth-first search from the last output. At every node it visits the input whose
    maker was added last first. Therefore the reductions of the first tensor are added last: each then runs right after
    the tensor it reads, which is still in the CPU cache and is freed at once.
    """
    graph = proto.graph
    del graph.output[:]
    for name, value in _constants().items():
        graph.initializer.append(numpy_helper.from_array(value, _MARK + name))
    # A tensor of unknown rank counts as one row.
    ranks = {name: len(shapes[name] or ()) for name in names}
    for rank in {max(rank, 1) for rank in ranks.values()}:
        axes = np.arange(row_axes(rank), rank, dtype=np.int64)
        graph.initializer.append(numpy_helper.from_array(axes, f"{_MARK}axes_of_{rank}"))
    blocks, strides = [], dict[Shape, str]()
    for i, name in enumerate(names):
        made, shape = _Reductions(i, opset), shapes[name]
        stride = None
        if shape is not None and None not in shape:  # tensors of one shape share a stride
            stride = strides.get(shape)
            strides.setdefault(shape, f"{_MARK}stride_{i}")
        blocks.append(made.of(name, ranks[name], stride, cast=name in casts, by_channel=name in channels))
    for block in reversed(blocks):
        graph.node.extend(block)
    numbered = list(enumerate(names))
    with_channels = [i for i, name in numbered if name in channels]
    parts = []
    for i, name in numbered:
        kinds = ("bottoms", "tops", "picks", *(("least", "most") if name in channels else ()))
        parts += [f"{_MARK}{kind}_{i}" for kind in kinds]
    sizes = [f"{_MARK}size_{i}" for i, _ in numbered] + [f"{_MARK}rows_{i}" for i, _ in numbered]
    _add_output(graph, [*sizes, *(f"{_MARK}width_{i}" for i in with_channels)], _SIZES)
    _add_output(graph, parts, _VALUES)


def _add_output(graph: GraphProto, parts: Sequence[str], name: str) -> None:
    graph.node.append(helper.make_node("Concat", parts, [name], axis=0))
    graph.output.append(ValueInfoProto(name=name))


def _constants() -> dict[str, NDArray[np.int64]]:
    return {
        "flat": np.asarray([-1], np.int64),
        "begin": np.asarray([0], np.int64),
        "end": np.asarray([np.iinfo(np.int64).max], np.int64),
        "one": np.asarray([1], np.int64),
        "most_per_row": np.asarray([MOST + 1], np.int64),
        "last_row": np.asarray([len(STRIDES) - 1], np.int64),
        "strides": STRIDES,
    }


class _Reductions:
    """Makes the nodes that reduce one tensor."""

    def __init__(self, number: int, opset: int) -> None:
        self._number, self._opset = number, opset
        self._nodes: list[NodeProto] = []

    def of(self, tensor: str, rank: int, stride: str | None, *, cast: bool, by_channel: bool) -> list[NodeProto]:
        """All nodes for one tensor; `instrument` names what they make.

        Args:
            tensor: The tensor.
            rank: Its rank; 0 if unknown.
            stride: Stride that a tensor of the same shape uses, if there is one.
            cast: Whether it must be cast to float32.
            by_channel: Whether it is also reduced per channel.
        """
        if cast:
            tensor = self._add("Cast", [tensor], "cast", to=TensorProto.FLOAT)
        flat = self._add("Reshape", [tensor, _MARK + "flat"], "values")
        size = self._add("Shape", [flat], "size")
        step = stride or self._stride(size)
        self._add("Slice", [flat, _MARK + "begin", _MARK + "end", _MARK + "begin", step], "picks")
        table = tensor if rank else flat
        for op, row, rows in (("ReduceMin", "bottom", "bottoms"), ("ReduceMax", "top", "tops")):
            reduced = self._reduce(op, table, f"{_MARK}axes_of_{max(rank, 1)}", row_axes(rank), max(rank, 1), row)
            last = self._add("Reshape", [reduced, _MARK + "flat"], rows)
        self._add("Shape", [last], "rows")
        if by_channel:
            self._by_channel(tensor)
        return self._nodes

    def _stride(self, size: str) -> str:
        """The stride that `sampling.strides` gives for this number of elements."""
        row = self._add("Div", [size, _MARK + "most_per_row"], "table_row")
        row = self._add("Min", [row, _MARK + "last_row"], "row")
        candidates = self._add("Gather", [_MARK + "strides", row], "candidates")
        rest = self._add("Mod", [size, candidates], "rest")
        rest = self._add("Min", [rest, _MARK + "one"], "does_not_divide")
        first = self._add("ArgMax", [rest], "first", axis=1)
        stride = self._add("GatherElements", [candidates, first], "found", axis=1)
        return self._add("Reshape", [stride, _MARK + "flat"], "stride")

    def _by_channel(self, tensor: str) -> None:
        shape = self._add("Shape", [tensor], "shape")
        width = self._add("Slice", [shape, _MARK + "flat", _MARK + "end"], "width")
        table_shape = self._add("Concat", [_MARK + "flat", width], "table_shape", axis=0)
        table = self._add("Reshape", [tensor, table_shape], "table")
        self._reduce("ReduceMin", table, _MARK + "begin", 0, 1, "least")
        self._reduce("ReduceMax", table, _MARK + "begin", 0, 1, "most")

    def _reduce(self, op: str, tensor: str, axes: str, first: int, end: int, output: str) -> str:
        """Add a node that reduces axes `first` to `end` - 1.

        `axes` names the constant with these axes, for opsets that take them as an input.
        """
        if self._opset >= 18:
            return self._add(op, [tensor, axes], output, keepdims=0)
        return self._add(op, [tensor], output, keepdims=0, axes=list(range(first, end)))

    def _add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        name = f"{_MARK}{output}_{self._number}"
        self._nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name


@contextlib.contextmanager
def _runnable(model: Model, change: Callable[[ModelProto], None]) -> Iterator[tuple[bytes, Path | None]]:
    """The edited model as bytes, and the folder of its external data.

    External weights stay where they are. Internal weights of a large model are written to a temporary folder, one at a
    time.
    """
    stored = (c._values for c in model.constants() if isinstance(c._values, weights.StoredValues))
    outside = [values for values in stored if values.external]
    folders = {values.folder for values in outside}
    kept_out = sum(int(values.nbytes) for values in outside) if len(folders) == 1 else 0
    if model.weight_bytes() - kept_out <= IN_MEMORY:
        proto = model.export(weights.to_reference if kept_out else weights.to_proto)
        yield _bytes(proto, change), next(iter(folders), None)
        return
    with scratch() as made:
        path = made / "model.onnx"
        write(model, path, external=True)
        yield _bytes(onnx.load(str(path), format="protobuf", load_external_data=False), change), path.parent


def _bytes(proto: ModelProto, change: Callable[[ModelProto], None]) -> bytes:
    """The edited model as bytes. Empties `proto`, so that weights are not in memory twice while the session is created.

    Random operators draw the same numbers in every run, so that statistics are reproducible.
    """
    change(proto)
    fix_randomness(proto)
    source = bytes(proto.SerializeToString())
    proto.Clear()
    return source
