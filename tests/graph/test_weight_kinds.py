"""Weights are told apart by operator and position: tables, attention, feed-forward, head, norms; each counts once."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from tiny_decoders import VOCABULARY, WIDTH, decoder

from onnxshot.graph.load import load_model
from onnxshot.graph.weight_kinds import kinds_of, weight_kinds

LAYER = """(int64[B,S] ids) => (float[B,S,D] y, float[B,S,V] scores) {
    h = Gather(table, ids)
    q = MatMul(h, wq)  k = MatMul(h, wk)  v = MatMul(h, wv)
    size = Shape(h)  q2 = Reshape(q, size)
    kt = Transpose<perm = [0, 2, 1]>(k)  raw = MatMul(q2, kt)  p = Softmax(raw)  mixed = MatMul(p, v)
    size2 = Shape(mixed)  mixed2 = Reshape(mixed, size2)
    o = MatMul(mixed2, wo)  ob = Add(o, bo)  r = Add(h, ob)  n = LayerNormalization(r, gain, shift)
    sized = Reshape(n, size2)
    up = MatMul(sized, wu)  act = Relu(up)  down = MatMul(act, wd)  y0 = Add(n, down)
    y = LayerNormalization(y0, gain2, shift2)
    tied = Transpose(table)  scores = MatMul(y, tied)
}"""


def layer() -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\ng {LAYER}')
    rng = np.random.default_rng(0)
    shapes = {"table": (11, 4), "wu": (4, 16), "wd": (16, 4)} | {n: (4, 4) for n in ("wq", "wk", "wv", "wo")}
    shapes |= dict.fromkeys(("bo", "gain", "shift", "gain2", "shift2"), (4,))
    arrays: dict[str, NDArray[np.float32]] = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in arrays.items())
    return proto


def test_a_layer_of_a_transformer() -> None:
    found = {constant.name: kind for constant, kind in kinds_of(load_model(layer())).items()}
    assert found == {
        "table": "embedding", "wq": "attention", "wk": "attention", "wv": "attention", "wo": "attention",
        "wu": "feed-forward", "wd": "feed-forward",
        **dict.fromkeys(("bo", "gain", "shift", "gain2", "shift2"), "norms and biases"),
    }  # fmt: skip


def test_sizes_are_those_of_the_values() -> None:
    rows = {row.kind: (row.bytes, row.elements) for row in weight_kinds(load_model(layer()))}
    assert rows["embedding"] == (4 * 44, 44)  # tied, and counted once
    assert rows["attention"] == (4 * 64, 64)
    assert rows["feed-forward"] == (4 * 128, 128)
    assert "head" not in rows


def test_an_own_head_is_a_head_and_a_cache_is_none() -> None:
    model = load_model(onnx.load_from_string(decoder(cache=True)))
    rows = {row.kind: row.elements for row in weight_kinds(model)}
    assert rows["embedding"] == rows["head"] == VOCABULARY * WIDTH
    assert rows["attention"] == 3 * WIDTH * WIDTH


def test_the_scale_of_a_quantized_activation_goes_around_its_product() -> None:
    text = """(float[N,8] x) => (float[N,N] y) {
        u = MatMul(x, wu)  uq, us, uz = DynamicQuantizeLinear(u)
        a = MatMulInteger(uq, wq, uz)  af = Cast<to = 1>(a)  q = Mul(af, us)
        t = Transpose<perm = [1, 0]>(q)  y = MatMul(q, t)
    }"""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\ng {text}')
    arrays = {"wu": np.zeros((8, 8), np.float32), "wq": np.zeros((8, 8), np.int8)}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in arrays.items())
    found = {constant.name: kind for constant, kind in kinds_of(load_model(proto)).items()}
    assert found == {"wu": "feed-forward", "wq": "attention"}


def test_weights_behind_dequantization_belong_to_their_product() -> None:
    text = """(float[N,8] x) => (float[N,8] y) {
        w = DequantizeLinear<axis = 1>(q, s, z)  a = MatMul(x, w)  b = Relu(a)
        y = Conv(b, c, d)
    }"""
    text = text.replace("y = Conv(b, c, d)", "y = Gemm(b, c, d)")
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\ng {text}')
    arrays = {
        "q": np.zeros((8, 8), np.int8), "s": np.ones(8, np.float32), "z": np.zeros(8, np.int8),
        "c": np.zeros((8, 8), np.float32), "d": np.zeros(8, np.float32),
    }  # fmt: skip
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in arrays.items())
    found = {constant.name: kind for constant, kind in kinds_of(load_model(proto)).items()}
    assert found == {**dict.fromkeys(("q", "s", "z"), "feed-forward"), "c": "head", "d": "norms and biases"}
