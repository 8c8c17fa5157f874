"""Run a model layer by layer over samples, holding only the tensors that later nodes still read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxshot import memory
from onnxshot.comparison.random_nodes import with_fixed_randomness
from onnxshot.graph import weights
from onnxshot.graph.ir import Constant
from onnxshot.graph.lean_model import INLINE, LeanModel
from onnxshot.runtimes.mapped_weights import serialized
from onnxshot.runtimes.ort_session import SessionRunner
from onnxshot.runtimes.parallel import in_order
from onnxshot.runtimes.parted_run import as_declared
from onnxshot.runtimes.parts import reads
from onnxshot.runtimes.spool import Spool

__all__ = ["Values", "Walk", "reads"]

Result = TypeVar("Result")
Values = Sequence[NDArray[Any]]
"""One array per sample."""
_Names = set[str]
_Numbers = set[int]
_PORTION = memory.LEAST >> 5
"""Bytes of weights of a session, at most, if more than one node has weights. It is the least part of any budget, and
fixed, as the last bits of results depend on where sessions end."""
_PACKED_FROM = 4  # samples from which packing weights saves more time than it takes


class Walk:
    """A model run step by step: it advances as far as the values asked for, and holds what later nodes read.

    Constants may be changed with `set` until the node that reads them has run. Of a computed tensor that a
    DequantizeLinear reads, the integers are held, at a quarter of the size. Each reader dequantizes them again, so that
    ONNX Runtime fuses the nodes as in the whole model. What depends on constants alone is computed again too.

    Memory: the weights of one step, or of one of its nodes where a step has over 8 MiB; the held tensors up to
    `memory.waiting_bytes()`, the others are in a temporary file. Values do not depend on the budget.

    Args:
        model: The model. It is not changed.
        feeds: Samples.
        threads: CPU threads in total; one sample runs per thread.
    """

    def __init__(
        self, model: ModelProto | LeanModel, feeds: Sequence[Mapping[str, NDArray[Any]]], threads: int
    ) -> None:
        lean = LeanModel.of(model)
        self._model = lean = replace(lean, proto=with_fixed_randomness(lean.proto))
        self._threads, self._feeds = threads, feeds
        self._nodes = list(lean.proto.graph.node)
        self._reads = [tuple(dict.fromkeys(reads(node))) for node in self._nodes]
        self._maker = {name: i for i, node in enumerate(self._nodes) for name in node.output if name}
        self._changed: dict[str, NDArray[Any] | Constant] = {}
        self._kinds = {
            v.name: int(v.type.tensor_type.elem_type)
            for v in (*lean.proto.graph.value_info, *lean.proto.graph.input, *lean.proto.graph.output)
        }
        self._inputs = {i.name for i in lean.proto.graph.input if not lean.holds(i.name)}
        self._held: set[str] = set(self._inputs)
        self._ran: set[int] = set()
        self._spool = Spool(memory.waiting_bytes())
        self._again = self._computed_again()
        self._readers: dict[str, set[int]] = {}  # nodes still to run that read each tensor a walk may hold
        for i in range(len(self._nodes)):
            if i not in self._again:
                for name in self._stops(self._reads[i]):
                    self._readers.setdefault(name, set()).add(i)

    def values(self, name: str) -> Values:
        """Advance until this tensor is computed, and return its values; the integers if a DequantizeLinear makes it."""
        stop = self.stop(name)
        if stop not in self._held:
            self._run(self._needed([stop]), {stop}, lambda _, __: None, {stop})
        return _Held(self._values_of, stop, len(self._feeds))

    def visit(self, names: Iterable[str], see: Callable[[int, Mapping[str, NDArray[Any]]], Result]) -> list[Result]:
        """Advance until these tensors are computed, and show them without holding them.

        Args:
            names: Tensors that nodes compute which have not run yet.
            see: Called in worker threads with the number of a sample and some of the tensors; for each sample once per
                part that the step is run in.

        Returns:
            What `see` returned, part after part, in the order of the samples.
        """
        wanted = set(names)
        return self._run(self._needed(wanted), wanted, see, set())

    def rest(self) -> LeanModel:
        """Return the nodes that have not run as a model, from the tensors of `held` to the outputs of the whole model.

        Outputs that are computed already are left out.
        """
        outputs = [o.name for o in self._model.proto.graph.output if o.name in self._maker and o.name not in self._held]
        numbers = self._needed(name for name in outputs if self._maker[name] not in self._ran)
        again = self._closure(name for i in numbers for name in self._reads[i])[0]
        inside = sorted({*numbers, *again, *self._closure(outputs)[0]})
        made = {name for i in inside for name in self._nodes[i].output}
        read = {name for i in inside for name in self._reads[i]}
        return self._part(inside, sorted(self._held & read), [name for name in outputs if name in made], read)

    def held(self, sample: int) -> dict[str, NDArray[Any]]:
        """The tensors of a sample that nodes which have not run may read, by name."""
        return {name: self._values_of(name, sample) for name in sorted(self._held)}

    def stop(self, name: str) -> str:
        """The tensor that is held in place of this one: the input of the DequantizeLinear that makes it, or itself."""
        maker = self._node_of(name)
        return maker.input[0] if maker is not None and self._dequantizes(maker) else name

    def params(self, name: str) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Scale and zero point that dequantize the held values to this tensor; None if it is held itself."""
        maker = self._node_of(name)
        if maker is None or not self._dequantizes(maker):
            return None
        scale, zero_point = (self.constant(given) for given in maker.input[1:3])
        return scale, zero_point

    def constant(self, name: str) -> NDArray[Any]:
        """Read the current values of a constant. Raises KeyError if there is none of this name."""
        values = self._changed.get(name)
        if values is None:
            return self._model.array(name)
        return weights.read(values) if isinstance(values, Constant) else values

    def set(self, name: str, values: NDArray[Any] | Constant) -> None:
        """Change a constant in the walk. The values of a Constant may be computed whenever they are read."""
        self._changed[name] = values

    def _values_of(self, name: str, sample: int) -> NDArray[Any]:
        return self._feeds[sample][name] if name in self._inputs else self._spool.get((name, sample))

    def _node_of(self, name: str) -> NodeProto | None:
        number = self._maker.get(name)
        return None if number is None else self._nodes[number]

    def _dequantizes(self, node: NodeProto) -> bool:
        return node.op_type == "DequantizeLinear" and not self._model.holds(node.input[0])

    def _computed_again(self) -> _Numbers:
        """Nodes that are computed again for each reader: those of constants alone, and DequantizeLinear."""
        found, fixed = set[int](), set[str]()
        outputs = {info.name for info in self._model.proto.graph.output}
        for i, node in enumerate(self._nodes):
            if self._dequantizes(node) and node.input[0] in self._maker:
                found.add(i)
            elif all(name in fixed or self._model.holds(name) for name in self._reads[i]) and not (
                any(a.HasField("g") or a.graphs for a in node.attribute) or outputs.intersection(node.output)
            ):
                found.add(i)
                fixed.update(node.output)
        return found

    def _closure(self, names: Iterable[str]) -> tuple[_Numbers, _Names]:
        """The nodes to compute again for these tensors, and the tensors that they, or the nodes, read otherwise."""
        again, stops, left = set[int](), set[str](), list(names)
        while left:
            name = left.pop()
            maker = self._maker.get(name)
            if maker is None or maker not in self._again:
                stops.add(name)
            elif maker not in again:
                again.add(maker)
                left += self._reads[maker]
        return again, {name for name in stops if not self._model.holds(name)}

    def _stops(self, names: Iterable[str]) -> _Names:
        return self._closure(names)[1]

    def _needed(self, names: Iterable[str]) -> list[int]:
        """Indices of the nodes, without those computed again, that must run to compute these tensors, in order."""
        found: set[int] = set()
        left = list(self._stops(names))
        while left:
            name = left.pop()
            number = None if name in self._held else self._maker.get(name)
            if number is not None and number not in found:
                found.add(number)
                left += self._stops(self._reads[number])
        return sorted(found)

    def _run(
        self, numbers: Sequence[int], wanted: _Names, see: Callable[[int, Mapping[str, NDArray[Any]]], Result],
        kept: _Names,
    ) -> list[Result]:  # fmt: skip
        """Run nodes, in several sessions if they have more weights than a part may have.

        Args:
            numbers: The nodes, without those computed again.
            wanted: What `see` is shown.
            see: As in `visit`.
            kept: Tensors that are held even if nothing reads them.
        """
        found: list[Result] = []
        for some in self._portions(numbers):
            found += self._run_at_once(some, wanted, see, kept)
        return found

    def _portions(self, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
        most, start, size = _PORTION, 0, 0
        for position, number in enumerate(numbers):
            names = {name for i in (number, *self._closure(self._reads[number])[0]) for name in self._reads[i]}
            more = sum(weights.size_bytes(self._model.weights[n]) for n in names if n in self._model.weights)
            if position > start and size + more > most:
                yield numbers[start:position]
                start, size = position, 0
            size += more
        yield numbers[start:]

    def _run_at_once(
        self, numbers: Sequence[int], wanted: _Names, see: Callable[[int, Mapping[str, NDArray[Any]]], Result],
        kept: _Names,
    ) -> list[Result]:  # fmt: skip
        again, _ = self._closure(name for i in numbers for name in self._reads[i])
        again |= self._closure(wanted)[0]
        inside = sorted({*numbers, *again})
        made = dict.fromkeys(name for i in inside for name in self._nodes[i].output if name)
        shown = [name for name in made if name in wanted]
        read = {name for i in inside for name in self._reads[i]}
        for name in read & self._readers.keys():
            self._readers[name].difference_update(numbers)
        later = kept | {name for name, readers in self._readers.items() if readers}
        inputs = sorted(self._held & read)
        passes = [name for name in made if name in later]
        outputs = list(dict.fromkeys((*passes, *shown)))
        model = self._part(inside, inputs, outputs, read)
        pack = len(self._feeds) >= _PACKED_FROM
        with serialized(model) as (source, folder):
            runner = SessionRunner(source, threads=1, outputs=outputs, inner=True, folder=folder, pack=pack,
                                   label=model.label)  # fmt: skip

        def work(sample: int) -> Result:
            feed = {name: self._values_of(name, sample) for name in inputs}
            values = runner.run(as_declared(feed, self._kinds))
            for name in passes:
                self._spool.put((name, sample), values[name])
            return see(sample, {name: values[name] for name in shown})

        found = list(in_order(work, range(len(self._feeds)), self._threads))
        self._held |= set(passes)
        self._ran.update(numbers)
        for name in self._held - later:
            self._held.discard(name)
            for sample in range(len(self._feeds)):
                self._spool.drop((name, sample))
        return found

    def _part(self, inside: Sequence[int], inputs: Iterable[str], outputs: Iterable[str], read: _Names) -> LeanModel:
        """These nodes as a model."""
        whole = self._model.proto
        part = ModelProto(ir_version=max(whole.ir_version, 4), opset_import=whole.opset_import)
        part.functions.extend(whole.functions)
        part.graph.name = whole.graph.name or "part"
        part.graph.node.extend(self._nodes[i] for i in inside)
        names = read | set(outputs)
        large: dict[str, Constant] = {}
        for name in sorted(names):
            changed = self._changed.get(name)
            if isinstance(changed, Constant):
                large[name] = changed
            elif changed is not None and changed.nbytes > INLINE:
                large[name] = Constant(name, changed)
            elif changed is not None:
                part.graph.initializer.append(numpy_helper.from_array(changed, name))
            elif name in self._model.weights:
                large[name] = self._model.weights[name]
            elif name in self._model.initializers:
                part.graph.initializer.append(self._model.initializers[name])
        for name in inputs:
            part.graph.input.append(helper.make_tensor_value_info(name, self._kind(name), None))
        part.graph.output.extend(ValueInfoProto(name=name) for name in outputs)
        return LeanModel(part, large, self._model.label)

    def _kind(self, name: str) -> int:
        if self._kinds.get(name) == TensorProto.BFLOAT16:
            return int(TensorProto.BFLOAT16)
        return int(helper.np_dtype_to_tensor_dtype(np.asarray(self._values_of(name, 0)).dtype))


class _Held(Sequence[NDArray[Any]]):
    """The values of a tensor that a walk holds, each read when it is asked for."""

    def __init__(self, get: Callable[[str, int], NDArray[Any]], name: str, count: int) -> None:
        self._get, self._name, self._count = get, name, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self._get(self._name, i) for i in range(*number.indices(self._count))]
        if not -self._count <= number < self._count:
            raise IndexError(number)
        return self._get(self._name, number % self._count)
