"""Blocks that networks are made of."""

import numpy as np

from handmade.core import Case, Feed, case, feeds, model, vector, weight


def norm(name: str, size: int, seed: int = 0) -> Feed:
    """The four constants of a BatchNormalization: NAME_scale, NAME_shift, NAME_mean, NAME_var."""
    return {
        f"{name}_scale": vector(size, seed, 0.5, 2.0),
        f"{name}_shift": vector(size, seed + 1),
        f"{name}_mean": vector(size, seed + 2),
        f"{name}_var": vector(size, seed + 3, 0.2, 3.0),
    }


@case
def resnet_block() -> Case:
    text = """g (float[batch, 16, 12, 12] x) => (float[batch, 16, 12, 12] y) {
        c1 = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
        r1 = Relu(c1)
        c2 = Conv<pads = [1, 1, 1, 1]>(r1, w2, b2)
        sum = Add(c2, x)
        y = Relu(sum)
    }"""
    weights = {"w1": weight(16, 16, 3, 3), "b1": vector(16), "w2": weight(16, 16, 3, 3, seed=1), "b2": vector(16, 1)}
    return Case(model(text, weights), feeds(x=(2, 16, 12, 12)))


@case
def mbconv_block() -> Case:
    """Expand, depthwise, project, add; Clip 0..6 with constant limits."""
    text = """g (float[batch, 8, 12, 12] x) => (float[batch, 8, 12, 12] y) {
        e = Conv(x, we, be)
        e6 = Clip(e, zero, six)
        d = Conv<group = 32, pads = [1, 1, 1, 1]>(e6, wd, bd)
        d6 = Clip(d, zero, six)
        p = Conv(d6, wp, bp)
        y = Add(x, p)
    }"""
    weights = {"we": weight(32, 8, 1, 1), "be": vector(32), "wd": weight(32, 1, 3, 3), "bd": vector(32, 1)}
    weights |= {"wp": weight(8, 32, 1, 1), "bp": vector(8)}
    weights |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    return Case(model(text, weights), feeds(x=(2, 8, 12, 12)))


@case
def batchnorm_after_conv() -> Case:
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, 8, 8, 8] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w)
        n = BatchNormalization(c, n_scale, n_shift, n_mean, n_var)
        y = Relu(n)
    }"""
    return Case(model(text, {"w": weight(8, 4, 3, 3), **norm("n", 8)}), feeds(x=(2, 4, 8, 8)))


@case
def batchnorm_after_conv_with_two_readers() -> Case:
    """The Conv's output is read twice, so the BatchNormalization must stay."""
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, 8, 8, 8] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
        n = BatchNormalization(c, n_scale, n_shift, n_mean, n_var)
        y = Add(n, c)
    }"""
    return Case(model(text, {"w": weight(8, 4, 3, 3), "b": vector(8), **norm("n", 8)}), feeds(x=(2, 4, 8, 8)))


@case
def batchnorm_after_conv_transpose() -> Case:
    text = """g (float[batch, 8, 6, 6] x) => (float[batch, 6, 12, 12] y) {
        c = ConvTranspose<strides = [2, 2]>(x, w, b)
        n = BatchNormalization(c, n_scale, n_shift, n_mean, n_var)
        y = Relu(n)
    }"""
    weights = {"w": weight(8, 6, 2, 2, channel_axis=1), "b": vector(6), **norm("n", 6)}
    return Case(model(text, weights), feeds(x=(2, 8, 6, 6)))


@case
def batchnorm_after_gemm() -> Case:
    text = """g (float[batch, 16] x) => (float[batch, 8] y) {
        c = Gemm<transB = 1>(x, w, b)
        n = BatchNormalization(c, n_scale, n_shift, n_mean, n_var)
        y = Relu(n)
    }"""
    return Case(model(text, {"w": weight(8, 16), "b": vector(8), **norm("n", 8)}), feeds(x=(4, 16)))


@case
def conv_transpose() -> Case:
    """Output channels are axis 1 of the weight [I, O, kh, kw]."""
    text = """g (float[batch, 8, 6, 6] x) => (float[batch, 6, 12, 12] y) {
        c = ConvTranspose<strides = [2, 2]>(x, w, b)
        y = Relu(c)
    }"""
    return Case(model(text, {"w": weight(8, 6, 2, 2, channel_axis=1), "b": vector(6)}), feeds(x=(2, 8, 6, 6)))


@case
def conv_transpose_grouped() -> Case:
    """Two groups: axis 1 of the weight holds the output channels of one group only."""
    text = """g (float[batch, 8, 6, 6] x) => (float[batch, 6, 12, 12] y) {
        c = ConvTranspose<strides = [2, 2], group = 2>(x, w, b)
        y = Relu(c)
    }"""
    return Case(model(text, {"w": weight(8, 3, 2, 2, channel_axis=1), "b": vector(6)}), feeds(x=(2, 8, 6, 6)))


@case
def conv_1d_and_3d() -> Case:
    text = """g (float[batch, 4, 16] x) => (float[batch, 6, 6, 6, 6] y) {
        a = Conv<pads = [1, 1]>(x, w1)
        v = Reshape(a, cube)
        y = Conv<pads = [1, 1, 1, 1, 1, 1]>(v, w3)
    }"""
    weights = {"w1": weight(108, 4, 3), "w3": weight(6, 8, 3, 3, 3), "cube": np.array([-1, 8, 6, 6, 6], np.int64)}
    return Case(model(text, weights), feeds(x=(1, 4, 16)))


@case
def squeeze_excite() -> Case:
    """A channel gate in 0..1 multiplied with features of a much larger range."""
    text = """g (float[batch, 8, 10, 10] x) => (float[batch, 8, 10, 10] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
        s = Sigmoid(c)
        f = Mul(c, s)
        p = GlobalAveragePool(f)
        d = Conv(p, w_down)
        r = Relu(d)
        u = Conv(r, w_up)
        gate = HardSigmoid<alpha = 0.1666667, beta = 0.5>(u)
        y = Mul(f, gate)
    }"""
    weights = {"w": weight(8, 8, 3, 3) * np.float32(4), "b": vector(8)}
    weights |= {"w_down": weight(4, 8, 1, 1), "w_up": weight(8, 4, 1, 1)}
    return Case(model(text, weights), feeds(x=(2, 8, 10, 10)))


@case
def concat_of_different_ranges() -> Case:
    """Three branches of ranges about 1, 10 and 100, joined on channels, then a pool and a resize."""
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, 12, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        b = Conv<pads = [1, 1, 1, 1]>(x, w2)
        c = Conv<pads = [1, 1, 1, 1]>(x, w3)
        all = Concat<axis = 1>(a, b, c)
        m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(all)
        u = Resize<mode = "nearest">(m, , twice)
        y = Conv(u, w4)
    }"""
    weights = {f"w{n + 1}": weight(4, 4, 3, 3, seed=n) * np.float32(10**n) for n in range(3)}
    weights |= {"w4": weight(12, 12, 1, 1), "twice": np.array([1, 1, 2, 2], np.float32)}
    return Case(model(text, weights), feeds(x=(2, 4, 8, 8)))


