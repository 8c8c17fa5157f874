"""Checks that no change of a model turns finite values into NaN or infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def finite(*arrays: NDArray[Any] | None) -> bool:
    """Return whether all values are finite. None and arrays of other types than float count as finite.

    Example:
        >>> finite(np.array([1.0, 2.0]), None), finite(np.array([np.inf]))
        (True, False)
    """
    return all(a is None or a.dtype.kind != "f" or bool(np.isfinite(a).all()) for a in arrays)


def product(values: NDArray[Any], factors: NDArray[Any]) -> NDArray[Any] | None:
    """Multiply values by factors that broadcast, and keep the dtype of the values.

    Returns:
        The product, or None where finite values would become infinite or NaN.

    Example:
        >>> product(np.array([60000.0], np.float16), np.array([2.0])) is None
        True
    """
    with np.errstate(over="ignore", invalid="ignore"):
        made: NDArray[Any] = (values * factors).astype(values.dtype)
    return made if finite(made) or not finite(values) else None
