"""Read recipes from YAML files, which may have arguments, `${name:default}`, and extend one another."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxshot.errors import TargetError, UsageError
from onnxshot.files.messages import shown
from onnxshot.files.regular_files import RECORD_BYTES, read_regular
from onnxshot.files.urls import beside, file_name, is_remote, redacted, unfolded
from onnxshot.files.yaml_text import NoYaml, decoded, values_of
from onnxshot.recipes.keys import BadKey, KeyPath, refuse, spelled
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import Stages, kind_of

_COMMENT_OR_ARGUMENT = re.compile(r"^[ \t]*#.*$|\$\{([A-Za-z_]\w*)(?::([^{}]*))?\}", re.MULTILINE)


def load_stages(path: str | Path, arguments: Mapping[str, str] | None = None) -> Stages:
    """Load the stages of a recipe file.

    `${name:default}` in the file is replaced by the argument of that name before the file is parsed as YAML. `extends`
    names another file, relative to this one: its keys are defaults for this one's, and its stages come first.

    Args:
        path: a YAML or JSON file, or a report that holds a recipe. A file without `stages` holds the keys of one
            quantize stage.
        arguments: values of the arguments, by name.

    Returns:
        The stages.

    Raises:
        UsageError: a file cannot be read, is not a recipe, or extends itself; an argument has no value, or an unknown
            name; or a key or its value is wrong. The message then names the file and the path of the key in it.
    """
    values = read_values(path, arguments, "recipe")
    with values.naming_file():
        return Stages.from_dict(values.joined)


def load_recipe(path: str | Path, arguments: Mapping[str, str] | None = None) -> Recipe:
    """Load the recipe of a file whose only stage is quantize.

    Args:
        path: as for `load_stages`.
        arguments: as for `load_stages`.

    Returns:
        The recipe.

    Raises:
        UsageError: as `load_stages`, or the file has other stages.
    """
    stages = load_stages(path, arguments).stages
    if len(stages) == 1 and isinstance(stages[0], Recipe):
        return stages[0]
    what = f"{path} holds stages: {', '.join(map(kind_of, stages))}"
    raise UsageError(what, "run them with [[onnxshot.compress|onnxshot compress]]")


def files_of(path: str | Path, arguments: Mapping[str, str] | None = None, what: str = "recipe") -> tuple[Path, ...]:
    """The file itself and the files that it extends, except for remote ones. Raises as `load_stages`."""
    found = read_values(path, arguments, what).files
    return tuple(Path(name) for name in found if not is_remote(name))


@dataclass(frozen=True, slots=True)
class Values:
    """Keys and values of a file, joined with those of the files it extends.

    Attributes:
        path: path or URL of the file.
        joined: the joined keys and values.
        keys: key -> (the file that it comes from, the path of the key there).
        stages: the same for each stage, where several files list stages; else empty.
        files: all files that were read.
    """

    path: str
    joined: dict[Any, Any]
    keys: Mapping[Any, tuple[str, KeyPath]]
    stages: Sequence[tuple[str, KeyPath]] = ()
    files: Sequence[str] = ()

    @contextlib.contextmanager
    def naming_file(self) -> Iterator[None]:
        """Turn a BadKey of this block into a UsageError that names the file of the key."""
        try:
            yield
        except BadKey as e:
            file, path = self.place(e.path)
            elsewhere, other = self.place(e.other)
            where = spelled(other) if elsewhere == file or not other else f"{spelled(other)} of {elsewhere}"
            raise UsageError(f"{file}: {' '.join(filter(None, (spelled(path), e.said, where)))}", e.hint) from e

    def place(self, path: KeyPath) -> tuple[str, KeyPath]:
        """The file that a key of `joined` comes from, and its path there; a missing key counts as one of `path`."""
        if not path:
            return self.path, ()
        if len(path) > 1 and path[0] == "stages" and self.stages:
            file, above = self.stages[path[1]]
            return file, (*above, *path[2:])
        file, above = self.keys.get(path[0], (self.path, path[:1]))
        return file, (*above, *path[1:])


def read_values(path: str | Path, arguments: Mapping[str, str] | None, what: str) -> Values:
    """Read the keys and values of a YAML file with arguments and `extends`.

    Args:
        path: as for `load_stages`.
        arguments: as for `load_stages`.
        what: what messages call the file, such as "recipe".

    Raises:
        UsageError: as `load_stages`.
    """
    name, reader = unfolded(str(path)), _Reader(arguments or {}, what)
    try:
        data = _content(name, what)
    except OSError as e:
        raise UsageError(f"{what} {name} cannot be read: {e.strerror}", "give a YAML file") from e
    values = reader.read(name, data)
    unknown = [name for name in reader.arguments if name not in reader.names]
    if unknown:
        known = f"arguments: {', '.join(sorted(reader.names))}" if reader.names else "it has none"
        raise UsageError(f"{redacted(name)} has no argument {unknown[0]!r}", known)
    return replace(values, files=tuple(reader.files))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads a file and the files it extends.

    Attributes:
        arguments: values by name.
        what: what messages call the file.
        names: the arguments that were found.
        files: the files that were read.
    """

    arguments: Mapping[str, str]
    what: str
    names: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)

    def read(self, name: str, data: bytes, below: tuple[str, ...] = ()) -> Values:
        """Parse the content of a file, and join it with the files it extends. `below`: the files that extend it."""
        above: KeyPath = ()
        self.files.append(name)
        path = redacted(name)
        try:
            values = values_of(_COMMENT_OR_ARGUMENT.sub(lambda found: self._filled(found, path), decoded(data)))
        except NoYaml as e:
            raise UsageError(f"{self.what} {path} cannot be read: {e}", "give a YAML file") from e
        hint = f"a {self.what} is keys and values"
        if not isinstance(values, dict):
            raise UsageError(f"{path} is no {self.what}: it holds a {type(values).__name__}", hint)
        if self.what == "recipe" and "recipe" in values:  # of a report
            values, above = values["recipe"], ("recipe",)
            if not isinstance(values, dict):
                raise UsageError(f"{path}: {spelled(above)} is {shown(values)}", hint)
        own = Values(path, values, {key: (path, (*above, key)) for key in values})
        base = values.pop("extends", None)
        if base is None:
            return own
        with own.naming_file():
            other = self._beside(name, base, (*below, name))
            try:
                data = _content(other, self.what)
            except OSError as e:
                said = f"is {shown(base)}, and {self.what} {other} cannot be read: {e.strerror}"
                raise BadKey(("extends",), said, "give a YAML file") from e
            except (UsageError, TargetError) as e:
                raise BadKey(("extends",), f"is {shown(base)}: {e.message}", e.hint) from e
        return _joined(self.read(other, data, (*below, name)), own)

    def _beside(self, name: str, base: str, chain: tuple[str, ...]) -> str:
        """The file that `extends: base` refers to in a file; `chain`: the files that extend each other down to it."""
        fits = isinstance(base, str) and bool(base) and "\0" not in base
        refuse((("extends", base, fits, f"the path of one {self.what}"),))
        other = base if is_remote(base) else beside(name, base) if is_remote(name) else str(Path(name).parent / base)
        if _resolved(other) in map(_resolved, chain):
            said = f"is {shown(base)}, so the file extends itself: {' -> '.join(map(file_name, (*chain, other)))}"
            raise BadKey(("extends",), said, "take one 'extends' out")
        return other

    def _filled(self, found: re.Match[str], path: str) -> str:
        name, default = found[1], found[2]
        if name is None:  # a comment
            return found[0]
        self.names.add(name)
        value = self.arguments.get(name, default)
        if value is None:
            line = found.string.count("\n", 0, found.start()) + 1
            hint = f"[[arguments|--set]] {name}=VALUE, or ${{{name}:DEFAULT}}"
            raise UsageError(f"{path}: line {line}: argument {name!r} has no value", hint)
        return value


def _content(name: str, what: str) -> bytes:
    """The bytes of a file or URL, which messages call `what`."""
    if not is_remote(name):
        return read_regular(name, what, UsageError, RECORD_BYTES)
    from onnxshot.remote.copies import local_copy  # imported here, as few recipes are remote

    return read_regular(local_copy(name, most=RECORD_BYTES), what, UsageError, RECORD_BYTES)


def _resolved(name: str) -> str:
    return name if is_remote(name) else str(Path(name).resolve())


def _joined(base: Values, own: Values) -> Values:
    """Join the values of a file with those of the file it extends; its own take precedence."""
    joined, keys = {**base.joined, **own.joined}, {**base.keys, **own.keys}
    for values in (base, own):
        if not isinstance(listed := values.joined.get("stages", []), list):
            with values.naming_file():
                raise BadKey(("stages",), f"is {shown(listed)}", "give a list of stages")
    if not ("stages" in base.joined and "stages" in own.joined):
        return Values(own.path, joined, keys, base.stages)
    first, then = base.joined["stages"], own.joined["stages"]
    joined["stages"] = [*first, *then]
    places = [values.place(("stages", i)) for values in (base, own) for i in range(len(values.joined["stages"]))]
    return Values(own.path, joined, keys, places)
