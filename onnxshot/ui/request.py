"""The options that the page sends with a run, validated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from onnxshot.calibration.preset import preset_names
from onnxshot.calibration.text_preset import MOST_LENGTH
from onnxshot.targets import TARGETS
from onnxshot.ui.refused import Refused

OWN_PRESET = "file"
"""The preset value that stands for the uploaded YAML file."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How to compress. Only names that the page offers are accepted, so no value can be a path on this machine.

    Attributes:
        target: name of a target.
        preset: name of a preset, 'none', or OWN_PRESET.
        level: the optim level, from 0 (int8 only) to 1; see recipes/sparsity_level.py.
        length: tokens of a text; None for the default.
        search_seconds: how long a run goes on where its result is not good enough, as in `Settings`; None for the
            default.
        accept: whether a result below the floor of accuracy is accepted, as in `Settings`.
    """

    target: str = "ort"
    preset: str = "none"
    level: float = 0.0
    length: int | None = None
    search_seconds: float | None = None
    accept: bool = False

    def __post_init__(self) -> None:
        for name, known in choices().items():
            if getattr(self, name) not in known:
                raise Refused(f"{name} is {getattr(self, name)!r}", f"one of {', '.join(known)}")
        if not _is_number(self.level) or not 0 <= self.level <= 1:
            raise Refused(f"level is {self.level!r}", "a number from 0 to 1")
        if self.length is not None and (type(self.length) is not int or not 1 <= self.length <= MOST_LENGTH):
            raise Refused(f"length is {self.length!r}", f"a number of tokens from 1 to {MOST_LENGTH}")
        seconds = 0 if self.search_seconds is None else self.search_seconds
        if not _is_number(seconds) or not 0 <= seconds < math.inf:
            raise Refused(f"search_seconds is {seconds!r}", "a number of seconds, 0 or above")
        if not isinstance(self.accept, bool):
            raise Refused(f"accept is {self.accept!r}", "true or false")

    @classmethod
    def from_json(cls, values: Any) -> Asked:
        """Validate the JSON values of a request. Raises Refused for unknown keys."""
        if not isinstance(values, dict) or values.keys() - cls.__slots__:
            raise Refused("the request is invalid", f"keys: {', '.join(cls.__slots__)}")
        return cls(**values)


def choices() -> dict[str, list[str]]:
    """Return the values that the page offers, by field."""
    return {"target": list(TARGETS), "preset": ["none", *preset_names(), OWN_PRESET]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
