"""Subgraphs, local functions and operators nobody knows."""

import numpy as np
from onnx import numpy_helper

from handmade.core import Case, case, feeds, model, vector, weight


@case
def if_captures_weights() -> Case:
    """Both branches use the outer weight w; the else branch owns another; the condition comes from the data."""
    text = """g (float[batch, 16] x) => (float[batch, 16] y) {
        before = MatMul(x, w)
        total = ReduceSum<keepdims = 0>(x)
        positive = Greater(total, zero)
        picked = If (positive) <
            then_branch = yes () => (float[batch, 16] yes_out) { yes_out = MatMul(before, w) },
            else_branch = no () => (float[batch, 16] no_out) { h = Gemm<transB = 1>(before, own, b) no_out = Relu(h) }
        >
        y = Gemm(picked, last)
    }"""
    proto = model(
        text, {"w": weight(16, 16), "b": vector(16), "last": weight(16, 16, seed=2), "zero": np.array(0, np.float32)}
    )
    branch = next(a.g for node in proto.graph.node if node.op_type == "If" for a in node.attribute if a.g.name == "no")
    branch.initializer.append(numpy_helper.from_array(weight(16, 16, seed=1), "own"))
    return Case(proto, feeds(x=(4, 16)))


@case
def loop_body() -> Case:
    """Three turns of a body with a captured conv weight and a matrix of its own."""
    text = """g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y, float[3, 1, 4, 6, 6] every) {
        start = Conv<pads = [1, 1, 1, 1]>(x, w)
        y, every = Loop (turns, go, start) <
            body = turn (int64 i, bool cond_in, float[1, 4, 6, 6] state)
                   => (bool cond_out, float[1, 4, 6, 6] next, float[1, 4, 6, 6] out) {
                cond_out = Identity(cond_in)
                c = Conv<pads = [1, 1, 1, 1]>(state, w)
                r = Relu(c)
                next = MatMul(r, own)
                out = Identity(next)
            }
        >
    }"""
    proto = model(text, {"w": weight(4, 4, 3, 3), "turns": np.array(3, np.int64), "go": np.array(True)})
    body = next(a.g for node in proto.graph.node if node.op_type == "Loop" for a in node.attribute)
    body.initializer.append(numpy_helper.from_array(weight(6, 6, seed=1), "own"))
    return Case(proto, feeds(x=(1, 4, 6, 6)))


@case
def scan_body() -> Case:
    """A recurrent cell over time: captured weight for the input, own weight for the state."""
    text = """g (float[time, 2, 8] x) => (float[2, 8] last, float[time, 2, 8] y) {
        last, y = Scan (zeros, x) <
            num_scan_inputs = 1,
            body = cell (float[2, 8] state, float[2, 8] x_t) => (float[2, 8] state_out, float[2, 8] y_t) {
                a = MatMul(x_t, w)
                b = MatMul(state, own)
                c = Add(a, b)
                state_out = Tanh(c)
                y_t = Identity(state_out)
            }
        >
    }"""
    proto = model(text, {"w": weight(8, 8), "zeros": np.zeros((2, 8), np.float32)})
    body = next(a.g for node in proto.graph.node for a in node.attribute if a.name == "body")
    body.initializer.append(numpy_helper.from_array(weight(8, 8, seed=1), "own"))
    return Case(proto, feeds(x=(5, 2, 8)))


@case
def nested_if() -> Case:
    """A name reused in two branches, and a branch inside a branch."""
    text = """g (float[batch, 8] x, bool flag) => (float[batch, 8] y) {
        y = If (flag) <
            then_branch = yes () => (float[batch, 8] out) {
                h = MatMul(x, w)
                out = If (flag) <
                    then_branch = inner () => (float[batch, 8] deep) { deep = MatMul(h, w) },
                    else_branch = other () => (float[batch, 8] deep2) { deep2 = Identity(h) }
                >
            },
            else_branch = no () => (float[batch, 8] out2) { h2 = Relu(x) out2 = MatMul(h2, w) }
        >
    }"""
    given = [{**feed, "flag": np.array(index % 2 == 0)} for index, feed in enumerate(feeds(x=(4, 8)))]
    return Case(model(text, {"w": weight(8, 8)}), given)


@case
def local_function() -> Case:
    """One function called twice with different weights and a different attribute."""
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, 8, 8, 8] y) {
        h = local.block<alpha = 0.1>(x, w1, b1)
        y = local.block<alpha = 0.3>(h, w2, b2)
    }
    <domain: "local", opset_import: ["": 17]>
    block <alpha> (v, w, b) => (out) {
        c = Conv<pads = [1, 1, 1, 1]>(v, w, b)
        out = LeakyRelu<alpha: float = @alpha>(c)
    }"""
    weights = {"w1": weight(8, 4, 3, 3), "b1": vector(8), "w2": weight(8, 8, 3, 3, seed=1), "b2": vector(8, seed=1)}
    return Case(model(text, weights, imports=', "local": 1'), feeds(x=(2, 4, 8, 8)))


@case
def custom_domain() -> Case:
    """A node of an unknown domain between two convolutions: ONNX Runtime cannot run it."""
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, 4, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        m = vendor.Warp<strength = 2>(a)
        y = Conv<pads = [1, 1, 1, 1]>(m, w2)
    }"""
    weights = {"w1": weight(4, 4, 3, 3), "w2": weight(4, 4, 3, 3, seed=1)}
    return Case(model(text, weights, imports=', "vendor": 1'), feeds(x=(2, 4, 8, 8)), runs=False)
