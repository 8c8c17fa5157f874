"""Balance the columns of tensors in front of products, where features of very different size share a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.calibration.readers import Dataset, split
from onnxshot.calibration.sampling import spread
from onnxshot.comparison.random_nodes import fix_randomness
from onnxshot.graph import Model, Node, Tensor, edit, weights
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.column_balance import balancing_factors, factors_without_data, rows_differ
from onnxshot.passes.balance_columns import BalanceColumns, column_axis, columns, products_of, scaled_with, tables
from onnxshot.planning.plan import FLOAT, Plan
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.runtimes.parallel import in_order
from onnxshot.stages.open_samples import Samples
from onnxshot.stages.prepare_model import Prepared

Factors = dict[str, NDArray[np.float32]]

_SAMPLES = 8  # that columns are looked at on
_ROWS = 256  # of a tensor, from all samples together
_NAMED = 3  # tensors in a note


def balance_columns(prepared: Prepared, samples: Samples) -> list[str]:
    """Balance the float model where rounding would lose its small columns; the outputs stay the same.

    The weights say where to look; samples are run only where their rows differ much, and calibration samples alone.
    Without samples, inputs of the model are balanced by the weights. With `smooth: false`, a statistics file or kept
    scales nothing is changed.

    Returns:
        Notes for the user. `prepared.model` is changed in place.

    Raises:
        ModelError: the model does not run on the samples.
    """
    recipe, data = prepared.recipe, samples.data
    if samples.stats is not None or prepared.trained or recipe.smooth is False or not recipe.quantizes:
        return []  # a file of statistics was made for the model as it is
    unequal = _unequal(prepared.model, prepared.plan())
    if not unequal:
        return []
    real = data if data is not None and not data.random else None
    found = _without_data(unequal) if real is None else _by_samples(prepared, unequal, real)
    if not found or not BalanceColumns(found).run(prepared.model).edits:
        return []
    named = ", ".join(list(found)[:_NAMED]) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
    guess = "" if real is not None else "; without samples, by the sizes of their weights"
    return [f"columns of very different size were balanced by powers of two: {named}{guess}"]


def _without_data(unequal: Mapping[Tensor, list[Node]]) -> Factors:
    return {
        tensor.name: factors_without_data(tables(users))
        for tensor, users in unequal.items()
        if edit.producer(tensor) is None
    }


def _by_samples(prepared: Prepared, unequal: Mapping[Tensor, list[Node]], data: Dataset) -> Factors:
    found: Factors = {}
    seen = _looked_at(prepared, unequal, data)
    for tensor, users in unequal.items():
        if tensor.name in seen and seen[tensor.name].rows:
            one = seen[tensor.name]
            factors = balancing_factors(one.absmax, np.concatenate(one.rows), tables(users))
            found |= {} if factors is None else {tensor.name: factors}
    return found


def _unequal(model: Model, plan: Plan) -> dict[Tensor, list[Node]]:
    """The tensors that nodes to quantize multiply by weights with rows of very different size."""
    wanted = {n.node for n in plan.nodes if n.how != FLOAT and n.has_weight} | plan.stored.keys()
    return {
        tensor: users
        for tensor, users in products_of(model).items()
        if _may_be_unequal(tensor, users)
        and any(user.label in wanted for user in users)
        and sum(weights.size_bytes(user.inputs[1]) for user in users) <= memory.part_bytes()
        and any(rows_differ(table) for table in tables(users))
    }


def _may_be_unequal(tensor: Tensor, users: list[Node]) -> bool:
    """False for what a layer makes for Convs: its unequal channels are mostly dead ones, and are equalized."""
    maker = edit.producer(tensor)
    return users[0].op != "Conv" or maker is None or maker.op == "Concat"


@dataclass(slots=True)
class _Seen:
    """What samples brought to a tensor: the largest absolute value of each column [K], and some rows [M, K].

    Where the tensor's makers take the factors, the largest values of what is scaled with it count too: a sum in front
    of a Relu may be much larger than what the Relu lets pass.
    """

    absmax: NDArray[np.float64]
    rows: list[NDArray[np.float32]]


def _looked_at(prepared: Prepared, unequal: Mapping[Tensor, list[Node]], data: Dataset) -> dict[str, _Seen]:
    """What samples bring to the tensors, by name; without tensors of other sizes than expected."""
    numbers = split(len(data))[0]
    chosen = [numbers[i] for i in spread(len(numbers))[:_SAMPLES]]
    samples = list(in_order(data.__getitem__, chosen, prepared.settings.threads))
    given = {tensor.name for tensor in prepared.model.graph.inputs}
    axes = {tensor.name: (column_axis(users[0]), columns(users[0])) for tensor, users in unequal.items()}
    before = {name: of.name for of, users in unequal.items() for name in scaled_with(prepared.model, of, users)}
    inner = [name for name in (*axes, *before) if name not in given]
    share = max(1, _ROWS // max(1, len(samples)))
    found: dict[str, _Seen] = {}

    def see(name: str, value: NDArray[Any]) -> None:
        of = before.get(name, name)
        axis, count = axes[of]
        if value.ndim < 2 or value.shape[axis] != count or not value.size:
            return
        table = np.moveaxis(value, axis, -1).reshape(-1, count)
        absmax = np.abs(table).max(axis=0).astype(np.float64)
        seen = found.setdefault(of, _Seen(absmax, []))
        seen.absmax = np.maximum(seen.absmax, absmax)
        if of != name:
            return
        seen.rows.append(table[np.linspace(0, len(table) - 1, min(share, len(table))).astype(np.int64)])

    for sample in samples:
        for name in axes.keys() & given:
            see(name, np.asarray(sample.feed[name]))
    if inner:
        lean = LeanModel.of(prepared.model).edited(fix_randomness).exposing(inner)
        runner = Runner(lean, threads=1, outputs=inner, inner=True)
        for _, values in runner.events([sample.feed for sample in samples], prepared.settings.threads):
            for name, value in values.items():
                see(name, value)
    return found
