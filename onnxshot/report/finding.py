"""A finding: one thing that speaks against a result, and the words that findings share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from onnxshot.maths.sqnr import CAP_DB
from onnxshot.report.advice import FLOOR_AGREEMENT, FLOOR_DB, Values, decibels
from onnxshot.report.digits import apart

MOST_NAMED = 3
"""How many outputs or nodes a reason names; the others are counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that speaks against a result.

    Attributes:
        level: caution or bad.
        reason: in words.
        next: what to do about it.
    """

    level: str
    reason: str
    next: str


Rule = Callable[[Values], Iterator[Finding]]


def too_low(what: str, db: float | None) -> str:
    """Say that an SQNR is below the floor, and how large the error is."""
    if db is not None and db <= -CAP_DB:
        return f"{what} is {decibels(db)}: outputs are infinite or NaN, or those of the input are all zero"
    share = "" if db is None or not math.isfinite(db) else f": the error is {_noise(db)} of the signal"
    shown = decibels(db) if db is None or not math.isfinite(db) else f"{apart(db, FLOOR_DB)} dB"
    return f"{what} is {shown}, below {FLOOR_DB:g} dB{share}"


def too_different(what: str, share: float | None) -> str:
    """Say that a share of equal values is below the floor."""
    return f"{what} is {apart(100 * (share or 0.0), 100 * FLOOR_AGREEMENT)} %, below {100 * FLOOR_AGREEMENT:g} %"


def _noise(db: float) -> str:
    share = 10 ** (-db / 20)
    return f"{100 * share:.0f} %" if share < 10 else "more than ten times the size"
