"""What is logged of one run to an experiment tracker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One run.

    Attributes:
        name: name of the model, and of the target where there are several.
        asked: fields of the recipe, as text.
        figures: measurements, by name.
        layers: pairs of a tensor and its SQNR in dB, the worst first.
        notes: the verdict, and the notes of the report.
        page: the report as an HTML page.
    """

    name: str
    asked: dict[str, str]
    figures: dict[str, float]
    layers: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]
    page: str
