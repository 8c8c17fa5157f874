"""Kernel times by node, in float and in int8, whatever ONNX Runtime merges and renames."""

import numpy as np
import pytest
from handmade.core import feeds, model, vector, weight
from onnx import ModelProto

from onnxshot import Settings, memory, quantize
from onnxshot.errors import ModelError
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_kernel_times import kernel_times
from onnxshot.runtimes.ort_runtime import Runner

QUICK = Settings(verify=False, use_cache=False, threads=1)


def net() -> ModelProto:
    """A Conv with a Relu that fuses into it, a Conv with a ninth of the work, an Add, and a MatMul."""
    made = model(
        """net (float[1, 64, 28, 28] x) => (float[1, 10] y)
        {
            w = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
            r = Relu(w)
            t = Conv(r, w2)
            s = Add(t, x)
            q = Relu(s)
            p = GlobalAveragePool(q)
            f = Flatten(p)
            y = Gemm<transB=1>(f, w3)
        }""",
        {
            "w1": weight(64, 64, 3, 3),
            "b1": vector(64),
            "w2": weight(64, 64, 1, 1, seed=1),
            "w3": weight(10, 64, seed=2),
        },
    )
    for node, name in zip(made.graph.node, ("wide", "r", "thin", "sum", "q", "pool", "flat", "head"), strict=True):
        node.name = name
    return made


@pytest.mark.parametrize("in_parts", [False, True])
def test_every_part_gets_its_kernel_in_float_and_in_int8(in_parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given, base = feeds(4, x=(1, 64, 28, 28)), net()
    made = quantize(base, given, settings=QUICK, effort="fast").model.to_proto()
    parts = {"wide": "w", "thin": "t", "sum": "s", "head": "y"}
    if in_parts:
        monkeypatch.setattr(memory, "part_bytes", lambda: 20_000)
        monkeypatch.setattr(memory, "budget", lambda: 100_000)
        assert Runner(LeanModel.of(base)).in_parts > 1
    before, after = kernel_times([base, made], parts, given, threads=1, seconds=0.0)
    assert set(before) == set(after) == set(parts)
    for found in (before, after):
        assert found["wide"] > found["thin"] > 0, "it is 9 times as much work"
        assert found["head"] > 0
        assert all(np.isfinite(ms) for ms in found.values())
    assert after["sum"] > 0, "int8 sums have a kernel of their own"


def test_a_model_that_does_not_load_is_named() -> None:
    broken = net()
    broken.graph.node[0].op_type = "Nothing"
    with pytest.raises(ModelError, match="does not load"):
        kernel_times([broken], {"wide": "w"}, feeds(1, x=(1, 64, 28, 28)))


def test_parts_of_a_merged_product_share_its_time() -> None:
    """Two MatMuls of one input become one with a Split behind it: 96 and 32 of its 128 outputs."""
    apart = model(
        "net (float[32, 256] x) => (float[32, 96] a, float[32, 32] b) { a = MatMul(x, w1) b = MatMul(x, w2) }",
        {"w1": weight(256, 96), "w2": weight(256, 32)},
    )
    merged = model(
        "net (float[32, 256] x) => (float[32, 96] a, float[32, 32] b) { c = MatMul(x, w) a, b = Split<axis=1>(c, s) }",
        {"w": weight(256, 128), "s": np.asarray([96, 32])},
    )
    for proto in (apart, merged):
        for node, name in zip(proto.graph.node, ("one", "two"), strict=True):
            node.name = f"{name}{'' if proto is apart else '_merged'}"
    parts = {"one": "a", "two": "b"}
    _, after = kernel_times([apart, merged], parts, feeds(1, x=(32, 256)), threads=1, seconds=0.0)
    assert after["two"] > 0
    assert after["one"] == pytest.approx(3 * after["two"])
