"""Rows that a report draws: nodes in order with their work and zeros, and coarse histograms."""

import numpy as np
import pytest
from array_statistics import histogram_of, observe
from handmade.core import feeds, model, weight
from planned_models import FAST

import onnxshot
from onnxshot.calibration.stats import EMPTY
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import tensor_sizes
from onnxshot.report.values import TensorReport
from onnxshot.verification.report_rows import BINS, DRAWN, coarse_histogram, graph_rows, with_histograms

TEXT = "net (float[1,4] x) => (float[1,2] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"


def test_nodes_are_in_order_with_their_share_of_the_work_and_their_zeros() -> None:
    w = weight(4, 6)
    w[:, :3] = 0
    ready = load_model(model(TEXT, {"w": w, "v": weight(6, 2)}))
    rows = graph_rows(ready, tensor_sizes(ready).work(ready))
    assert [(row.op, row.tensor, row.how) for row in rows] == [
        ("MatMul", "a", "float"),
        ("Relu", "b", "float"),
        ("MatMul", "y", "float"),
    ]
    assert [row.macs_share for row in rows] == pytest.approx([24 / 36, 0, 12 / 36])
    assert [row.sparsity for row in rows] == [0.5, None, 0.0]


def test_the_report_states_what_the_plan_does_to_each_node() -> None:
    proto = model(TEXT, {"w": weight(4, 6), "v": weight(6, 2)})
    result = onnxshot.quantize(proto, feeds(8, x=(1, 4)), settings=FAST)
    planned = {node.node: node.how for node in result.plan.nodes}
    assert {row.node: row.how for row in result.report.graph} == planned


def test_a_coarse_histogram_merges_whole_bins() -> None:
    values = np.random.default_rng(0).normal(size=20000).astype(np.float32)
    found = coarse_histogram(histogram_of(values))
    assert found is not None
    assert len(found.counts) <= BINS
    assert sum(found.counts) == values.size
    edges = np.linspace(found.low, found.high, len(found.counts) + 1)
    assert found.counts == tuple(np.histogram(values, edges)[0])
    assert coarse_histogram(EMPTY) is None


def test_one_value_is_one_bin() -> None:
    found = coarse_histogram(histogram_of(np.full(7, 3.0, np.float32)))
    assert found is not None
    assert found.counts == (7,)
    assert found.low <= 3.0 < found.high


def test_tensors_with_the_lowest_sqnr_have_their_histogram() -> None:
    given = feeds(8, x=(1, 1, 16, 16))
    text = "net (float[1,1,16,16] x) => (float[1,4,16,16] y) { y = Conv<pads=[1,1,1,1]>(x, w) }"
    result = onnxshot.quantize(model(text, {"w": weight(4, 1, 3, 3)}), given, settings=FAST)
    stats = {"x": observe(*(feed["x"] for feed in given))}
    other, *rows = with_histograms([TensorReport(n, "", 9.0) for n in ("other", *"x" * DRAWN)], result.plan, stats)
    assert other.values is None
    assert rows[-1].values is None  # there are enough before it
    for row in rows[:-1]:
        assert row.values is not None
        assert sum(row.values.counts) == stats["x"].histogram.total
        assert row.values.low <= stats["x"].low
        assert stats["x"].high <= row.values.high
