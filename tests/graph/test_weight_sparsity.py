"""Zeros of weights: how many, in which pattern, and that quantization keeps them."""

import zlib
from typing import Any

import numpy as np
import pytest
from handmade.core import feeds, model, vector, weight
from numpy.typing import NDArray
from planned_models import FAST

import onnxshot
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import macs
from onnxshot.graph.weight_sparsity import layers_of, sparsity_notes
from onnxshot.maths.sparsity_patterns import pattern, sparsity

Array = NDArray[np.float32]


def masked(values: Array, of: int, keep: int) -> Array:
    """Keep the largest `keep` of every few consecutive inputs."""
    table = np.moveaxis(values, 1, -1).copy()
    groups = table.reshape(-1, of)
    small = np.argsort(np.abs(groups), axis=1)[:, : of - keep]
    np.put_along_axis(groups, small, 0.0, axis=1)
    return np.ascontiguousarray(np.moveaxis(groups.reshape(table.shape), -1, 1))


def unstructured(values: Array, share: float) -> Array:
    return np.where(np.abs(values) > np.quantile(np.abs(values), share), values, 0).astype(np.float32)


def blocks(values: Array) -> Array:
    keep = np.random.default_rng(0).random((values.shape[0] // 4, 1, *values.shape[1:])) < 0.5
    return (values.reshape(-1, 4, *values.shape[1:]) * keep).reshape(values.shape).astype(np.float32)


W = weight(16, 8, 3, 3)
OUTPUTS_GONE = np.where(np.arange(16)[:, None, None, None] % 4 == 1, 0, W)
INPUTS_GONE = np.where(np.arange(8)[None, :, None, None] == 3, 0, W)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (W, "dense"),
        (unstructured(W, 0.6), "unstructured"),
        (masked(W, 4, 2), "2:4"),
        (masked(W, 4, 1), "1:4"),
        (masked(weight(8, 6), 2, 1), "unstructured"),  # 6 inputs are no multiple of 4
        (blocks(W), "block:4x1"),
        (OUTPUTS_GONE, "channels"),
        (INPUTS_GONE, "channels"),
        (np.zeros((4, 4), np.float32), "channels"),
        (np.zeros((0, 4), np.float32), "dense"),
    ],
)
def test_detected_patterns(values: Array, expected: str) -> None:
    assert pattern(values) == expected


def test_sparsity_equals_the_share_counted_with_numpy() -> None:
    values = unstructured(W, 0.6)
    assert sparsity(values) == pytest.approx((values == 0).mean())


def network(**changed: Array) -> Any:
    text = """g (float[1, 8, 6, 6] x) => (float[1, 10] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p)
        h = Gemm<transB = 1>(f, k, kb) q = Relu(h) y = MatMul(q, m) }"""
    constants = {"w": W, "b": vector(16), "k": weight(12, 16), "kb": vector(12), "m": weight(12, 10, channel_axis=1)}
    return model(text, constants | changed)


def test_every_weight_is_listed_with_outputs_first() -> None:
    pruned = network(k=masked(weight(12, 16), 4, 2), m=masked(weight(10, 12), 4, 2).T.copy())
    found = layers_of(load_model(pruned), macs(load_model(pruned)))
    assert [(x.op, x.shape, x.pattern) for x in found] == [
        ("Conv", (16, 8, 3, 3), "dense"), ("Gemm", (12, 16), "2:4"), ("MatMul", (12, 10), "2:4"),
    ]  # fmt: skip
    assert [x.macs for x in found] == [16 * 8 * 9 * 36, 12 * 16, 12 * 10]
    assert [x.sparsity for x in found] == [0.0, 0.5, 0.5]
    assert [x.bytes for x in found] == [4 * 16 * 8 * 9, 4 * 12 * 16, 4 * 12 * 10]
    assert found[1].packed_bytes == len(zlib.compress(masked(weight(12, 16), 4, 2).tobytes(), 6))


def test_quantized_weights_have_the_same_zeros() -> None:
    pruned = network(w=masked(W, 4, 2), k=unstructured(weight(12, 16), 0.7))
    given = feeds(24, x=(1, 8, 6, 6))
    for effort in ("fast", "best"):
        result = onnxshot.quantize(pruned, given, settings=FAST, effort=effort, include=("Gemm",))
        before, after = (layers_of(load_model(m), {}) for m in (pruned, result.model.to_proto()))
        assert len(before) == len(after)
        quantized = [(x, y) for x, y in zip(before, after, strict=True) if y.bytes * 4 == x.bytes]
        assert "Conv" in [x.op for x, _ in quantized]
        for x, y in quantized:
            assert y.sparsity >= x.sparsity
            assert x.pattern in ("dense", y.pattern)


def test_notes_on_zeros_appear_only_where_there_are_zeros() -> None:
    dense = load_model(network())
    assert sparsity_notes(layers_of(dense, {})) == ()
    assert "pattern" not in onnxshot.inspect(network()).to_text()
    pruned = network(w=masked(W, 4, 2))
    lines = "\n".join(sparsity_notes(layers_of(load_model(pruned), macs(load_model(pruned)))))
    assert "no faster" in lines
    assert "1 weight has the 2:4 pattern" in lines
    text = onnxshot.inspect(pruned).to_text()
    assert "2:4" in text
    assert "50.0 %" in text
    gone = "\n".join(sparsity_notes(layers_of(load_model(network(w=OUTPUTS_GONE)), {})))
    assert "whole channels of 1 weights" in gone


def test_the_packed_size_of_a_large_weight_is_estimated_from_pieces_of_it() -> None:
    rng = np.random.default_rng(3)
    stored = rng.standard_normal((1200, 700)).astype(np.float32)
    stored[rng.random(stored.shape) < np.linspace(0, 1, 1200)[:, None]] = 0  # more zeros in each row than in the last
    proto = model("g (float[n, 1200] x) => (float[n, 700] y) { y = MatMul(x, w) }", {"w": stored})
    (found,) = layers_of(load_model(proto), {})
    assert found.packed_bytes == pytest.approx(len(zlib.compress(stored.tobytes(), 6)), rel=0.03)
