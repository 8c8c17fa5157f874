"""One guard for all that is written into a model: what was finite stays finite."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def finite(*arrays: NDArray[Any] | None) -> bool:
    """Whether no float value is NaN or infinite; None, and what is not float, are finite."""
    return all(a is None or a.dtype.kind != "f" or bool(np.isfinite(a).all()) for a in arrays)


def product(values: NDArray[Any], factors: NDArray[Any]) -> NDArray[Any] | None:
    """The values times factors that broadcast, in their type; None where that makes a finite value infinite or NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        made: NDArray[Any] = (values * factors).astype(values.dtype)
    return made if finite(made) or not finite(values) else None
