"""Recipes as people write them: YAML files with arguments, `${name:default}`, that may extend one another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onnxshot.errors import UsageError
from onnxshot.recipes.plain import shown
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import Stages, kind_of

_COMMENT_OR_ARGUMENT = re.compile(r"^\s*#.*$|\$\{([A-Za-z_]\w*)(?::([^{}]*))?\}", re.MULTILINE)


def load_stages(path: str | Path, arguments: Mapping[str, str] | None = None) -> Stages:
    """The stages of a YAML or JSON file, or of a report that holds a recipe; a file without stages is one to quantize.

    `${name:default}` stands for the argument of that name, as YAML: what it means is decided where it stands. `extends`
    names a file, relative to this one, whose keys hold where this one has none, and whose stages come first.

    Raises UsageError where a file cannot be read, is no recipe, or extends itself; where an argument has no value, and
    where there is none of that name.
    """
    return Stages.from_dict(read_values(path, arguments, "recipe"))


def read_values(path: str | Path, arguments: Mapping[str, str] | None, what: str) -> dict[str, Any]:
    """The keys and values of a YAML file with arguments and `extends`; what: it is called so in messages.

    Raises UsageError as `load_stages` does.
    """
    reader = _Reader(arguments or {}, what)
    values = reader.read(Path(path))
    unknown = [name for name in reader.arguments if name not in reader.names]
    if unknown:
        known = f"arguments: {', '.join(sorted(reader.names))}" if reader.names else "it has none"
        raise UsageError(f"{path} has no argument {unknown[0]!r}", known)
    return values


def load_recipe(path: str | Path, arguments: Mapping[str, str] | None = None) -> Recipe:
    """The recipe of a file whose only stage is to quantize. Raises UsageError for others, as `load_stages` does too."""
    stages = load_stages(path, arguments).stages
    if len(stages) == 1 and isinstance(stages[0], Recipe):
        return stages[0]
    raise UsageError(f"{path} holds stages: {', '.join(map(kind_of, stages))}", "run them with onnxshot compress")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads a file and those it extends; what: it is called so; names: of the arguments that were seen."""

    arguments: Mapping[str, str]
    what: str
    names: set[str] = field(default_factory=set)

    def read(self, path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
        """Plain values. below: the files that extend this one."""
        if path.resolve() in below:
            chain = " -> ".join(p.name for p in (*below, path))
            raise UsageError(f"{path} extends itself: {chain}", "take one 'extends' out")
        try:
            text = path.read_text(encoding="utf-8")
            values = yaml.safe_load(_COMMENT_OR_ARGUMENT.sub(lambda found: self._filled(found, path), text))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:  # ValueError: a date that is none
            said = " ".join(str(e).split())
            raise UsageError(f"{self.what} {path} cannot be read: {said}", "give a YAML file") from e
        if isinstance(values, dict) and self.what == "recipe":
            values = values.get("recipe", values)  # of a report
        if not isinstance(values, dict):
            found = f"it holds a {type(values).__name__}"
            raise UsageError(f"{path} is no {self.what}: {found}", f"a {self.what} is keys and values")
        base = values.pop("extends", None)
        if base is None:
            return values
        if not isinstance(base, str):
            raise UsageError(f"{path}: extends is {shown(base)}", f"give the path of one {self.what}")
        inherited = self.read(path.parent / base, (*below, path.resolve()))
        first, then = inherited.get("stages"), values.get("stages")
        joined = {"stages": [*first, *then]} if isinstance(first, list) and isinstance(then, list) else {}
        return inherited | values | joined

    def _filled(self, found: re.Match[str], path: Path) -> str:
        name, default = found[1], found[2]
        if name is None:  # a comment
            return found[0]
        self.names.add(name)
        value = self.arguments.get(name, default)
        if value is None:
            raise UsageError(f"{path}: argument {name!r} has no value", f"--set {name}=VALUE, or ${{{name}:DEFAULT}}")
        return value
