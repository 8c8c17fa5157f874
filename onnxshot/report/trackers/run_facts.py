"""What a tracker of experiments is told of one run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One run.

    Attributes:
        name: of the model, and of the target where there are several.
        asked: fields of the recipe, as text.
        figures: what was measured, by name.
        layers: (tensor, SQNR in dB), worst first.
        notes: what else a person should know.
        page: the report as HTML.
    """

    name: str
    asked: dict[str, str]
    figures: dict[str, float]
    layers: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]
    page: str
