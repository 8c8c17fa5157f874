"""What the page asks a run to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxshot.calibration.preset import preset_names
from onnxshot.targets import TARGETS
from onnxshot.ui.refused import Refused

OWN_PRESET = "file"
"""The preset that stands for the YAML file that was given."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How to compress: names that the page offers and nothing else, so that none can name a file of this machine.

    Attributes:
        target: name of a target.
        preset: name of a preset, 'none', or OWN_PRESET.
        level: the optim level, from 0, int8 alone, to 1 (see recipes/level.py).
    """

    target: str = "ort"
    preset: str = "none"
    level: float = 0.0

    def __post_init__(self) -> None:
        for name, known in choices().items():
            if getattr(self, name) not in known:
                raise Refused(f"{name} is {getattr(self, name)!r}", f"one of {', '.join(known)}")
        if isinstance(self.level, bool) or not isinstance(self.level, int | float) or not 0 <= self.level <= 1:
            raise Refused(f"level is {self.level!r}", "a number from 0 to 1")

    @classmethod
    def from_json(cls, values: Any) -> Asked:
        """From what came in. Raises Refused on anything unknown."""
        if not isinstance(values, dict) or values.keys() - cls.__slots__:
            raise Refused("that is no run", f"keys: {', '.join(cls.__slots__)}")
        return cls(**values)


def choices() -> dict[str, list[str]]:
    """What can be chosen, by name."""
    return {"target": list(TARGETS), "preset": ["none", *preset_names(), OWN_PRESET]}
