"""Old opsets: what was an attribute is now an input, and Softmax meant something else."""

import numpy as np

from handmade.core import Case, case, feeds, model, vector, weight


@case
def opset_9() -> Case:
    """Upsample, Clip and Pad by attribute, Dropout, and BatchNormalization."""
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, 10] y) {
        p = Pad<mode = "constant", pads = [0, 0, 1, 1, 0, 0, 1, 1]>(x)
        c = Conv(p, w1, b1)
        n = BatchNormalization(c, scale, shift, mean, var)
        r = Clip<min = 0.0, max = 6.0>(n)
        u = Upsample<mode = "nearest">(r, twice)
        m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(u)
        c2 = Conv<pads = [1, 1, 1, 1]>(m, w2, b2)
        r2 = Relu(c2)
        a = GlobalAveragePool(r2)
        f = Flatten(a)
        d = Dropout<ratio = 0.2>(f)
        y = Gemm<transB = 1>(d, fc, fc_b)
    }"""
    weights = {"w1": weight(8, 4, 3, 3), "b1": vector(8), "w2": weight(8, 8, 3, 3), "b2": vector(8, seed=1)}
    weights |= {"scale": vector(8, 2, 0.5, 2), "shift": vector(8, 3), "mean": vector(8, 4), "var": vector(8, 5, 0.2, 3)}
    weights |= {"twice": np.array([1, 1, 2, 2], np.float32), "fc": weight(10, 8), "fc_b": vector(10)}
    return Case(model(text, weights, opset=9, ir=4), feeds(x=(2, 4, 8, 8)))


@case
def opset_11() -> Case:
    """Softmax with axis 1, which flattens from there on; Pad and Clip by input, one Clip limit left out; Resize."""
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, 8, 8, 8] y) {
        p = Pad<mode = "reflect">(x, pads)
        c = Conv(p, w1, b1)
        r = Clip(c, , six)
        u = Resize<mode = "linear", coordinate_transformation_mode = "asymmetric">(r, roi, half)
        s = Squeeze<axes = [0]>(one)
        h = Mul(u, s)
        v = Resize<mode = "nearest">(h, roi, twice)
        y = Softmax<axis = 1>(v)
    }"""
    weights = {"w1": weight(8, 4, 3, 3), "b1": vector(8), "six": np.array(6, np.float32)}
    weights |= {"roi": np.zeros(0, np.float32)}
    weights |= {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "one": np.ones(1, np.float32)}
    weights |= {"half": np.array([1, 1, 0.5, 0.5], np.float32), "twice": np.array([1, 1, 2, 2], np.float32)}
    return Case(model(text, weights, opset=11, ir=6), feeds(x=(2, 4, 8, 8)))


@case
def opset_12() -> Case:
    """Dropout with inputs, ReduceSum and Unsqueeze by attribute, GlobalAveragePool, MaxPool with two outputs."""
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, 10] y) {
        c = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w1, b1)
        r = Relu(c)
        m, where = MaxPool<kernel_shape = [2, 2]>(r)
        s = ReduceSum<axes = [2, 3], keepdims = 0>(m)
        d, mask = Dropout(s, ratio)
        v = Unsqueeze<axes = [1]>(d)
        h = MatMul(v, fc)
        q = Squeeze<axes = [1]>(h)
        y = LogSoftmax<axis = 1>(q)
    }"""
    weights = {"w1": weight(8, 4, 3, 3), "b1": vector(8), "fc": weight(8, 10, channel_axis=1)}
    weights |= {"ratio": np.array(0.3, np.float32)}
    return Case(model(text, weights, opset=12, ir=7), feeds(x=(2, 4, 8, 8)))


@case
def opset_21() -> Case:
    """A recent opset, with the newest names of old things."""
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, 8] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
        r = Gelu(c)
        m = ReduceMean<keepdims = 0>(r, axes)
        y = Gemm<transB = 1>(m, fc)
    }"""
    weights = {"w1": weight(8, 4, 3, 3), "b1": vector(8), "fc": weight(8, 8), "axes": np.array([2, 3], np.int64)}
    return Case(model(text, weights, opset=21, ir=10), feeds(x=(2, 4, 8, 8)))
