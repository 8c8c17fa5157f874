"""Format figures for people: with units, and with as many digits as are significant."""

from __future__ import annotations

import math

from onnxshot.report.advice import megabytes as megabytes
from onnxshot.report.advice import sizes as sizes
from onnxshot.report.digits import significant

UNKNOWN = "not measured"


def decibels(value: float | None) -> str:
    """SQNR in dB."""
    if value is None:
        return UNKNOWN
    return f"{value:.1f} dB" if math.isfinite(value) else "exact"


def percent(share: float | None, digits: int = 1) -> str:
    """A share 0..1 in percent."""
    return "" if share is None else f"{100 * share:.{digits}f} %"


def milliseconds(value: float | None) -> str:
    """A latency."""
    return "" if value is None else f"{significant(value)} ms"


def seconds(value: float) -> str:
    """A duration."""
    return f"{value:.1f} s" if value >= 0.1 else f"{1000 * value:.0f} ms"


def number(value: float | None) -> str:
    """A value of a tensor."""
    return "" if value is None else f"{value:.4g}"


def noise(sqnr_db: float | None) -> float:
    """Root mean square of the error as a share of that of the signal, 10**(-dB / 20); 0 where it was not measured."""
    return 10 ** (-sqnr_db / 20) if sqnr_db is not None and math.isfinite(sqnr_db) else 0.0


def times(factor: float) -> str:
    """A ratio."""
    return f"{factor:.2f}×" if factor < 10 else f"{factor:.0f}×"
