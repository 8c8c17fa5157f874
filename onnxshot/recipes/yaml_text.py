"""YAML as plain values; what is no YAML is told with the line of the file."""

from __future__ import annotations

from typing import Any

import yaml

from onnxshot.recipes.keys import shown


class NoYaml(ValueError):
    """Text that is no YAML; the message begins with the line."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {' '.join(problem.split())}")


class _Loader(yaml.SafeLoader):
    """The safe loader; it knows where a scalar stands that Python cannot make a value of, such as 2001-99-99."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as e:  # a ValueError for a date, but an AttributeError or a KeyError for tags such as !!bool
            what = f"{shown(node.value)} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from e


def decoded(data: bytes) -> str:
    """The text of a file, UTF-8. Raises NoYaml."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise NoYaml(data.count(b"\n", 0, e.start) + 1, f"it is not UTF-8: {e.reason}") from e


def values_of(text: str) -> Any:
    """The values of a YAML document, made by the rules of `yaml.safe_load`. Raises NoYaml."""
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
