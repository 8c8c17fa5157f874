"""How many digits of a figure people are shown."""

from __future__ import annotations

import math


def significant(value: float, digits: int = 3) -> str:
    """A figure with so many significant digits, zeros at its end included; very small and large as powers of ten."""
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    before = math.floor(math.log10(abs(value))) + 1  # digits before the point; negative for zeros behind it
    return f"{value:.{max(digits - before, 0)}f}"


def apart(value: float, limit: float, decimals: int = 1) -> str:
    """A figure with so many decimals; with more where it would else read as the limit that it misses."""
    if not math.isfinite(value) or value == limit:
        return f"{value:.{decimals}f}"
    return next((text for n in range(decimals, 9) if float(text := f"{value:.{n}f}") != limit), f"{value!r}")
