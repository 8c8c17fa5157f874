"""Shapes that int8 files read: on ONNX Runtime no tensor is dequantized for its size alone."""

import numpy as np
import onnx
import pytest
from handmade.core import weight
from planned_models import maker, nodes_of, quantized, run, small

from onnxshot.graph.load import load_model
from onnxshot.passes.strip_qdq import StripQdq
from onnxshot.runtimes.ort_executed import executed

TAIL = "d = Conv<pads = [1, 1, 1, 1]>(b, k2) y = Relu(d)"
HEAD = "a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, k1) b = Relu(a)"  # sizes that x itself does not have
READERS = {
    "Shape": "s = Shape(b)",
    "Shape of the rest": "s = Shape<start = 2>(a)",
    "Size": "t = Size(b) s = Reshape(t, minus)",
    "ConstantOfShape": "t = Shape(b) u = ConstantOfShape(t) v = Cast<to = 7>(u) s = Reshape(v, minus)",
    "behind a Transpose": "t = Transpose<perm = [0, 2, 3, 1]>(b) s = Shape(t)",
    "behind a Slice": "t = Slice(b, starts, ends) s = Shape(t)",
    "Expand": "t = Shape(b) u = Expand(one, t) v = Cast<to = 7>(u) s = Reshape(v, minus)",
}


def case(reader: str):
    constants = {
        "k1": weight(16, 3, 3, 3), "k2": weight(16, 16, 3, 3, seed=1), "minus": np.array([-1]), "one": np.ones(1, "f4"),
        "starts": np.array([0, 1]), "ends": np.array([1, 2]),
    }  # fmt: skip
    text = f"g (float[n, 3, h, w] x) => (float[n, 16, oh, ow] y, int64[i] s) {{ {HEAD} {reader} {TAIL} }}"
    return small(text, constants, x=(1, 3, 12, 12))


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_no_tensor_is_dequantized_for_its_size(reader: str) -> None:
    given = case(reader)
    result, proto = quantized(given)
    assert sum(n.how == "static" for n in result.plan.nodes) == 4  # both Convs, both Relus
    for node in (*nodes_of(proto, "Shape"), *nodes_of(proto, "Size")):
        source = maker(proto, node.input[0])
        while source.op_type in ("Transpose", "Slice"):
            source = maker(proto, source.input[0])
        assert source.op_type == "QuantizeLinear"
    ran = executed(proto.SerializeToString())
    assert ran.ops["QLinearConv"] == 2
    assert ran.ops["DequantizeLinear"] == 1  # that of y
    for feed in given.feeds:
        np.testing.assert_array_equal(run(proto, feed)[1], run(given.model, feed)[1])
        np.testing.assert_array_equal(run(proto, feed, optimize=False)[1], run(given.model, feed)[1])
    onnx.checker.check_model(proto, full_check=True)


@pytest.mark.parametrize("target", ["openvino", "tensorrt", "portable"])
def test_other_runtimes_keep_their_pairs_whole(target: str) -> None:
    _, proto = quantized(case(READERS["Shape"]), target=target)
    (shape,) = nodes_of(proto, "Shape")
    assert maker(proto, shape.input[0]).op_type != "QuantizeLinear"


def test_taking_the_pairs_out_gives_the_float_graph_back() -> None:
    _, proto = quantized(case(READERS["behind a Transpose"]))
    ready = load_model(proto)
    StripQdq().run(ready)
    left = ready.to_proto()
    assert {n.op_type for n in left.graph.node} == {"Conv", "Relu", "Transpose", "Shape"} | (
        {"Clip"} if nodes_of(left, "Clip") else set()
    )
    onnx.checker.check_model(left, full_check=True)
