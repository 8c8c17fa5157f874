"""The result of `prune`: the model, and a report with one row per layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxshot.delivery.write_results import Made
from onnxshot.report.html.notebook import report_line
from onnxshot.report.report import Report


@dataclass(frozen=True, slots=True)
class LayerSparsity:
    """One pruned layer.

    Attributes:
        layer: Name of the node.
        op: Operator of the node.
        weights: Number of weights.
        sparsity: Share 0..1 of zeros.
        before: Share 0..1 of zeros before pruning.
        refitted: Strength of the ridge regression that moved the weights towards the float layer's outputs; None if
            they only compensate for the zeros, or there was no data.
    """

    layer: str
    op: str
    weights: int
    sparsity: float
    before: float
    refitted: float | None = None


@dataclass(slots=True, repr=False)
class PruneReport(Report):
    """The report of `prune`; `sparsity` is that of the pruned layers together.

    Attributes:
        layers: One row per pruned layer, in graph order.
        sparsity_of_all: Share 0..1 of zeros in all weights of the model.
        magnitude_sqnr_db: SQNR in dB with as many zeros per layer chosen by magnitude, without compensation.
        packed_bytes: Bytes of the weights before and after, compressed by gzip; 0 for weights over 256 MB.
        worth: What the zeros bring on each target, one sentence each.

    Example:
        >>> report = onnxshot.prune("model.onnx", "samples/", sparsity=0.5).report
        >>> [(row.layer, row.sparsity) for row in report.layers]
    """

    layers: list[LayerSparsity] = field(default_factory=list)
    sparsity_of_all: float = 0.0
    magnitude_sqnr_db: float | None = None
    packed_bytes: tuple[int, int] = (0, 0)
    worth: tuple[str, ...] = ()


@dataclass(slots=True, repr=False)
class PruneResult(Made):
    """A pruned model and its report.

    Attributes:
        model: The model.
        report: Accuracy, latency and sparsity.

    Example:
        >>> sparse = onnxshot.prune("model.onnx", "samples/", sparsity=0.5)
        >>> result = onnxshot.quantize(sparse, "samples/")
    """

    report: PruneReport

    def __repr__(self) -> str:
        """One line: the file and its figures."""
        return report_line("PruneResult", self.report.to_dict())

    def _repr_html_(self) -> str:
        """A card, which notebooks show."""
        return self.report._repr_html_()
