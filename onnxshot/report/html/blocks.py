"""Blocks of a network: neighbouring nodes under one name, by their modules, or else by a pattern that repeats."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

Row = Mapping[str, Any]

MOST = 3000
"""Most nodes that are drawn."""
Path = tuple[str, ...]

_MOST_BLOCKS, _LEAST_BLOCKS = 80, 4
_LARGE = 120  # nodes of a block that is split
_SIZE = 4  # nodes of a block that repeats, at least
_DEEPEST = 9
_FEW_INSIDE = 2
_RUN = 24  # nodes per block, where nothing else is known
_UNIT = re.compile(r"[^./]+(?:\.\d+)?")  # `layers.3` of `model/layers.3/mlp` or of `model.layers.3.mlp`
_NAMED = 6  # operators in the name of a pattern


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring nodes.

    Attributes:
        name: what a person calls them.
        nodes: places in the list of nodes, ascending.
        pattern: a glob that matches these nodes and no others; empty where there is none.
    """

    name: str
    nodes: range
    pattern: str = ""


def drawn(nodes: Sequence[Row]) -> list[Row]:
    """The nodes that are drawn: of a large graph those with the most work, in order."""
    if len(nodes) <= MOST:
        return list(nodes)
    kept = sorted(range(len(nodes)), key=lambda i: (nodes[i]["sparsity"] is None, -nodes[i]["macs_share"], i))
    return [nodes[i] for i in sorted(kept[:MOST])]


def blocks(nodes: Sequence[Row]) -> list[Block]:
    """Split a graph into named blocks.

    Args:
        nodes: rows of `Report.graph`, in topological order.
    """
    found = _by_module(nodes) or _by_pattern(nodes)
    if not found:
        starts = range(0, len(nodes), _RUN)
        ranges = [range(i, min(i + _RUN, len(nodes))) for i in starts]
        found = [Block(f"{r.start + 1}–{r.stop}", r) for r in ranges]
    return [Block(block.name, block.nodes, _pattern(block.nodes, nodes)) for block in found]


def _by_module(nodes: Sequence[Row]) -> list[Block]:
    """Runs of nodes whose modules begin alike; large ones are split by what their modules contain."""
    paths = list(_inherited(nodes))
    done: list[tuple[Path, range]] = []
    todo: list[tuple[Path, range]] = [((), range(len(nodes)))] if nodes else []
    while todo:
        todo.sort(key=lambda one: len(one[1]))
        path, where = todo.pop()
        inner = _split(path, where, paths)
        count = len(todo) + len(done)
        if inner and count + len(inner) <= _MOST_BLOCKS and (len(where) > _LARGE or count + 1 < _LEAST_BLOCKS):
            todo += inner
        else:
            done.append((path, where))
    if len(done) < _LEAST_BLOCKS - 1:
        return []
    done.sort(key=lambda one: one[1].start)
    known = [path for path, _ in done if path]
    shared = min(_shared(known), min(map(len, known)) - 1)
    return [Block("/".join(path[shared:]) or "(no module)", where) for path, where in done]


def _split(path: Path, where: range, paths: Sequence[Path]) -> list[tuple[Path, range]]:
    """The runs inside of a block, one or more levels deeper; empty where there is only one at any depth."""
    for depth in range(len(path) + 1, _DEEPEST):
        found = _runs([paths[i][:depth] for i in where], where.start)
        if len(found) > 1:
            return found
    return []


def _inherited(nodes: Sequence[Row]) -> Iterator[Path]:
    """The module of each node in units; a node without one belongs to that of the node before."""
    last: Path = ()
    for node in nodes:
        last = tuple(_UNIT.findall(node.get("module") or "")) or last
        yield last


def _runs(keys: Sequence[Path], start: int) -> list[tuple[Path, range]]:
    """Runs of equal keys, from `start` on; a few other nodes inside of a run belong to it."""
    found: list[tuple[Path, range]] = []
    for key, run in groupby(keys):
        stop = start + len(list(run))
        if len(found) > 1 and found[-2][0] == key and len(found[-1][1]) <= _FEW_INSIDE:
            start = found[-2][1].start
            del found[-2:]
        found.append((key, range(start, stop)))
        start = stop
    return found


def _by_pattern(nodes: Sequence[Row]) -> list[Block]:
    """Cut after two neighbouring operators, so that most nodes lie in blocks that occur again; else empty."""
    ops = [str(node["op"]) for node in nodes]
    best: tuple[int, list[range]] = (len(ops) // 2, [])  # nodes in repeated blocks
    for pair, count in Counter(pairwise(ops)).items():
        if not 2 <= count < _MOST_BLOCKS:
            continue
        ends = [i + 2 for i, found in enumerate(pairwise(ops)) if found == pair]
        edges = sorted({0, *ends, len(ops)})
        cut = [range(a, b) for a, b in pairwise(edges)]
        seen = Counter(tuple(ops[a:b]) for a, b in pairwise(edges))
        covered = sum(len(key) * times for key, times in seen.items() if times > 1 and len(key) >= _SIZE)
        best = max(best, (covered, cut), key=lambda one: (one[0], -len(one[1])))
    return [Block(f"{i}: {_in_words([ops[j] for j in where])}", where) for i, where in enumerate(best[1], 1)]


def _in_words(ops: Sequence[str]) -> str:
    """`Conv, Relu, 3 × Add`, shortened in the middle."""
    runs = [(op, len(list(run))) for op, run in groupby(ops)]
    words = [op if count == 1 else f"{count} × {op}" for op, count in runs]
    half = _NAMED // 2
    return ", ".join(words if len(words) <= _NAMED else [*words[:half], "…", *words[-half:]])


def _pattern(where: range, nodes: Sequence[Row]) -> str:
    """The common beginning of the names as a glob, if no node outside begins so, by its name or its tensor."""
    if len(where) < 2:
        return ""
    names = [str(nodes[i]["node"]) for i in where]
    shared = names[0][: _shared(names)]
    shared = shared[: max(shared.rfind("/"), shared.rfind(".")) + 1]
    outside = (nodes[i] for i in range(len(nodes)) if i not in where)
    taken = any(name.startswith(shared) for row in outside for name in (str(row["node"]), str(row["tensor"])))
    return "" if taken or not shared.strip("/") else f"{glob.escape(shared)}*"


def _shared(parts: Sequence[str | Path]) -> int:
    """How many elements all sequences have in common at their beginning."""
    low, high = min(parts), max(parts)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
