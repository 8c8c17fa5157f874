"""Find where accuracy is lost: compare inner tensors of a candidate with those of the float model."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxshot import memory
from onnxshot.calibration.readers import Sample
from onnxshot.comparison.proto_edits import PREFIX
from onnxshot.execution.parallel import in_order, run_concurrently, split_threads
from onnxshot.graph import Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.macs import concrete_shapes
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.runtimes.ort_runtime import Runner, is_large
from onnxshot.runtimes.spool import Spool

Tensors = Mapping[str, NDArray[Any]]
Scaled = tuple[int, NDArray[Any]]
"""An axis, and one factor per channel along it."""

SAMPLES = 4
"""Most samples that inner tensors are compared on: the first few show where the error comes from."""
_ONE_AT_A_TIME = 8  # share of the held bytes that the tensors of one sample fill, above which samples run one at a time
_GUESS = 1 << 22  # bytes assumed for a tensor of unknown shape


@dataclass(frozen=True, slots=True)
class TensorRow:
    """The error of one inner tensor over the samples.

    Attributes:
        tensor: Its name.
        op: Operator of the float model that makes it.
        sqnr_db: SQNR in dB, with the runtime's optimizations off, after Q/DQ if it is quantized. Includes the error of
            all earlier layers.
        absmax: Largest absolute value in the float model.
        clipped: Share of the float model's values outside the range the candidate can store, 0..1. None if the
            candidate does not quantize the tensor per tensor.
        quantized: True if the tensor goes through a Q/DQ pair.
    """

    tensor: str
    op: str
    sqnr_db: float
    absmax: float
    clipped: float | None = None
    quantized: bool = False


def compare_tensors(
    reference: Path | bytes | Model | LeanModel,
    candidate: Path | bytes | Model | LeanModel,
    samples: Iterable[Sample],
    tensors: Sequence[str] | None = None,
    *,
    threads: int = 2,
    outputs: Sequence[str] = (),
    each: Callable[[Sample, Tensors, Tensors], None] | None = None,
    scaled: Mapping[str, Scaled] | None = None,
) -> tuple[TensorRow, ...]:
    """Compare the tensors that both models have by name.

    The candidate runs with the runtime's optimizations off. A quantized tensor is compared after its Q/DQ pair. Passes
    that merge or rescale operators change what a name stands for, so `reference` should be the float model as it was
    just before quantization.

    Memory: two sessions and `memory.held_bytes()` of tensors, whatever the number of tensors and samples. Of a model in
    parts, two parts and the tensors in them; both models are cut at the same places and walked side by side.

    Args:
        reference: The float model.
        candidate: The model to compare with it.
        samples: The first SAMPLES of them are run.
        tensors: Names to compare; None for all tensors of the top-level graph.
        threads: CPU threads in total.
        outputs: Outputs to hand to `each`.
        each: Called once per sample, in order, with the sample and the `outputs` of the float model and of the
            candidate.
        scaled: Tensors whose channels the candidate scales by known factors, which are undone before comparing.

    Returns:
        One row per tensor, lowest SQNR first.

    Raises:
        ModelError: A model cannot be read or does not run.
    """
    used = list(itertools.islice(samples, SAMPLES))
    if not used:
        return ()
    judge, other = LeanModel.of(reference), LeanModel.of(candidate)
    nodes = [n for n in judge.proto.graph.node if n.op_type != "Constant"]
    makers = {o: n.op_type for n in nodes for o in n.output if o and not o.startswith(PREFIX)}
    pairs = _quantized(other)
    there = {o for n in other.proto.graph.node for o in n.output}
    names = [n for n in dict.fromkeys(makers if tensors is None else tensors) if n in makers and n in there]
    shapes = concrete_shapes(judge.to_graph(), {k: v.shape for k, v in used[0].feed.items()})
    size, held = sum(8 * math.prod(shapes[name]) for name in names if name in shapes), memory.held_bytes()
    in_parts = is_large(judge) or is_large(other)
    workers, threads = split_threads(threads, 1 if size > held // _ONE_AT_A_TIME and not in_parts else len(used))
    rows = []
    for group in [names] if in_parts else _groups(names, shapes, held):
        takes = {name: pairs[name].output if name in pairs else name for name in group}
        runners = _runners(judge, other, [*group, *outputs], [*takes.values(), *outputs], threads)
        sums = {name: _Sums(makers[name], pairs.get(name), (scaled or {}).get(name)) for name in group}
        look = _in_parts if in_parts else _whole
        for sample, wanted, got in look(*runners, used, takes, sums, outputs, workers):
            if each is not None:
                each(sample, wanted, got)
        each, outputs = None, ()
        rows += [entry.row(name) for name, entry in sums.items() if entry.total.count]
    return tuple(sorted(rows, key=lambda row: (row.sqnr_db, row.tensor)))


def _runners(
    judge: LeanModel, other: LeanModel, wanted: Sequence[str], got: Sequence[str], threads: int
) -> tuple[Runner, Runner]:
    """Both models, which give these tensors; in parts, they are cut at the same places."""
    wanted, got = list(dict.fromkeys(wanted)), list(dict.fromkeys(got))

    def load(stops: Sequence[Sequence[str]] | None = None) -> Runner:
        model = other.exposing(got)
        return Runner(model, optimize=False, threads=threads, outputs=got, whole=True, stops=stops)

    def load_judge() -> Runner:
        return Runner(judge.exposing(wanted), threads=threads, outputs=wanted, whole=True, inner=True)

    if is_large(judge):
        first = load_judge()
        assert first.parts is not None
        return first, load(first.parts.stops)
    first, second = run_concurrently(load_judge, load)
    return first, second


_Look = Iterator[tuple[Sample, Tensors, Tensors]]
"""Each sample, with the outputs of both models on it."""


def _whole(
    judge: Runner, other: Runner, samples: Sequence[Sample], takes: Mapping[str, str], sums: Mapping[str, _Sums],
    outputs: Sequence[str], workers: int,
) -> _Look:  # fmt: skip
    """Run both models, and add the errors of each tensor to `sums`."""

    def run(sample: Sample) -> tuple[Sample, Tensors, Tensors, list[_Sums]]:
        wanted, got = judge.run(sample.feed), other.run(sample.feed)
        own = [_Sums(entry.op, entry.pair, entry.scaled) for entry in sums.values()]
        for (name, taken), entry in zip(takes.items(), own, strict=True):
            if name in wanted and taken in got:  # types that numpy cannot hold are missing
                entry.add(wanted[name], got[taken])
        return sample, {n: wanted[n] for n in outputs}, {n: got[n] for n in outputs}, own

    for sample, wanted, got, own in in_order(run, samples, workers):
        for entry, part in zip(sums.values(), own, strict=True):
            entry.join(part)
        yield sample, wanted, got


def _in_parts(
    judge: Runner, other: Runner, samples: Sequence[Sample], takes: Mapping[str, str], sums: Mapping[str, _Sums],
    outputs: Sequence[str], workers: int,
) -> _Look:  # fmt: skip
    """Walk the parts of both models side by side. A tensor whose other side is in a later part waits in a spool."""
    names_of = defaultdict[str, list[str]](list)
    for name, taken in takes.items():
        names_of[taken].append(name)
    feeds, shown = [sample.feed for sample in samples], set(outputs)
    kept: list[tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]] = [({}, {}) for _ in samples]
    runs = judge.events(feeds, workers), other.events(feeds, workers)
    with Spool() as waiting:
        for event, reply in itertools.zip_longest(*runs):
            if event is not None:
                sample, values = event
                kept[sample][0].update((n, v) for n, v in values.items() if n in shown)
                for name in values.keys() & takes.keys():
                    if (sample, False, takes[name]) in waiting:
                        sums[name].add(values[name], waiting.get((sample, False, takes[name])))
                    else:
                        waiting.put((sample, True, name), values[name])
            if reply is not None:
                sample, values = reply
                kept[sample][1].update((n, v) for n, v in values.items() if n in shown)
                for taken in values.keys() & names_of.keys():
                    for name in names_of[taken]:
                        if (sample, True, name) in waiting:
                            sums[name].add(waiting.get((sample, True, name)), values[taken])
                            waiting.drop((sample, True, name))
                        else:
                            waiting.put((sample, False, taken), values[taken])
    for sample_, (wanted, got) in zip(samples, kept, strict=True):
        yield sample_, wanted, got


@dataclass(frozen=True, slots=True)
class _Pair:
    """A Q/DQ pair: the output of the DequantizeLinear, and the range it can represent if it has a single scale."""

    output: str
    low: float = -math.inf
    high: float = math.inf


@dataclass(slots=True)
class _Sums:
    """Accumulated errors of one tensor."""

    op: str
    pair: _Pair | None
    scaled: Scaled | None = None
    total: SqnrSum = field(default_factory=SqnrSum)
    absmax: float = 0.0
    outside: int = 0

    def add(self, wanted: NDArray[Any], got: NDArray[Any]) -> None:
        if wanted.dtype.kind != "f" or got.dtype.kind != "f" or wanted.shape != got.shape or not wanted.size:
            return
        factors = self._factors(wanted)
        self.total.add(wanted, got if factors is None else got / factors)
        if factors is not None:
            wanted = wanted * factors  # as the candidate stores it
        low, high = float(wanted.min()), float(wanted.max())
        if math.isfinite(low) and math.isfinite(high):
            self.absmax = max(self.absmax, -low, high)
        elif np.isfinite(wanted).any():
            self.absmax = max(self.absmax, float(np.abs(wanted[np.isfinite(wanted)]).max()))
        # Comparisons with NaN are false, so NaN takes this branch too.
        if self.pair is not None and not (self.pair.low <= low and high <= self.pair.high):
            self.outside += int(np.count_nonzero((wanted < self.pair.low) | (wanted > self.pair.high)))

    def _factors(self, value: NDArray[Any]) -> NDArray[np.float32] | None:
        """The channel factors, shaped to broadcast over a value; None if there are none or the channels differ."""
        if self.scaled is None or not -value.ndim <= self.scaled[0] < value.ndim:
            return None
        axis, factors = self.scaled[0] % value.ndim, self.scaled[1]
        if value.shape[axis] != len(factors):
            return None
        return factors.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(value.ndim)])

    def join(self, other: _Sums) -> None:
        """Add the errors accumulated by another thread."""
        self.total.join(other.total)
        self.absmax = max(self.absmax, other.absmax)
        self.outside += other.outside

    def row(self, name: str) -> TensorRow:
        known = self.pair is not None and math.isfinite(self.pair.low)
        share = self.outside / self.total.count if known else None
        return TensorRow(name, self.op, self.total.db, self.absmax, share, self.pair is not None)


def _quantized(model: LeanModel) -> dict[str, _Pair]:
    """The Q/DQ pair each tensor goes through in the top-level graph, by tensor name."""
    proto, constants = model.proto, dict(model.initializers)
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    dequantized = {n.input[0]: n.output[0] for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    pairs: dict[str, _Pair] = {}
    for node in proto.graph.node:
        if node.op_type != "QuantizeLinear" or node.output[0] not in dequantized:
            continue
        low, high = -math.inf, math.inf
        given = [constants.get(name) for name in node.input[1:]]
        if given and all(t is not None and math.prod(t.dims) == 1 for t in given):
            values = [numpy_helper.to_array(t).reshape(()) for t in given if t is not None]
            low, high = _limits(values[0], values[1] if len(values) > 1 else np.zeros((), _default_type(node)))
        pair = _Pair(dequantized[node.output[0]], low, high)
        pairs.setdefault(node.input[0], pair)
        pairs.setdefault(pair.output, pair)  # an output of the model keeps its name after the pair
    return pairs


def _limits(scale: NDArray[Any], zero: NDArray[Any]) -> tuple[float, float]:
    """The range beyond which values saturate: half a step past the lowest and highest code."""
    try:
        info = np.iinfo(zero.dtype)
    except ValueError:
        return -math.inf, math.inf  # float8 or a packed type
    step, offset = float(scale), int(zero)
    return (int(info.min) - offset - 0.5) * step, (int(info.max) - offset + 0.5) * step


def _default_type(node: onnx.NodeProto) -> np.dtype[Any]:
    """Type that a QuantizeLinear without a zero point gives: its output_dtype, else uint8."""
    kind = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind)) if kind else np.dtype(np.uint8)


def _groups(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], held: int) -> Iterator[list[str]]:
    """Split the names so that the float32 tensors of both models in one group have `held` bytes; at least one group."""
    group, size = list[str](), 0
    for name in names:
        need = 8 * math.prod(shapes[name]) if name in shapes else _GUESS
        if group and size + need > held:
            yield group
            group, size = [], 0
        group.append(name)
        size += need
    yield group


def closest(rows: Iterable[TensorRow], others: Iterable[TensorRow]) -> tuple[TensorRow, ...]:
    """For each tensor the row with the higher SQNR, with the operator of the first set; lowest SQNR first."""
    found = {row.tensor: row for row in rows}
    for row in others:
        if row.tensor not in found or row.sqnr_db > found[row.tensor].sqnr_db:
            found[row.tensor] = replace(row, op=found[row.tensor].op) if row.tensor in found else row
    return tuple(sorted(found.values(), key=lambda row: (row.sqnr_db, row.tensor)))
