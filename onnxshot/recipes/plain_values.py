"""Values that go to plain ones and back: what recipes are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from onnxshot.recipes.keys import refuse_unknown


@dataclass(frozen=True, slots=True)
class Plain:
    """Values that go to plain ones and back, field by field; a tuple of globs is a list, or one string, there."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the same for the same fields: what the report and the model's metadata hold."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From plain values. Raises BadKey on a key that does not exist, and on a value that does not fit."""
        refuse_unknown(values, sorted(f.name for f in fields(cls)))
        given = dict[str, Any](values)
        for key in {"exclude", "include", "to", "hardware"} & given.keys():
            patterns = given[key]
            if patterns is None or isinstance(patterns, str | list):
                given[key] = (patterns,) if isinstance(patterns, str) else tuple(patterns or ())
        if isinstance(given.get("shapes"), Mapping):
            given["shapes"] = {k: tuple(v) if isinstance(v, list) else v for k, v in given["shapes"].items()}
        return cls(**given)


def is_block(value: object) -> bool:
    """Whether it is a number of inputs that share a scale."""
    return type(value) is int and value > 1


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
