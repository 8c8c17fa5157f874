"""Find the activation that follows a layer: the elementwise operators that all readers of its output apply to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxshot.runtimes.ort_runtime import Runner

Activation = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Maps values to values elementwise, for an array of any shape."""

_ELEMENTWISE = frozenset(
    ("Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log",
     "Max", "Min", "Mish", "Mul", "Neg", "Pow", "QuickGelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt",
     "Sub", "Swish", "Tanh", "ThresholdedRelu")
)  # fmt: skip


def no_activation(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The identity, for a layer whose output is read unchanged."""
    return values


class Activations:
    """The activations of a float model, found by the tensor they are applied to."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._nodes = list(model.graph.node)
        self._outputs = {value.name for value in model.graph.output}
        self._scalars = {t.name: t for t in model.graph.initializer if all(size == 1 for size in t.dims)}
        self._readers: dict[str, list[int]] = {}
        for i, node in enumerate(self._nodes):
            for name in node.input:
                self._readers.setdefault(name, []).append(i)

    def after(self, name: str) -> Activation:
        """The function that all readers of the tensor apply to it.

        Returns:
            `no_activation` if the readers apply different functions, or read the tensor unchanged.
        """
        region = self._region(name)
        makers = {output: self._nodes[i] for i in region for output in self._nodes[i].output}
        last = next((t for t in reversed(makers) if self._all_pass(name, t, makers)), name)
        if last == name:
            return no_activation
        nodes = _leading_to(last, makers)
        limits = _limits(nodes[0], self._scalars) if len(nodes) == 1 else None
        if limits is not None:
            return lambda values: np.clip(values, *limits)
        runner = Runner(self._part(nodes, name, last), threads=1, inner=True)
        return lambda values: np.asarray(runner.run({name: values})[last])

    def _region(self, name: str) -> list[int]:
        """Indices of the elementwise nodes that compute something from only this tensor and scalars, in graph order."""
        inside, found = {name}, list[int]()
        waiting = set(self._readers.get(name, ()))
        while waiting:
            number = min(waiting)  # nodes are in topological order
            waiting.remove(number)
            node = self._nodes[number]
            known = all(t in inside or t in self._scalars or not t for t in node.input)
            if node.domain not in ("", "ai.onnx", "com.microsoft") or node.op_type not in _ELEMENTWISE or not known:
                continue
            found.append(number)
            inside.update(node.output)
            waiting.update(i for output in node.output for i in self._readers.get(output, ()))
        return found

    def _all_pass(self, name: str, gate: str, makers: Mapping[str, NodeProto]) -> bool:
        """Whether every path from the tensor out of the region goes through the gate."""
        inside, stack = {name, *makers}, [name]
        seen = {name}
        while stack:
            tensor = stack.pop()
            readers = [self._nodes[i] for i in self._readers.get(tensor, ())]
            if tensor in self._outputs or any(output not in inside for node in readers for output in node.output):
                return False
            following = {output for node in readers for output in node.output} - seen - {gate}
            seen |= following
            stack += following
        return True

    def _part(self, nodes: Sequence[NodeProto], name: str, last: str) -> bytes:
        part = ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        part.graph.name = "activation"
        part.graph.node.extend(nodes)
        reads = {t for node in nodes for t in node.input}
        for given in (self._scalars[t] for t in self._scalars if t in reads):
            scalar = numpy_helper.to_array(given).reshape(())  # a [1, 1, 1] would give the result another rank
            part.graph.initializer.append(numpy_helper.from_array(scalar, given.name))
        part.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        part.graph.output.append(ValueInfoProto(name=last))
        return bytes(part.SerializeToString())


def _leading_to(last: str, makers: Mapping[str, NodeProto]) -> list[NodeProto]:
    """The nodes that make a tensor, in graph order."""
    wanted, found = {last}, list[NodeProto]()
    for name, node in reversed(list(makers.items())):
        if name in wanted:
            found.append(node)
            wanted.update(node.input)
    return found[::-1]


def _limits(node: NodeProto, scalars: Mapping[str, TensorProto]) -> tuple[float, float] | None:
    """Lower and upper limit of a Relu or Clip; None for other operators."""
    if node.op_type not in ("Relu", "Clip"):
        return None
    given: Iterable[Any] = [0.0, np.inf] if node.op_type == "Relu" else _clip(node, scalars)
    low, high = given
    return float(low), float(high)


def _clip(node: NodeProto, scalars: Mapping[str, TensorProto]) -> list[Any]:
    attrs = {a.name: a.f for a in node.attribute}
    names = [*node.input[1:3], "", ""]
    given = [numpy_helper.to_array(scalars[n]).reshape(()) if n in scalars else None for n in names]
    kinds = (("min", -np.inf, given[0]), ("max", np.inf, given[1]))
    return [attrs.get(kind, default) if value is None else value for kind, default, value in kinds]
