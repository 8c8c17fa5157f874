"""Tables of pandas and polars as samples, one a row; neither library is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxshot.calibration.checks import InputSpec, as_array
from onnxshot.calibration.user_functions import users_code
from onnxshot.errors import CalibrationError

_SHOWN = 6  # most columns in a message


def is_table(source: object) -> bool:
    """Whether an object has named columns, each of which becomes an array."""
    return hasattr(source, "columns") and hasattr(source, "to_numpy") and hasattr(source, "__getitem__")


def records(table: Any, label: str) -> list[dict[str, Any]]:
    """The rows of a table as dicts."""
    with users_code(label):
        names = [str(name) for name in table.columns]
        columns = [table[name].to_numpy() for name in table.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def table_arrays(table: Any, specs: Sequence[InputSpec], label: str) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The columns of a table as arrays by input name, with a sample in each row.

    A column belongs to the input of its name. A model of one input [N, F] whose name is no column takes all F columns
    as its features, in their order.

    Returns:
        The arrays; None where the cells of a column hold lists or arrays, so that rows are read one by one. And notes.

    Raises:
        CalibrationError: columns are missing, or are not as many as the model has features.
    """
    with users_code(label):
        columns = [str(name) for name in table.columns]
    names = [spec.name for spec in specs]
    if set(names) <= set(columns):
        with users_code(label):
            arrays = {str(name): table[name].to_numpy() for name in table.columns if str(name) in names}
        if any(x.dtype.hasobject and not all(isinstance(one, str) for one in x.flat) for x in arrays.values()):
            return None, ()
        others = [name for name in columns if name not in names]
        return arrays, (f"{_listed(others)} of {label} dropped: not inputs of the model",) if others else ()
    spec = specs[0]
    if len(specs) > 1 or spec.shape is None or len(spec.shape) != 2:
        missing = next(name for name in names if name not in columns)
        what = f"input {missing!r} is no column of {label}, which has {_listed(columns)}"
        raise CalibrationError(what, "name columns as the inputs, or give transform=, which gets each row as a dict")
    with users_code(label):
        matrix = as_array(table.to_numpy(), spec.name, label)
    wanted = spec.shape[1]
    if isinstance(wanted, int) and wanted != matrix.shape[1]:
        what = f"input {spec.name!r} expects {spec}; {label} has {matrix.shape[1]} columns: {_listed(columns)}"
        raise CalibrationError(what, f"select the {wanted} columns that the model takes, in its order: df[[...]]")
    if matrix.dtype.kind in "iub":
        matrix = matrix.astype(np.float64) if spec.dtype.kind == "f" else matrix
    return {spec.name: matrix}, (f"the {matrix.shape[1]} columns of {label}, in their order, are input {spec.name!r}",)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
