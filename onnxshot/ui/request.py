"""The options that the page sends with a run, validated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from onnxshot.calibration.preset import preset_names
from onnxshot.calibration.text_preset import MOST_LENGTH
from onnxshot.delivery.artifacts import ONNX
from onnxshot.recipes.vocabulary import EFFORTS
from onnxshot.targets import TARGETS, target_named
from onnxshot.ui.refused import Refused

NO_PRESET = "none"
"""The preset value that stands for none: sounds, texts and arrays need none."""
OWN_PRESET = "file"
"""The preset value that stands for the uploaded YAML file."""
_GOALS = {"min_sqnr": "dB", "min_agreement": "a share from 0 to 1", "max_size": "MB", "max_latency": "ms"}


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
        effort: how much is tried to recover accuracy; None for the default of the level.
        min_sqnr: least SQNR of the outputs in dB, as in `Goal`.
        min_agreement: least share 0..1 of samples with the same answer as the float model.
        max_size: most megabytes of the file.
        max_latency: most milliseconds of a run.
    """

    target: str = "ort"
    preset: str = "none"
    level: float = 0.0
    length: int | None = None
    search_seconds: float | None = None
    accept: bool = False
    effort: str | None = None
    min_sqnr: float | None = None
    min_agreement: float | None = None
    max_size: float | None = None
    max_latency: float | None = None

    def __post_init__(self) -> None:
        for name, known in choices().items():
            if getattr(self, name) not in known and (name, self.effort) != ("effort", None):
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
        self._check_goals()

    def _check_goals(self) -> None:
        for name, value in self.goals().items():
            most = 1 if name == "min_agreement" else math.inf
            if not _is_number(value) or not math.isfinite(value) or (name != "min_sqnr" and not 0 <= value <= most):
                raise Refused(f"{name} is {value!r}", f"a number: {_GOALS[name]}")
        if self.searched() and target_named(self.target).emits != ONNX:
            raise Refused(
                f"goals are searched for in ONNX Runtime, and target {self.target} writes another format",
                "leave the goals empty, or choose target ort or portable",
            )

    def goals(self) -> dict[str, Any]:
        """The goals that are asked for, by name."""
        return {name: getattr(self, name) for name in _GOALS if getattr(self, name) is not None}

    def searched(self) -> dict[str, float]:
        """The goals that a search goes for: at a level above 0, and of agreement, they are only checked at the end."""
        return {} if self.level else {name: goal for name, goal in self.goals().items() if name != "min_agreement"}

    @classmethod
    def from_json(cls, values: Any) -> Asked:
        """Validate the JSON values of a request. Raises Refused for unknown keys."""
        if not isinstance(values, dict) or values.keys() - cls.__slots__:
            raise Refused("the request is invalid", f"keys: {', '.join(cls.__slots__)}")
        return cls(**values)


def choices() -> dict[str, list[str]]:
    """Return the values that the page offers, by field."""
    return {"target": list(TARGETS), "preset": [NO_PRESET, *preset_names(), OWN_PRESET], "effort": list(EFFORTS)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
