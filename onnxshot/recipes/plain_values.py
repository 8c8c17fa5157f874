"""Base class of recipes: dataclasses that convert to plain values (for YAML and JSON) and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from onnxshot.recipes.keys import refuse_unknown

CHANNEL = "channel"
"""The block size that gives each output channel one scale."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A dataclass that converts to plain values and back, field by field.

    A tuple of globs becomes a list; a single string is accepted for it too.
    """

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values: dicts, lists, strings and numbers. Reports and model metadata store them."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make an instance from plain values, the inverse of `to_dict`.

        Args:
            values: fields by name; missing fields have their defaults.

        Raises:
            BadKey: a key is unknown, or a value is wrong.
        """
        refuse_unknown(values, sorted(f.name for f in fields(cls)))
        given = dict[str, Any](values)
        for key in {"exclude", "include", "to", "hardware"} & given.keys():
            patterns = given[key]
            if patterns is None or isinstance(patterns, str | list):
                given[key] = (patterns,) if isinstance(patterns, str) else tuple(patterns or ())
        if isinstance(given.get("shapes"), Mapping):
            given["shapes"] = {k: tuple(v) if isinstance(v, list) else v for k, v in given["shapes"].items()}
        return cls(**given)


BLOCKS = "a number from 2 up, or channel"
"""What a block size may be, as messages say it."""


def is_block(value: object) -> bool:
    """Whether a value is a valid block size: an int from 2 up, or "channel"."""
    return (type(value) is int and value > 1) or value == CHANNEL


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
