"""Patterns that pick nodes: globs over node names, tensor names and op types. One that picks nothing is an error."""

from __future__ import annotations

import difflib
import glob
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase

from onnxshot.errors import UsageError
from onnxshot.graph import Model, Node


def match_nodes(model: Model, patterns: Iterable[str], what: str) -> dict[Node, str]:
    """Nodes that a pattern picks, with the pattern. A node is picked by its name, its op type or a tensor it makes.

    Raises UsageError where a pattern matches nothing, with the three closest names.
    """
    patterns, held = list(patterns), dict[str, list[Node]]()
    if not patterns:
        return {}
    for _, node in model.walk():
        for name in _names(node):
            held.setdefault(name, []).append(node)
        if node.label in model.spelled:
            held.setdefault(model.spelled[node.label], []).append(node)
    for old, now in model.former.items():
        held[old] = list(dict.fromkeys((*held.get(old, ()), *held.get(now, ()))))
    picked: dict[Node, str] = {}
    for pattern in patterns:
        # Names may hold brackets, which mean something else in a glob: a name matches itself in any case.
        hits = list(held.get(pattern, ()))
        if glob.has_magic(pattern):
            hits += [node for name, nodes in held.items() if fnmatchcase(name, pattern) for node in nodes]
        if not hits:
            close = difflib.get_close_matches(pattern, held, n=3, cutoff=0.0)
            raise UsageError(
                f"{what} {pattern!r} matches no node name, tensor name or op type", f"closest: {', '.join(close)}"
            )
        for node in hits:
            picked.setdefault(node, pattern)
    return picked


def exact_patterns(model: Model) -> dict[str, str]:
    """Label of each node -> a pattern that picks it alone: its name, else a tensor it makes, special signs escaped.

    A node whose every name is also that of another, or of an op type, has none.
    """
    nodes = [node for _, node in model.walk()]
    held = Counter(name for node in nodes for name in set(_names(node)))
    held.update(node.op for node in nodes)  # an op type is not exact, even where one node alone has it
    patterns = {}
    for node in nodes:
        alone = [name for name in (node.name, *(t.name for t in node.outputs)) if name and held[name] == 1]
        if alone:
            patterns[node.label] = glob.escape(alone[0])
    return patterns


def _names(node: Node) -> list[str]:
    return [name for name in (node.name, node.op, *(t.name for t in node.outputs)) if name]
