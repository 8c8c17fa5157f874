"""Run a model layer by layer over samples in memory, holding only the tensors that later nodes still read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from onnxshot.comparison.random_nodes import with_fixed_randomness
from onnxshot.execution.parallel import in_order
from onnxshot.runtimes.ort_runtime import Runner

Values = Sequence[NDArray[Any]]
"""One array per sample."""


class Walk:
    """A model run step by step: it advances as far as the values asked for, and holds what later nodes read.

    Constants may be changed with `set` until the node that reads them has run. Of a computed tensor that a
    DequantizeLinear reads, the integers are held, at a quarter of the size. Each reader dequantizes them again, so that
    ONNX Runtime fuses the nodes as in the whole model.

    Args:
        proto: The model. It is not changed.
        feeds: Samples.
        threads: CPU threads in total; one sample runs per thread.
    """

    def __init__(self, proto: ModelProto, feeds: Sequence[Mapping[str, NDArray[Any]]], threads: int) -> None:
        proto = with_fixed_randomness(proto)
        self._proto, self._threads, self._count = proto, threads, len(feeds)
        self._nodes = list(proto.graph.node)
        self._maker = {name: i for i, node in enumerate(self._nodes) for name in node.output if name}
        self._constants = {t.name: t for t in proto.graph.initializer}
        given = [i.name for i in proto.graph.input if i.name not in self._constants]
        self._held: dict[str, Values] = {name: [feed[name] for feed in feeds] for name in given}
        self._readers: dict[str, set[int]] = {}  # nodes still to run that read each tensor a walk may hold
        for i, node in enumerate(self._nodes):
            for name in () if self._dequantizes(node) else reads(node):
                self._readers.setdefault(self.stop(name), set()).add(i)

    def values(self, name: str) -> Values:
        """Advance until this tensor is computed, and return its values; the integers if a DequantizeLinear makes it."""
        stop = self.stop(name)
        numbers = self._needed(stop)
        if numbers:
            self._run(numbers, stop)
        return self._held[stop]

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
        """Current values of a constant."""
        return numpy_helper.to_array(self._constants[name])

    def set(self, name: str, values: NDArray[Any]) -> None:
        """Change a constant in the walk."""
        self._constants[name] = numpy_helper.from_array(values, name)

    def _node_of(self, name: str) -> NodeProto | None:
        number = self._maker.get(name)
        return None if number is None else self._nodes[number]

    def _dequantizes(self, node: NodeProto) -> bool:
        return node.op_type == "DequantizeLinear" and node.input[0] not in self._constants

    def _needed(self, stop: str) -> list[int]:
        """Indices of the nodes that must run to compute this tensor, in order."""
        found: set[int] = set()
        names = [stop]
        while names:
            name = names.pop()
            number = None if name in self._held else self._maker.get(name)
            if number is not None and number not in found:
                found.add(number)
                names += reads(self._nodes[number])
        return sorted(found)

    def _run(self, numbers: Sequence[int], stop: str) -> None:
        nodes = [self._nodes[i] for i in numbers]
        read = {name for node in nodes for name in reads(node)}
        for readers in (self._readers.get(self.stop(name)) for name in read):
            if readers is not None:
                readers.difference_update(numbers)
        later = {stop, *(name for name, readers in self._readers.items() if readers)}
        inputs = [name for name in self._held if name in read]
        outputs = [name for node in nodes for name in node.output if name in later and name not in self._held]
        constants = [values for name, values in self._constants.items() if name in read]
        runner = Runner(self._part(nodes, inputs, outputs, constants), threads=1, outputs=outputs, inner=True)
        feeds = ({name: self._held[name][i] for name in inputs} for i in range(self._count))
        found = list(in_order(runner.run, feeds, self._threads))
        self._held |= {name: [values[name] for values in found] for name in outputs}
        self._held = {name: values for name, values in self._held.items() if name in later}

    def _part(
        self, nodes: Iterable[NodeProto], inputs: Iterable[str], outputs: Iterable[str], constants: Iterable[Any]
    ) -> bytes:
        """These nodes as a model."""
        part = ModelProto(ir_version=self._proto.ir_version, opset_import=self._proto.opset_import)
        part.graph.name = self._proto.graph.name or "part"
        part.graph.node.extend(nodes)
        part.graph.initializer.extend(constants)
        for name in inputs:
            kind = helper.np_dtype_to_tensor_dtype(np.asarray(self._held[name][0]).dtype)
            part.graph.input.append(helper.make_tensor_value_info(name, kind, None))
        part.graph.output.extend(ValueInfoProto(name=name) for name in outputs)
        return bytes(part.SerializeToString())


def reads(node: NodeProto) -> Iterator[str]:
    """Names of all tensors that a node reads, including those its subgraphs read from outside."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            made = {name for inner in graph.node for name in inner.output}
            yield from (name for inner in graph.node for name in reads(inner) if name not in made)
