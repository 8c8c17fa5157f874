"""What came of pruning: the model with its zeros, and a report with a row for each layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxshot.delivery.write_results import Made
from onnxshot.report.report import Report


@dataclass(frozen=True, slots=True)
class LayerSparsity:
    """One layer that was pruned.

    Attributes:
        layer, op: the node's name and operator.
        weights: how many it has.
        sparsity: share 0..1 of them that is zero now.
        before: share that was zero before.
        refitted: strength of the ridge with which the others moved towards the float layer's outputs; None where they
            only make up for those that went, or there was no data.
    """

    layer: str
    op: str
    weights: int
    sparsity: float
    before: float
    refitted: float | None = None


@dataclass(slots=True)
class PruneReport(Report):
    """What pruning did; `sparsity` is that of the layers that were to be pruned, all together.

    Attributes:
        layers: one row per pruned layer, in the order of the graph.
        sparsity_of_all: share 0..1 of zeros in all weights of the model, of layers that were left too.
        magnitude_sqnr_db: of the same numbers of zeros a layer, chosen by magnitude, with nothing made up for.
        packed_bytes: of the weights of the input and of the result, as gzip packs them; 0 where they are over 256 MB.
        worth: what the zeros bring on each target, in words.
    """

    layers: list[LayerSparsity] = field(default_factory=list)
    sparsity_of_all: float = 0.0
    magnitude_sqnr_db: float | None = None
    packed_bytes: tuple[int, int] = (0, 0)
    worth: tuple[str, ...] = ()


@dataclass(slots=True)
class PruneResult(Made):
    """A pruned model and the proof. Nothing is printed and, without an output path, nothing is kept on disk."""

    report: PruneReport
