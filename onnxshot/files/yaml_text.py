"""Parse YAML and JSON into plain values, with bounds; errors name the line of the file."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import yaml

from onnxshot.files.messages import shown

_MOST_VALUES = 1_000_000
_LONGEST_NUMBER = 1000  # characters; parsing the base-60 numbers of YAML 1.1 takes quadratic time
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. Raises ValueError for a duplicate key."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


class NoYaml(ValueError):
    """Text is not valid YAML; the message begins with the line."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {' '.join(problem.split())}")


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader with bounds on the size that aliases expand to, and on the length of numbers.

    It also reports the line of a duplicate key, and of a scalar that Python cannot convert, such as 2001-99-99.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[int, int] = {}  # id of a node -> number of values in it, with aliases expanded
        self._merged: set[int] = set()  # ids of mappings whose merge keys are resolved

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        if node is None:
            return None
        if alias and id(node) not in self._sizes:  # the anchor's node is still being composed
            raise yaml.composer.ComposerError(None, None, "an alias is inside the value that it refers to", mark)
        if not alias:
            parts = node.value if isinstance(node, yaml.SequenceNode) else ()
            parts = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else parts
            self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in parts)
        if self._sizes[id(node)] > _MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, f"aliases make it larger than {_MOST_VALUES} values", mark)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse a duplicate key; a key of a merge (<<) may be overridden."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value if id(node) not in self._merged else ():
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                what = f"key {shown(key.value)} is given twice"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add((key.tag, key.value))
        self._merged.add(id(node))
        super().flatten_mapping(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag in _NUMBERS and isinstance(node, yaml.ScalarNode) and len(node.value) > _LONGEST_NUMBER:
            what = f"{shown(node.value)} is a number of {len(node.value)} digits"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        try:
            return super().construct_object(node, deep=deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as e:  # a ValueError for a date, but an AttributeError or a KeyError for tags such as !!bool
            what = f"{shown(node.value)} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from e


def decoded(data: bytes) -> str:
    """Decode the UTF-8 text of a file. Raises NoYaml."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise NoYaml(data.count(b"\n", 0, e.start) + 1, f"it is not UTF-8: {e.reason}") from e


def values_of(text: str) -> Any:
    """Parse a document of JSON, or of YAML by the rules of `yaml.safe_load`. Raises NoYaml.

    JSON has its own parser, which is a hundred times as fast (reports are large) and reads numbers such as 1e-5.
    """
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):  # parse it as YAML, whose errors name the line
            return json.loads(text, object_pairs_hook=_once)
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as e:
        line = text.count("\n", 0, e.position) + 1
        raise NoYaml(line, f"character #x{ord(text[e.position]):04x} is not allowed") from e
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        since = f" ({e.context}, from line {e.context_mark.line + 1} on)" if e.context and e.context_mark else ""
        raise NoYaml((mark.line if mark is not None else loader.line) + 1, f"{e.problem}{since}") from e
    except RecursionError as e:
        raise NoYaml(loader.line + 1, "it is nested too deep") from e
    finally:
        loader.dispose()
