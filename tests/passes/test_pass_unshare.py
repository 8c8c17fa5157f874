"""Vectors that an exporter has stored once for several layers tie nothing together when channels are cut."""

import numpy as np
import onnx
from handmade.core import feeds, model, vector, weight
from pass_checks import rewritten

import onnxshot
from onnxshot.passes.unshare import Reshare, Unshare

TEXT = """net (float[N,16] x) => (float[N,4] y) {
    a = MatMul(x, w1)  a1 = Add(a, zeros)  a2 = Relu(a1)  b = MatMul(a2, w2)
    c = MatMul(b, w3)  c1 = Add(c, zeros)  c2 = Relu(c1)  y = MatMul(c2, w4) }"""


def shared() -> onnx.ModelProto:
    held = {"w1": weight(16, 64, channel_axis=1), "w2": weight(64, 16, channel_axis=1),
            "w3": weight(16, 64, seed=1, channel_axis=1), "w4": weight(64, 4, channel_axis=1),
            "zeros": np.zeros(64, np.float32)}  # fmt: skip
    return model(TEXT, held)


def test_layers_that_share_a_bias_of_zeros_are_cut_apart() -> None:
    """torch's exporters store equal initializers once: the zero biases of an untrained network, say."""
    found = onnxshot.shrink(shared(), feeds(16, x=(2, 16)), target_flops=0.6, multiple=1)
    assert {(row.group, row.before) for row in found.report.groups} >= {("MatMul_a", 64), ("MatMul_c", 64)}
    assert found.report.macs[1] <= 0.6 * found.report.macs[0]
    assert found.report.macs[0] == 2 * (16 * 64 + 64 * 16 + 16 * 64 + 64 * 4)


def test_vectors_are_copied_and_equal_ones_shared_again() -> None:
    after, change = rewritten(shared(), Unshare(), *feeds(1, x=(2, 16)))
    assert change.edits == 1
    assert len({n.inputs[1] for n in after.graph.nodes if n.op == "Add"}) == 2
    again, change = rewritten(after.to_proto(), Reshare(), *feeds(1, x=(2, 16)))
    assert change.edits == 1
    assert len({n.inputs[1] for n in again.graph.nodes if n.op == "Add"}) == 1


def test_matrices_and_what_differs_stay_as_they_are() -> None:
    text = "net (float[N,8] x) => (float[N,8] y) { a = MatMul(x, w)  b = MatMul(a, w)  c = Add(b, p)  y = Add(c, q) }"
    proto = model(text, {"w": weight(8, 8), "p": vector(8), "q": vector(8, 1)})
    for step in (Unshare(), Reshare()):
        _, change = rewritten(proto, step, *feeds(1, x=(2, 8)))
        assert change.edits == 0
