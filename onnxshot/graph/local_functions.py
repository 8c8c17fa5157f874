"""How large a model is once its local functions are unfolded; those that never end are refused, unread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, ModelProto, NodeProto, inliner

from onnxshot.errors import ModelError

MOST_NODES = 1_000_000
"""Of a model with its functions unfolded; forty functions that each call the next one twice make 2^40."""

_Key = tuple[str, str, str]


def check_functions(proto: ModelProto) -> None:
    """Raise ModelError where a function calls itself, through others too, or all unfold to more than MOST_NODES."""
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
        raise ModelError(f"its functions unfold to {total} nodes, {MOST_NODES} at most", "export it without functions")


def inlined(proto: ModelProto, *, convert_version: bool = False) -> ModelProto:
    """The model with calls of its functions replaced by their nodes; itself where it has none. It may be changed.

    Attributes that a call leaves to their defaults are spelt out before: ONNX's inliner loses the default of one that
    is handed on to another function. Raises RuntimeError, ValueError where ONNX cannot inline.
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
    """These nodes, and those of all graphs in them."""
    stack = [nodes]
    while stack:
        for node in stack.pop():
            yield node
            for attribute in node.attribute:
                stack += [graph.node for graph in attribute.graphs]
                stack += [attribute.g.node] if attribute.HasField("g") else []


def _measure(start: _Key, bodies: dict[_Key, list[NodeProto]], sizes: dict[_Key, int]) -> None:
    """Put into `sizes` how many nodes a call of the function, and of all that it calls, stands for."""
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