@case
def attention_block() -> Case:
    """Layer normalization, one head of attention, erf GELU."""
    text = """g (float[batch, 6, 16] x) => (float[batch, 6, 16] y) {
        n = LayerNormalization(x, ln_scale, ln_shift)
        q = MatMul(n, wq)
        k = MatMul(n, wk)
        v = MatMul(n, wv)
        t = Transpose<perm = [0, 2, 1]>(k)
        s = MatMul(q, t)
        scaled = Mul(s, quarter)
        p = Softmax(scaled)
        mix = MatMul(p, v)
        h = Add(x, mix)
        up = MatMul(h, w_up)
        over = Div(up, root2)
        e = Erf(over)
        e1 = Add(e, one)
        gate = Mul(up, e1)
        gelu = Mul(gate, half)
        down = MatMul(gelu, w_down)
        y = Add(h, down)
    }"""
    weights = {name: weight(16, 16, seed=n, channel_axis=1) for n, name in enumerate(("wq", "wk", "wv"))}
    weights |= {"w_up": weight(16, 64, channel_axis=1), "w_down": weight(64, 16, channel_axis=1)}
    weights |= {"ln_scale": vector(16, 0, 0.5, 2.0), "ln_shift": vector(16, 1)}
    scalars = {"quarter": 0.25, "root2": 2**0.5, "one": 1.0, "half": 0.5}
    weights |= {name: np.array(value, np.float32) for name, value in scalars.items()}
    return Case(model(text, weights), feeds(x=(2, 6, 16)))


@case
def gru() -> Case:
    text = """g (float[time, batch, 8] x) => (float[time, 1, batch, 12] y, float[1, batch, 12] last) {
        y, last = GRU<hidden_size = 12, linear_before_reset = 1>(x, w, r, b)
    }"""
    weights = {"w": weight(1, 36, 8, channel_axis=1), "r": weight(1, 36, 12, channel_axis=1), "b": vector(72)[None]}
    return Case(model(text, weights), feeds(x=(5, 2, 8)))


@case
def lstm() -> Case:
    """Bidirectional, with the empty input name that stands for sequence_lens, and an unused second output."""
    text = """g (float[time, batch, 8] x) => (float[time, 2, batch, 12] y, float[2, batch, 12] cell) {
        y, hidden, cell = LSTM<hidden_size = 12, direction = "bidirectional">(x, w, r, b, , h0, c0)
    }"""
    weights = {
        "w": weight(2, 48, 8, channel_axis=1),
        "r": weight(2, 48, 12, channel_axis=1),
        "b": np.stack([vector(96), vector(96, seed=1)]),
        "h0": np.zeros((2, 2, 12), np.float32),
        "c0": np.zeros((2, 2, 12), np.float32),
    }
    return Case(model(text, weights), feeds(x=(5, 2, 8)))


@case
def embedding() -> Case:
    """Token ids as the input: a Gather whose data is a weight."""
    text = """g (int64[batch, T] ids) => (float[batch, T, 8] y) {
        e = Gather(table, ids)
        y = MatMul(e, w)
    }"""
    rng = np.random.default_rng(3)
    given: list[Feed] = [{"ids": rng.integers(0, 50, (2, length))} for length in (3, 5, 8, 13)]
    return Case(model(text, {"table": weight(50, 16), "w": weight(16, 8, channel_axis=1)}), given)
