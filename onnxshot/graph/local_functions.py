"""Model-local functions: refuse recursive ones and those that expand to too many nodes, and inline the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, ModelProto, NodeProto, inliner

from onnxshot.errors import ModelError

MOST_NODES = 1_000_000
"""Largest number of nodes after inlining. Forty functions that each call the next one twice expand to 2**40 nodes."""

_Key = tuple[str, str, str]


def check_functions(proto: ModelProto) -> None:
    """Check the local functions of a model before they are inlined.

    Raises:
        ModelError: a function calls itself, directly or through others; is defined twice; or the model would have more
            than MOST_NODES nodes once they are inlined.
    """
    bodies: dict[_Key, list[NodeProto]] = {}
    for function in proto.functions:
        key = (function.domain, function.name, function.overload)
        if key in bodies:
            raise ModelError(f"the function {_named(key)} is defined twice")
        bodies[key] = list(all_nodes(function.node))
    sizes: dict[_Key, int] = {}
    for start in bodies:
        _measure(start, bodies, sizes)
    total = sum(sizes.get(_called(node), 1) for node in all_nodes(proto.graph.node))
    if total > MOST_NODES:
        raise ModelError(f"its functions expand to {total} nodes, {MOST_NODES} at most", "export it without functions")


def inlined(proto: ModelProto, *, convert_version: bool = False) -> ModelProto:
    """Return the model with its local functions inlined; the model itself where it has none.

    Default values of attributes are written into the calls first, because ONNX's inliner loses a default that is
    passed on to another function.

    Args:
        proto: the model, which may be changed.
        convert_version: whether functions of another opset are converted to that of the model.

    Raises:
        RuntimeError, ValueError: ONNX cannot inline a function.
    """
    if not proto.functions:
        return proto
    defaults: dict[_Key, list[AttributeProto]] = {}
    for function in proto.functions:
        if function.attribute_proto:
            defaults[function.domain, function.name, function.overload] = list(function.attribute_proto)
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)) if defaults else ():
        for node in all_nodes(nodes):
            given = {attribute.name for attribute in node.attribute}
            node.attribute.extend(a for a in defaults.get(_called(node), ()) if a.name not in given)
    return inliner.inline_local_functions(proto, convert_version=convert_version)


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield these nodes and those of their subgraphs, at any depth."""
    stack = [nodes]
    while stack:
        for node in stack.pop():
            yield node
            for attribute in node.attribute:
                stack += [graph.node for graph in attribute.graphs]
                stack += [attribute.g.node] if attribute.HasField("g") else []


def _measure(start: _Key, bodies: dict[_Key, list[NodeProto]], sizes: dict[_Key, int]) -> None:
    """Record in `sizes` how many nodes a call of the function expands to."""
    stack, open_calls = [start], set[_Key]()
    while stack:
        key = stack[-1]
        if key in sizes:
            stack.pop()
            continue
        calls = [called for node in bodies[key] if (called := _called(node)) in bodies]
        missing = [called for called in calls if called not in sizes]
        if not missing:
            sizes[key] = len(bodies[key]) + sum(sizes[called] - 1 for called in calls)
            open_calls.discard(key)
        elif key in open_calls:
            raise ModelError(f"the function {_named(key)} calls itself", "export the model without functions")
        else:
            open_calls.add(key)
            stack += missing


def _called(node: NodeProto) -> _Key:
    return node.domain, node.op_type, node.overload


def _named(key: _Key) -> str:
    return repr(":".join(part for part in key if part))
