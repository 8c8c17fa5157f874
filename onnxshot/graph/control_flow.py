"""Shape inference through If, Loop and Scan: shapes inside their subgraphs, and how often these run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, NodeProto, helper

from onnxshot.graph.symbolic_dims import Dim, is_known, unknown_size

if TYPE_CHECKING:
    from onnxshot.graph.symbolic_shapes import Walk

_DEEP = 3  # nested loops up to which bodies are visited twice


def _if(walk: Walk, node: NodeProto) -> None:
    condition = walk.value(node.input[0])
    known = None if condition is None or not condition.size else bool(condition.reshape(-1)[0])
    results = []
    for name, graph in _bodies(node).items():
        taken = known is None or known == name.startswith("then")
        walk.trips[node.output[0], name] = int(taken)
        walk.graph(graph)
        if taken:
            results.append([out.name for out in graph.output])
    for slot, name in enumerate(node.output):
        made = [names[slot] for names in results if slot < len(names)]
        _merge(walk, name, made)
        values = [walk.value(n) for n in made]
        if len(values) == 1 and values[0] is not None:
            walk.found.values[name] = values[0]


def _merge(walk: Walk, name: str, made: Sequence[str], *, loose: bool = False) -> None:
    """Set a tensor that is one of several: sizes in which they differ are unknown; loose: all sizes are."""
    known = [walk.shape(n) for n in made]
    if not made or not name:
        return
    if any(n in walk.types and not walk.types[n].HasField("tensor_type") for n in made):
        walk.types[name] = walk.types[made[0]]
        return
    if len({None if dims is None else len(dims) for dims in known}) > 1 or known[0] is None:
        walk.set(name, walk.kind(made[0]), None)
        return
    dims = tuple(
        sizes[0] if not loose and all(s == sizes[0] for s in sizes) else unknown_size()
        for sizes in zip(*(d for d in known if d is not None), strict=True)
    )
    walk.set(name, walk.kind(made[0]), dims)


def _loop(walk: Walk, node: NodeProto) -> None:
    body = _bodies(node)["body"]
    most = walk.value(node.input[0]) if node.input[0] else None
    trips = int(most.reshape(-1)[0]) if most is not None and most.size and is_known(most) else None
    starts = walk.value(node.input[1]) if len(node.input) > 1 and node.input[1] else np.array(True)
    for info in body.input[:2]:
        walk.declare(info, ())
    carried = list(node.input[2:])
    made = [out.name for out in body.output[1:]]
    _iterate(walk, body, [info.name for info in body.input[2:]], carried, made)
    ends = walk.value(body.output[0].name)
    goes_on = body.output[0].name == body.input[1].name or (ends is not None and _true(ends))
    if starts is None or not _true(starts) or not goes_on:
        trips = None
    walk.trips[node.output[0], "body"] = trips
    for slot, name in enumerate(node.output):
        if slot < len(carried):
            _merge(walk, name, [made[slot]] if trips else [made[slot], carried[slot]])
        else:
            _stack(walk, name, made[slot], trips, 0)


def _scan(walk: Walk, node: NodeProto) -> None:
    body, attrs = _bodies(node)["body"], _attributes(node)
    count = int(attrs["num_scan_inputs"])
    states = len(body.input) - count
    axes = attrs.get("scan_input_axes") or [0] * count
    trips: Dim | None = None
    for info, name, axis in zip(body.input[states:], node.input[states:], axes, strict=True):
        dims = walk.shape(name)
        if not dims:
            walk.declare(info, None)
            continue
        trips = dims[axis % len(dims)]
        walk.set(info.name, walk.kind(name), tuple(d for i, d in enumerate(dims) if i != axis % len(dims)))
    made = [out.name for out in body.output]
    _iterate(walk, body, [info.name for info in body.input[:states]], list(node.input[:states]), made)
    walk.trips[node.output[0], "body"] = trips if isinstance(trips, int) else None
    places = attrs.get("scan_output_axes") or [0] * (len(node.output) - states)
    for slot, name in enumerate(node.output):
        if slot < states:
            _merge(walk, name, [made[slot]])
        else:
            _stack(walk, name, made[slot], trips, places[slot - states])


def _iterate(walk: Walk, body: GraphProto, inner: Sequence[str], carried: Sequence[str], made: Sequence[str]) -> None:
    """Visit the body of a loop, whose state may change its shape from one iteration to the next."""
    deep = walk.depth >= _DEEP  # two visits of every body would take too long
    for name, source in zip(inner, carried, strict=False):
        _merge(walk, name, [source], loose=deep)
    walk.depth += 1
    for _ in range(1 if deep else 2):
        walk.graph(body)
        before = [walk.shape(name) for name in inner]
        for name, source in zip(inner, made, strict=False):
            _merge(walk, name, [name, source])
        if before == [walk.shape(name) for name in inner]:
            break
    walk.depth -= 1


def _stack(walk: Walk, name: str, made: str, trips: Dim | None, axis: int) -> None:
    """Set the shape of a scan output: the body's outputs of all iterations, stacked along an axis."""
    dims = walk.shape(made)
    if dims is None:
        walk.set(name, walk.kind(made), None)
        return
    at = axis % (len(dims) + 1)
    walk.set(name, walk.kind(made), (*dims[:at], unknown_size() if trips is None else trips, *dims[at:]))


def count_runs(walk: Walk, graph: GraphProto, times: int | None = 1, *, top: bool = True) -> None:
    """Record in `walk.found.times` how often the nodes of subgraphs run."""
    for node in graph.node:
        if not top and node.output:
            walk.found.times[node.name or node.output[0]] = times
        for name, body in _bodies(node).items():
            trips = walk.trips.get((node.output[0] if node.output else "", name))
            total = 0 if 0 in (times, trips) else None if times is None or trips is None else times * trips
            count_runs(walk, body, total, top=False)


def _bodies(node: NodeProto) -> dict[str, GraphProto]:
    return {a.name: a.g for a in node.attribute if a.type == AttributeProto.GRAPH}


def _true(values: NDArray[Any]) -> bool:
    return is_known(values) and bool(values.all())


def _attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node by name, without subgraphs."""
    plain = (a for a in node.attribute if a.type != AttributeProto.GRAPH)
    return {a.name: helper.get_attribute_value(a) for a in plain}


CONTROL: Mapping[str, Callable[[Walk, NodeProto], None]] = {"If": _if, "Loop": _loop, "Scan": _scan}
"""Operator with subgraphs -> the function that visits such a node."""
