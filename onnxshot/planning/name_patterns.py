"""Select nodes by patterns: globs over node names, tensor names and operator types."""

from __future__ import annotations

import difflib
import glob
from collections import Counter
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from onnxshot.errors import UsageError
from onnxshot.graph import Model, Node

_LENIENT = "?"  # in front of a pattern: it may match nothing


def match_nodes(
    model: Model, patterns: Iterable[str], what: str, held: Mapping[str, list[Node]] | None = None
) -> dict[Node, str]:
    """Match nodes by their name, operator type or the name of a tensor that they produce.

    Args:
        model: the model, including subgraphs.
        patterns: exact names or globs (fnmatch: `*`, `?`, `[...]`). One that begins with `?` may match nothing, and
            goes on behind it: '?*detect*' is '*detect*' where there is such a name.
        what: name of the patterns in the error message, for example "exclude pattern".
        held: what `nodes_by_name` returns, where a caller matches several times.

    Returns:
        node -> the first pattern that matches it.

    Raises:
        UsageError: a pattern that does not begin with `?` matches nothing; the hint lists the three closest names.
    """
    patterns = list(patterns)
    if not patterns:
        return {}
    held = nodes_by_name(model) if held is None else held
    picked: dict[Node, str] = {}
    for pattern in patterns:
        # A name with brackets is no valid glob for itself, so exact names are matched first.
        hits = list(held.get(pattern, ()))
        wanted = pattern.removeprefix(_LENIENT) if is_lenient(pattern) else pattern
        hits += held.get(wanted, ()) if wanted != pattern else ()
        if glob.has_magic(wanted):
            hits += [node for name, nodes in held.items() if fnmatchcase(name, wanted) for node in nodes]
        if not hits and not is_lenient(pattern):
            close = difflib.get_close_matches(pattern, held, n=3, cutoff=0.0)
            raise UsageError(
                f"{what} {pattern!r} matches no node name, tensor name or op type", f"closest: {', '.join(close)}"
            )
        for node in hits:
            picked.setdefault(node, pattern)
    return picked


def is_lenient(pattern: str) -> bool:
    """Whether a pattern may match nothing: it begins with `?`, and more follows."""
    return pattern.startswith(_LENIENT) and pattern != _LENIENT


def nodes_by_name(model: Model) -> dict[str, list[Node]]:
    """The nodes that have a name, an output of that name, or an operator type of that name, before renaming too."""
    held = dict[str, list[Node]]()
    for _, node in model.walk():
        for name in _names(node):
            held.setdefault(name, []).append(node)
        if node.label in model.original_ops:
            held.setdefault(model.original_ops[node.label], []).append(node)
    for old, now in model.renamed.items():
        held[old] = list(dict.fromkeys((*held.get(old, ()), *held.get(now, ()))))
    return held


def exact_patterns(model: Model) -> dict[str, str]:
    """Node label -> a pattern that matches this node alone: its name or an output tensor, with glob characters escaped.

    Nodes whose names all occur elsewhere, or are operator types, have no entry.
    """
    nodes = [node for _, node in model.walk()]
    held = Counter(name for node in nodes for name in set(_names(node)))
    held.update(node.op for node in nodes)  # an operator type is not exact, even if only one node has it
    patterns = {}
    for node in nodes:
        alone = [name for name in (node.name, *(t.name for t in node.outputs)) if name and held[name] == 1]
        if alone:
            patterns[node.label] = glob.escape(alone[0])
    return patterns


def _names(node: Node) -> list[str]:
    return [name for name in (node.name, node.op, *(t.name for t in node.outputs)) if name]
