"""Values that are checked, and go to plain ones and back: what recipes are made of."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from onnxshot.errors import UsageError


@dataclass(frozen=True, slots=True)
class Plain:
    """Values that go to plain ones and back, field by field; a tuple of globs is a list, or one string, there."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the same for the same fields: what the report and the model's metadata hold."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From plain values. Raises UsageError on a key that does not exist, and on a value that does not fit."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise UsageError(f"{shown(key, plain=True)} is no key", f"keys: {', '.join(sorted(known))}")
        given = dict[str, Any](values)
        for key in {"exclude", "include", "to", "hardware"} & given.keys():
            patterns = given[key]
            if patterns is None or isinstance(patterns, str | list):
                given[key] = (patterns,) if isinstance(patterns, str) else tuple(patterns or ())
        if isinstance(given.get("shapes"), Mapping):
            given["shapes"] = {k: tuple(v) if isinstance(v, list) else v for k, v in given["shapes"].items()}
        return cls(**given)


def refuse(checks: Iterable[tuple[str, object, bool, str]]) -> None:
    """Raise UsageError for the first of (name, what was found, whether it fits, what is wanted) that does not fit."""
    for name, found, fits, wanted in checks:
        if not fits:
            raise UsageError(f"{name} is {shown(found)}", wanted)


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 120, 120


def shown(value: object, *, plain: bool = False) -> str:
    """A value in a message, cut where it is long; plain: text without quotes."""
    return value if plain and isinstance(value, str) else _SHORT.repr(value)


def are_globs(value: object) -> bool:
    """Whether it is what `include` and `exclude` hold."""
    return isinstance(value, tuple) and all(isinstance(glob, str) for glob in value)


def is_block(value: object) -> bool:
    """Whether it is a number of inputs that share a scale."""
    return type(value) is int and value > 1


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
