"""Weights that are hard to find or to own: behind other nodes, shared, listed as inputs, half precision, external."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from handmade.core import HANDMADE, Case, Feed, case, feeds, model, vector, weight

# How the stored constant `s` becomes the weight `w`, and the stored value for a wanted weight.
WRAPPERS = {
    "constant": "",  # the node itself is added below: parser text would spell out every value
    "identity": "w = Identity(s)",
    "cast": "w = Cast<to = 1>(s)",
    "transpose": "w = Transpose<perm = {perm}>(s)",
    "reshape": "w = Reshape(s, s_shape)",
}
OPS = {
    "conv": ("x = Identity(image) y = Conv<pads = [1, 1, 1, 1]>(x, w, b)", weight(8, 4, 3, 3)),
    "matmul": ("x = Flatten(image) h = MatMul(x, w) y = Add(h, b)", weight(4 * 64, 8, channel_axis=1)),
    "gemm": ("x = Flatten(image) y = Gemm<transB = 1>(x, w, b)", weight(8, 4 * 64)),
}


def behind(wrapper: str, op: str) -> Case:
    """Conv, MatMul or Gemm whose weight is behind this node."""
    nodes, wanted = OPS[op]
    stored: NDArray[Any] = wanted
    constants: Feed = {"b": vector(8)}
    perm = list(range(wanted.ndim))[::-1]
    if wrapper == "transpose":
        stored = np.ascontiguousarray(wanted.transpose(perm))
    elif wrapper == "reshape":
        stored = wanted.reshape(-1)
        constants["s_shape"] = np.array(wanted.shape, np.int64)
    elif wrapper == "cast":
        stored = wanted.astype(np.float16)
    if wrapper != "constant":
        constants["s"] = stored
    wrap = WRAPPERS[wrapper].format(perm=perm)
    out = "float[batch, 8, 8, 8] y" if op == "conv" else "float[batch, 8] y"
    proto = model(f"g (float[batch, 4, 8, 8] image) => ({out}) {{ {wrap} {nodes} }}", constants)
    if wrapper == "constant":
        node = onnx.helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(wanted))
        proto.graph.node.insert(0, node)
    return Case(proto, feeds(image=(2, 4, 8, 8)))


for _op in OPS:
    for _wrapper in WRAPPERS:
        HANDMADE[f"{_op}_behind_{_wrapper}"] = partial(behind, _wrapper, _op)


@case
def shared_by_two_convs() -> Case:
    text = """g (float[batch, 8, 8, 8] x) => (float[batch, 8, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w, b1)
        r = Relu(a)
        y = Conv<pads = [1, 1, 1, 1]>(r, w, b2)
    }"""
    return Case(model(text, {"w": weight(8, 8, 3, 3), "b1": vector(8), "b2": vector(8, seed=1)}), feeds(x=(2, 8, 8, 8)))


@case
def shared_by_matmul_and_gemm() -> Case:
    """One weight, once with channels on axis 1 (MatMul), once on axis 0 (Gemm with transB)."""
    text = """g (float[batch, 16] x) => (float[batch, 16] y) {
        a = MatMul(x, w)
        r = Relu(a)
        y = Gemm<transB = 1>(r, w, b)
    }"""
    return Case(model(text, {"w": weight(16, 16), "b": vector(16)}), feeds(x=(4, 16)))


@case
def shared_with_output() -> Case:
    """A weight that is a graph output too, and feeds an Add."""
    text = """g (float[batch, 16] x) => (float[batch, 16] y, float[16, 16] w_out) {
        a = MatMul(x, w)
        y = Relu(a)
        w_out = Add(w, one)
    }"""
    return Case(model(text, {"w": weight(16, 16), "one": np.array([1.0], np.float32)}), feeds(x=(4, 16)))


@case
def initializers_as_inputs() -> Case:
    """Initializers listed as graph inputs, as before IR version 4."""
    text = """g (float[batch, 4, 8, 8] x, float[8, 4, 3, 3] w, float[8] b) => (float[batch, 8, 6, 6] y) {
        a = Conv(x, w, b)
        y = Relu(a)
    }"""
    return Case(model(text, {"w": weight(8, 4, 3, 3), "b": vector(8)}, ir=3, opset=9), feeds(x=(2, 4, 8, 8)))


@case
def gemm_trans_b_0() -> Case:
    text = "g (float[batch, 24] x) => (float[batch, 8] y) { y = Gemm<alpha = 0.5, beta = 2.0>(x, w, b) }"
    return Case(model(text, {"w": weight(24, 8, channel_axis=1), "b": vector(8)}), feeds(x=(4, 24)))


@case
def gemm_trans_b_1() -> Case:
    text = "g (float[batch, 24] x) => (float[batch, 8] y) { y = Gemm<transB = 1>(x, w, b) }"
    return Case(model(text, {"w": weight(8, 24), "b": vector(8)}), feeds(x=(4, 24)))


@case
def gemm_trans_a() -> Case:
    text = "g (float[24, batch] x) => (float[batch, 8] y) { y = Gemm<transA = 1>(x, w) }"
    return Case(model(text, {"w": weight(24, 8, channel_axis=1)}), feeds(x=(24, 4)))


@case
def matmul_weight_on_the_left() -> Case:
    text = "g (float[batch, 16, 5] x) => (float[batch, 8, 5] y) { a = MatMul(w, x) y = Relu(a) }"
    return Case(model(text, {"w": weight(8, 16)}), feeds(x=(2, 16, 5)))


@case
def matmul_of_two_activations() -> Case:
    text = """g (float[batch, 6, 16] x) => (float[batch, 6, 6] y) {
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        t = Transpose<perm = [0, 2, 1]>(k)
        s = MatMul(q, t)
        y = Softmax<axis = -1>(s)
    }"""
    return Case(model(text, {"wq": weight(16, 16), "wk": weight(16, 16, seed=1)}), feeds(x=(2, 6, 16)))


@case
def matmul_batched_weight() -> Case:
    """A weight of rank 3: one matrix a head."""
    text = "g (float[4, batch, 16] x) => (float[4, batch, 8] y) { y = MatMul(x, w) }"
    return Case(model(text, {"w": weight(4, 16, 8, channel_axis=2)}), feeds(x=(4, 3, 16)))


@case
def half_precision_model() -> Case:
    text = """g (float16[batch, 4, 8, 8] x) => (float16[batch, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
        r = Relu(a)
        p = GlobalAveragePool(r)
        f = Flatten(p)
        y = Gemm<transB = 1>(f, fc, fc_b)
    }"""
    values = {"w": weight(8, 4, 3, 3), "b": vector(8), "fc": weight(8, 8), "fc_b": vector(8, seed=1)}
    half = {name: value.astype(np.float16) for name, value in values.items()}
    return Case(model(text, half), feeds(x=(2, 4, 8, 8), dtype=np.float16))


def write_external(folder: Path) -> Path:
    """Write external.onnx and external.onnx.data into folder; the conv net of resnet_block with all weights outside."""
    path = folder / "external.onnx"
    onnx.save(
        HANDMADE["resnet_block"]().model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="external.onnx.data",
        size_threshold=0,
    )
    return path
