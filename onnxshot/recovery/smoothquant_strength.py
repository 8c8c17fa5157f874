"""SmoothQuant's strength: how far outliers of each product's input move into its weight, chosen by the product's error.

SmoothQuant (Xiao et al. 2022) divides the input of a product by a factor per channel and multiplies the weight by it.
The strengths that are tried, and the formula, are in `maths/smoothquant.py`. Without a search the default strength
there is applied by `planning/scales.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.readers import Sample
from onnxshot.calibration.stats import TensorStats
from onnxshot.comparison.random_nodes import fix_randomness
from onnxshot.graph import Model, Node, Tensor, edit, weights
from onnxshot.graph.copies import copy_of
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.affine import UINT8, PerChannel, QuantScheme
from onnxshot.maths.smoothquant import Rows, Smoothing, search_smoothing
from onnxshot.passes.apply_smoothquant import ApplySmoothQuant, absorbs, reached
from onnxshot.planning.plan import DYNAMIC, STATIC, Plan
from onnxshot.planning.scales import Evidence
from onnxshot.planning.smoothable import readers_of
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.runtimes.parallel import in_order
from onnxshot.settings import Settings

_LARGE = 128 << 20  # bytes of weights above which a model is large
_COLUMNS = 256  # columns of each weight of a large model that are looked at
_ROWS = 512  # rows of a tensor, from all samples together, that products are computed on
_WELL_DB = 36.0  # products with this SQNR cause too little error for a gain to show at the outputs
_GAIN_DB = 1.0  # least gain of a tensor's products that is worth a division
_PRODUCTS_PER_MUL = 3  # at most one added Mul per three products: each takes about 0.1 % of a small encoder's time


def is_large(model: Model) -> bool:
    """Whether samples and weights cost so much that fewer are looked at. It does not depend on the memory budget."""
    return model.weight_bytes() > _LARGE


def smoothed(
    model: Model,
    whole: Plan,
    plan: Plan,
    stats: Mapping[str, TensorStats],
    samples: Sequence[Sample],
    settings: Settings,
) -> tuple[Model, Mapping[str, TensorStats]] | None:
    """Move outliers into the weights of static products, in a copy of the model.

    Args:
        model: the float model.
        whole: the plan that factors are searched for, without exclusions.
        plan: the plan in use; only tensors that its static products read are divided.
        stats: statistics of the model's tensors.
        samples: what products are computed on.
        settings: threads, and the progress callback.

    Returns:
        The copy, and the statistics that hold for it too: those of all tensors that the division does not reach. None
        where no product gains by it.
    """
    names = [tensor.name for tensor in readers_of(model, plan, STATIC)]
    if not names:
        return None
    found = search(model, whole, STATIC, samples, stats, threads=settings.threads, progress=settings.progress)
    factors = worthwhile_factors(model, whole, found)
    factors = {name: factors[name] for name in names if name in factors}
    if not factors:
        return None
    copy = copy_of(model)
    ApplySmoothQuant(factors, whole.labels(STATIC)).run(copy)
    edit.remove_unused(copy)
    tensors = model.tensors()
    changed = set().union(*(reached(tensors[name]) for name in factors))
    return copy, {name: known for name, known in stats.items() if name not in changed}


def strengths(
    model: Model, whole: Plan, plan: Plan, evidence: Evidence, samples: Sequence[Sample], settings: Settings
) -> dict[str, float]:
    """The best strength, 0 to 1, for each input of dynamic products that the plan smooths, by tensor name."""
    if not plan.smoothing:
        return {}
    found = search(
        model, whole, DYNAMIC, samples, evidence.stats, only=plan.smoothing, threads=settings.threads,
        progress=settings.progress,
    )  # fmt: skip
    return {name: s.strength for name, s in found.items()}


def search(
    model: Model,
    plan: Plan,
    how: str,
    samples: Sequence[Sample],
    stats: Mapping[str, TensorStats],
    *,
    only: Collection[str] | None = None,
    threads: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Smoothing]:
    """Search the best smoothing of every tensor that static or dynamic products read.

    Memory: _ROWS rows of every tensor of a part of the model, what `Runner.events` holds, and for as many tensors as
    threads at a time the largest weight that reads it.

    Args:
        model: the float model.
        plan: its plan.
        how: 'static' or 'dynamic': which products.
        samples: what products are computed on.
        stats: statistics of the tensors. Their per-channel maxima also cover samples that are not in `samples`.
        only: names of the tensors to search; by default all.
        threads: of the session.
        progress: called after each tensor.

    Returns:
        Tensor name -> its best smoothing, in graph order.
    """
    readers = {tensor.name: nodes for tensor, nodes in readers_of(model, plan, how).items()}
    readers = {name: nodes for name, nodes in readers.items() if only is None or name in only}
    columns = _COLUMNS if is_large(model) else None
    found: dict[str, Smoothing] = {}
    if not readers:
        return found

    def searched(gathered: tuple[str, Rows]) -> tuple[str, Smoothing | None]:
        name, rows = gathered
        nodes = readers[name]
        if _channels(nodes[0]) != rows.values.shape[1]:
            return name, None
        known = np.asarray(stats[name].channel_absmax if name in stats else (), np.float32)
        activation = plan.tensors[name].scheme if how == STATIC else QuantScheme(UINT8)
        seen = rows.widened(known) if how == STATIC and len(known) == rows.values.shape[1] else rows
        schemes = [_scheme(node, plan) for node in nodes]
        return name, search_smoothing(
            seen, _Tables(nodes), activation, schemes, per_sample=how == DYNAMIC, columns=columns
        )

    rows_of = _gathered(model, list(readers), samples, threads)
    for done, (name, one) in enumerate(in_order(searched, rows_of, threads), 1):
        if one is not None:
            found[name] = one
        if progress is not None:
            progress("inputs of products searched", done, len(readers))
    return {name: found[name] for name in readers if name in found}


def worthwhile_factors(model: Model, plan: Plan, found: Mapping[str, Smoothing]) -> dict[str, NDArray[np.float32]]:
    """Factors for inputs of static products that gain by it: all that need no added Mul, and the best of the others."""
    readers = {tensor.name: (tensor, nodes) for tensor, nodes in readers_of(model, plan, STATIC).items()}
    gains = [n for n, s in found.items() if n in readers and s.plain_db < _WELL_DB and s.db >= s.plain_db + _GAIN_DB]
    free = {name for name in gains if _is_free(model, *readers[name])}
    most = sum(len(nodes) for _, nodes in readers.values()) // _PRODUCTS_PER_MUL
    loudest = sorted((name for name in gains if name not in free), key=lambda name: -found[name].noise_removed)[:most]
    return {name: found[name].factors for name in gains if name in free or name in loudest}


def _is_free(model: Model, tensor: Tensor, products: Sequence[Node]) -> bool:
    return set(edit.consumers(tensor)) == set(products) and absorbs(model, tensor, _channels(products[0]))


def _channels(node: Node) -> int:
    return int(node.inputs[1].shape[1 if node.attrs.get("transB", 0) else 0])


def _scheme(node: Node, plan: Plan) -> QuantScheme:
    """The scheme of a product's weight in shape [K, N]."""
    scheme = plan.weights[node.label].scheme
    if node.attrs.get("transB", 0) and isinstance(scheme.granularity, PerChannel):
        return replace(scheme, granularity=PerChannel(1 - scheme.granularity.axis % 2))
    return scheme


