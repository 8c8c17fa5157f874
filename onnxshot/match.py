"""Patterns that pick nodes: globs over node names, tensor names and op types. One that picks nothing is an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from onnxshot.errors import UsageError
from onnxshot.graph import Model, Node


def match_nodes(model: Model, patterns: Iterable[str], what: str) -> dict[Node, str]:
    """Nodes that a pattern picks, with the pattern. A node is picked by its name, its op type or a tensor it makes.

    Raises UsageError where a pattern matches nothing, with the three closest names.
    """
    nodes = [node for _, node in model.walk()]
    picked: dict[Node, str] = {}
    for pattern in patterns:
        # Names may hold brackets, which mean something else in a glob: a name matches itself in any case.
        hits = [n for n in nodes if any(name == pattern or fnmatchcase(name, pattern) for name in _names(n))]
        if not hits:
            known = list(dict.fromkeys(name for n in nodes for name in _names(n)))
            close = difflib.get_close_matches(pattern, known, n=3, cutoff=0.0)
            raise UsageError(
                f"{what} {pattern!r} matches no node name, tensor name or op type", f"closest: {', '.join(close)}"
            )
        for node in hits:
            picked.setdefault(node, pattern)
    return picked


def _names(node: Node) -> list[str]:
    return [name for name in (node.name, node.op, *(t.name for t in node.outputs)) if name]
