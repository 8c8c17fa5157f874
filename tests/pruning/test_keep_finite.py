"""A pruned model gives no NaN where the model's outputs are finite: layers in front of a Log fall back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from handmade.core import Feed, model
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

import onnxshot
from onnxshot.errors import ModelError
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.pruning_masks import Pattern
from onnxshot.pruning.keep_finite import Fallback, FiniteGuard
from onnxshot.pruning.layerwise_pruning import PrunedLayer, by_magnitude
from onnxshot.pruning.prunable_layers import layers_named

QUIET = onnxshot.Settings(threads=1, use_cache=False)


def spectrum(mixing: NDArray[np.float32], *, layers: int = 1) -> ModelProto:
    """Linear layers whose outputs a Log takes: positive for positive inputs."""
    first = "h = MatMul(x, f)" if layers > 1 else "h = Identity(x)"
    text = f"""g (float[n, 12] x) => (float[n, 6] y, float[n, 4] z) {{
        {first}
        m = MatMul(h, w)
        y = Log(m)
        z = MatMul(y, v)
    }}"""
    rng = np.random.default_rng(6)
    constants = {"w": mixing, "v": rng.normal(size=(6, 4)).astype(np.float32)}
    constants |= {"f": np.eye(12, dtype=np.float32) + np.float32(0.01)} if layers > 1 else {}
    return model(text, constants)


def energies(count: int = 32) -> list[Feed]:
    """Positive; all mixed from three, so that one weight can make up for another, and some left out by chance."""
    rng = np.random.default_rng(8)
    mix = np.concatenate([np.eye(3), 0.5 * np.abs(np.random.default_rng(1).normal(size=(3, 9)))], axis=1)
    found = []
    for _ in range(count):
        loud = np.exp(rng.normal(0, 2, (4, 3))) @ mix + 1e-3
        found.append({"x": (loud * (rng.random((4, 12)) < 0.6) + 1e-4).astype(np.float32)})
    return found


def bank() -> NDArray[np.float32]:
    """All positive, with one large weight in each column, which magnitude keeps."""
    found = np.random.default_rng(9).uniform(0.1, 1.0, (12, 6)).astype(np.float32)
    found[np.arange(6), np.arange(6)] = 3.0
    return found


def guarded(proto: ModelProto, sparsity: float) -> FiniteGuard:
    """Of the layers in front of the Log."""
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"n{number}"
    labels = [n.name for n in proto.graph.node if n.op_type == "MatMul" and n.input[1] != "v"]
    lean = LeanModel.of(proto)
    layers = layers_named(lean, labels)
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    tables = {layer.name: stored[layer.weight] for layer in layers}
    return FiniteGuard(lean, layers, tables, {la.name: int(sparsity * la.size) for la in layers}, Pattern(), 1)


def outputs(path: Path, feeds: list[Feed]) -> list[NDArray[np.float32]]:
    run = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [value for feed in feeds for value in run.run(None, dict(feed))]


def test_a_layer_in_front_of_a_log_is_pruned_by_magnitude_where_fitting_makes_it_negative(tmp_path: Path) -> None:
    out, feeds = tmp_path / "p.onnx", energies()
    report = onnxshot.prune(spectrum(bank()), feeds, sparsity=0.9, scope="layer", output=out, settings=QUIET).report
    assert all(np.isfinite(value).all() for value in outputs(out, feeds))
    assert [note for note in report.notes if "pruned by magnitude alone: otherwise" in note]
    assert report.sparsity == pytest.approx(0.9, abs=0.02)
    assert report.not_finite == []


def test_a_layer_keeps_its_weights_where_magnitude_makes_it_negative_too() -> None:
    mixing = np.full((12, 6), 0.2, np.float32)
    mixing[3] = -1.0  # the largest of all: what magnitude keeps
    feeds = energies()
    for feed in feeds:
        feed["x"][:, 3] = 0.01 * feed["x"].sum(axis=1)
    guard = guarded(spectrum(mixing), 0.9)
    (layer,) = guard.layers
    found = {layer.name: by_magnitude(layer, mixing, Pattern(), 65)}
    fallbacks = guard.fallbacks_for(found, {}, feeds)
    assert fallbacks == {layer.name: Fallback.WHOLE}
    np.testing.assert_array_equal(guard.applied(found, fallbacks)[layer.name].weight, mixing)
    assert guard.fallbacks_for(found, fallbacks, feeds) == fallbacks


def test_the_layer_that_is_at_fault_falls_back_alone_and_two_where_both_are() -> None:
    guard = guarded(spectrum(bank(), layers=2), 0.5)
    first, second = guard.layers
    right = {la.name: PrunedLayer(guard.tables[la.name]) for la in guard.layers}
    assert guard.fallbacks_for(right, {}, energies(4)) == {}
    one = {**right, first.name: PrunedLayer(-guard.tables[first.name])}
    assert guard.fallbacks_for(one, {}, energies(4)) == {first.name: Fallback.WHOLE}
    both = {la.name: PrunedLayer(0 * guard.tables[la.name]) for la in guard.layers}
    assert guard.fallbacks_for(both, {}, energies(4)) == {first.name: Fallback.WHOLE, second.name: Fallback.WHOLE}


def test_what_is_not_finite_in_the_model_itself_asks_for_nothing() -> None:
    guard = guarded(spectrum(-bank()), 0.5)
    (layer,) = guard.layers
    assert guard.fallbacks_for({layer.name: PrunedLayer(-bank())}, {}, energies(4)) == {}


def test_a_fault_that_no_layer_explains_is_an_error() -> None:
    guard = guarded(spectrum(bank()), 0.5)
    (layer,) = guard.layers
    odd = replace(guard, tables={layer.name: -bank()})
    with pytest.raises(ModelError, match="'y' \\(Log\\) is NaN or infinite on a sample"):
        odd.fallbacks_for({layer.name: PrunedLayer(-bank())}, {}, energies(4))


def test_nothing_is_written_where_an_output_is_not_finite_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FiniteGuard, "fallbacks_for", lambda guard, found, fallbacks, feeds: fallbacks)
    out = tmp_path / "p.onnx"
    with pytest.raises(ModelError, match="NaN or infinite"):
        onnxshot.prune(spectrum(bank()), energies(), sparsity=0.9, scope="layer", output=out, settings=QUIET)
    assert list(tmp_path.iterdir()) == []


def test_zeros_are_told_of_the_layers_that_were_pruned_and_of_all_weights() -> None:
    """A table of an embedding is most of the model, and is not pruned."""
    text = "g (int64[n] ids) => (float[n, 8] y) { e = Gather(table, ids) y = MatMul(e, w) }"
    rng = np.random.default_rng(4)
    constants = {name: rng.normal(size=(rows, 8)).astype(np.float32) for name, rows in (("table", 200), ("w", 8))}
    data = [{"ids": rng.integers(0, 200, 32)} for _ in range(8)]
    result = onnxshot.prune(model(text, constants), data, sparsity=0.5, settings=QUIET)
    stored = [numpy_helper.to_array(t) for t in result.model.to_proto().graph.initializer]
    zeros = sum(int(np.sum(a == 0)) for a in stored) / sum(a.size for a in stored)
    assert result.report.sparsity == pytest.approx(0.5)
    assert result.report.sparsity_of_all == pytest.approx(zeros)
    assert zeros < 0.03