@dataclass(frozen=True, slots=True)
class _Tables:
    """The weights of products in shape [K, N], each read when it is iterated over."""

    nodes: Sequence[Node]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for node in self.nodes:
            weight = np.asarray(weights.read(node.inputs[1]))
            yield weight.T if node.attrs.get("transB", 0) else weight


@dataclass(slots=True)
class _Gathering:
    """Rows of one tensor, collected sample by sample."""

    seen: int = 0
    values: list[NDArray[np.float32]] = field(default_factory=list)
    low: list[NDArray[np.float32]] = field(default_factory=list)
    high: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, x: NDArray[Any], most: int) -> None:
        """Keep some evenly spaced rows of a sample's value, and the per-channel extremes of all its rows."""
        table = x.reshape(-1, x.shape[-1])
        if not len(table) or not np.isfinite(table).all():
            return
        at = np.linspace(0, len(table) - 1, min(most, len(table))).astype(np.int64)
        self.values.append(table[at].astype(np.float32, copy=False))
        self.low.append(table.min(axis=0))
        self.high.append(table.max(axis=0))

    def rows(self) -> Rows:
        sample = np.repeat(np.arange(len(self.values)), [len(rows) for rows in self.values])
        return Rows(np.concatenate(self.values), sample, np.asarray(self.low), np.asarray(self.high))


def _gathered(
    model: Model, names: Sequence[str], samples: Sequence[Sample], threads: int
) -> Iterator[tuple[str, Rows]]:
    """Yield rows of the tensors of a float model, as soon as all samples gave theirs.

    Tensors that were empty or not finite in every sample are left out.
    """
    inputs = {tensor.name for tensor in model.graph.inputs}
    wanted = [name for name in names if name not in inputs]
    lean = LeanModel.of(model).edited(fix_randomness).exposing(wanted)
    share = max(1, _ROWS // max(1, len(samples)))
    found = {name: _Gathering() for name in names}

    def add(name: str, value: NDArray[Any]) -> Iterator[tuple[str, Rows]]:
        gathering = found[name]
        if value.ndim:
            gathering.add(value, share)
        gathering.seen += 1
        if gathering.seen == len(samples):
            del found[name]
            if gathering.values:
                yield name, gathering.rows()

    for name in (name for name in names if name in inputs):
        for sample in samples:
            yield from add(name, np.asarray(sample.feed[name]))
    if wanted:
        runner = Runner(lean, threads=1, outputs=wanted, inner=True)
        for _, values in runner.events([sample.feed for sample in samples], threads):
            for name, value in values.items():
                yield from add(name, value)
