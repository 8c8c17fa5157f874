"""Graphs that compute sizes at run time, as exporters write them for free dimensions, and their frozen twins."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from handmade.core import Feed, model, vector, weight

INTS = {f"i{n}": np.array(n, np.int64) for n in (0, 1, 2, 3)}
LISTS = {f"l{n}": np.array([n], np.int64) for n in (0, 1, 2, 3, 4, 8, 16)} | {"neg": np.array([-1], np.int64)}


def view_cnn() -> onnx.ModelProto:
    """x.view(B, -1) in front of a Gemm, as TorchScript writes it."""
    text = """net (float[N,3,H,W] x) => (float[M,10] y) {
        c1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)  r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)  r2 = Relu(c2)  s2 = Add(r2, r1)
        p = GlobalAveragePool(s2)
        s = Shape(p)  n = Gather<axis=0>(s, i0)  u = Unsqueeze(n, l0)  t = Concat<axis=0>(u, neg)
        v = Reshape(p, t)  y = Gemm<transB=1>(v, w3, b3) }"""
    held = {"w1": weight(32, 3, 3, 3), "b1": vector(32), "w2": weight(32, 32, 3, 3), "b2": vector(32),
            "w3": weight(10, 32), "b3": vector(10)}  # fmt: skip
    return model(text, held | INTS | LISTS)


def deconv_decoder() -> onnx.ModelProto:
    """An encoder and a decoder that is interpolated to the size of what it is joined with; odd sizes are cropped."""
    text = """net (float[N,3,H,W] x) => (float[M,4,P,Q] y) {
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)  r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1], strides=[2,2]>(r1, w2, b2)  r2 = Relu(c2)
        d = ConvTranspose<strides=[2,2], kernel_shape=[2,2]>(r2, w3, b3)  r3 = Relu(d)
        ds = Shape(r3)  dn = Slice(ds, l0, l2, l0)
        xs = Shape(r1)  xn = Slice(xs, l2, l4, l0)  size = Concat<axis=0>(dn, xn)
        up = Resize<mode="linear", coordinate_transformation_mode="pytorch_half_pixel">(r3, , , size)
        j = Concat<axis=1>(up, r1)
        c4 = Conv<pads=[1,1,1,1]>(j, w4, b4)  r4 = Relu(c4)
        y = Conv(r4, w5, b5) }"""
    held = {"w1": weight(16, 3, 3, 3), "b1": vector(16), "w2": weight(32, 16, 3, 3), "b2": vector(32),
            "w3": weight(32, 16, 2, 2, channel_axis=1), "b3": vector(16), "w4": weight(32, 32, 3, 3), "b4": vector(32),
            "w5": weight(4, 32, 1, 1), "b5": vector(4)}  # fmt: skip
    return model(text, held | INTS | LISTS)


def window_attention() -> onnx.ModelProto:
    """Tokens cut into windows of 4 by 4 after they were padded, with attention inside each, as in Swin."""
    ints = {"heads": np.array([3, 4, 32], np.int64), "sixteen": np.array(4, np.int64), "scale": np.float32(32**-0.5),
            "width": np.array([128], np.int64), "six": np.array([0, 0, 0, 0, 0], np.int64)}  # fmt: skip
    text = """net (float[N,H,W,128] x) => (float[M,10] y) {
        xs = Shape(x)
        h = Gather<axis=0>(xs, i1)  w = Gather<axis=0>(xs, i2)
        hm = Mod(h, sixteen)  hs = Sub(sixteen, hm)  hp = Mod(hs, sixteen)
        wm = Mod(w, sixteen)  ws = Sub(sixteen, wm)  wp = Mod(ws, sixteen)
        hu = Unsqueeze(hp, l0)  wu = Unsqueeze(wp, l0)
        pads = Concat<axis=0>(six, hu, wu, l0)
        p = Pad(x, pads)
        ps = Shape(p)
        n = Slice(ps, l0, l1)  ph = Slice(ps, l1, l2)  pw = Slice(ps, l2, l3)
        nh = Div(ph, l4)  nw = Div(pw, l4)
        cut = Concat<axis=0>(n, nh, l4, nw, l4, width)
        c = Reshape(p, cut)  ct = Transpose<perm=[0,1,3,2,4,5]>(c)
        flat = Concat<axis=0>(neg, l16, width)
        win = Reshape(ct, flat)
        m = MatMul(win, wq)  qkv = Add(m, bq)
        qs = Shape(qkv)  qb = Slice(qs, l0, l2)  qt = Concat<axis=0>(qb, heads)
        five = Reshape(qkv, qt)  turned = Transpose<perm=[2,0,3,1,4]>(five)
        q = Gather<axis=0>(turned, i0)  k = Gather<axis=0>(turned, i1)  v = Gather<axis=0>(turned, i2)
        kt = Transpose<perm=[0,1,3,2]>(k)  qk = MatMul(q, kt)  sc = Mul(qk, scale)  pr = Softmax<axis=-1>(sc)
        o = MatMul(pr, v)  ot = Transpose<perm=[0,2,1,3]>(o)
        os = Concat<axis=0>(qb, width)  ow = Reshape(ot, os)
        om = MatMul(ow, wo)  oa = Add(om, bo)
        hm2 = MatMul(oa, w1)  ha = Add(hm2, b1)  hr = Relu(ha)  hn = MatMul(hr, w2)  hb = Add(hn, b2)
        back = Concat<axis=0>(n, nh, nw, l4, l4, width)
        bw = Reshape(hb, back)  bt = Transpose<perm=[0,1,3,2,4,5]>(bw)
        hw = Concat<axis=0>(n, ph, pw, width)  whole = Reshape(bt, hw)
        start = Slice(xs, l1, l3)
        crop = Slice(whole, zero2, start, axes2)
        res = Add(crop, x)
        mean = ReduceMean<axes=[1,2], keepdims=0>(res)
        y = Gemm(mean, wf, bf) }"""
    held = {"wq": weight(128, 384, channel_axis=1), "bq": vector(384), "wo": weight(128, 128, channel_axis=1),
            "bo": vector(128), "w1": weight(128, 256, channel_axis=1), "b1": vector(256),
            "w2": weight(256, 128, channel_axis=1), "b2": vector(128), "wf": weight(128, 10, channel_axis=1),
            "bf": vector(10), "zero2": np.array([0, 0], np.int64), "axes2": np.array([1, 2], np.int64)}  # fmt: skip
    return model(text, held | ints | INTS | LISTS)


def recurrent() -> onnx.ModelProto:
    """An LSTM whose first state is made of zeros as wide as the batch is."""
    text = """net (float[T,B,128] x) => (float[U,C,5] y) {
        m = MatMul(x, w0)  h = Add(m, b0)
        s = Shape(h)  n = Gather<axis=0>(s, i1)  u = Unsqueeze(n, l0)  st = Concat<axis=0>(l1, u, wide)
        zero = ConstantOfShape<value = float[1] {0.0}>(st)
        ys, yh, yc = LSTM<hidden_size=24>(h, w, r, , , zero, zero)
        sq = Squeeze(ys, l1)  q = MatMul(sq, wy)  y = Add(q, by) }"""
    held = {"w0": weight(128, 128, channel_axis=1), "b0": vector(128), "w": weight(1, 96, 128, channel_axis=1),
            "r": weight(1, 96, 24, channel_axis=1), "wide": np.array([24], np.int64),
            "wy": weight(24, 5, channel_axis=1), "by": vector(5)}  # fmt: skip
    return model(text, held | INTS | LISTS)


def masked_decoder() -> onnx.ModelProto:
    """Ids, positions by Range, and a causal mask by Expand and comparison, as decoders have them."""
    text = """net (int64[B,T] ids) => (float[C,U,40] y) {
        e = Gather(table, ids)  s = Shape(ids)
        t = Gather<axis=0>(s, i1)  pos = Range(i0, t, i1)  pe = Gather(places, pos)  x = Add(e, pe)
        tu = Unsqueeze(t, l0)  col = Unsqueeze(pos, l1)  row = Unsqueeze(pos, l0)
        late = Greater(row, col)  square = Concat<axis=0>(tu, tu)  all = Expand(late, square)
        mask = Where(all, least, none)
        b = Gather<axis=0>(s, i0)  bu = Unsqueeze(b, l0)  split = Concat<axis=0>(bu, tu, l4, head)
        qm = MatMul(x, wq)  qr = Reshape(qm, split)  q = Transpose<perm=[0,2,1,3]>(qr)
        km = MatMul(x, wk)  kr = Reshape(km, split)  k = Transpose<perm=[0,2,3,1]>(kr)
        vm = MatMul(x, wv)  vr = Reshape(vm, split)  v = Transpose<perm=[0,2,1,3]>(vr)
        qk = MatMul(q, k)  ms = Add(qk, mask)  p = Softmax<axis=-1>(ms)  o = MatMul(p, v)
        ot = Transpose<perm=[0,2,1,3]>(o)  join = Concat<axis=0>(bu, tu, wide)  oj = Reshape(ot, join)
        om = MatMul(oj, wo)  r = Add(om, x)
        h = MatMul(r, w1)  hb = Add(h, b1)  hr = Relu(hb)  hd = MatMul(hr, w2)  z = Add(hd, r)
        y = MatMul(z, last) }"""
    held = {"table": weight(50, 128), "places": weight(64, 128), "least": np.float32(-1e4), "none": np.float32(0),
            "wide": np.array([128], np.int64), "head": np.array([32], np.int64)}  # fmt: skip
    held |= {n: weight(128, 128, seed=i, channel_axis=1) for i, n in enumerate(("wq", "wk", "wv", "wo"))}
    held |= {"w1": weight(128, 512, channel_axis=1), "b1": vector(512), "w2": weight(512, 128, channel_axis=1),
             "last": weight(128, 40, channel_axis=1)}  # fmt: skip
    return model(text, held | INTS | LISTS)


SIZED: dict[str, Callable[[], onnx.ModelProto]] = {
    "view_cnn": view_cnn,
    "deconv_decoder": deconv_decoder,
    "window_attention": window_attention,
    "recurrent": recurrent,
    "masked_decoder": masked_decoder,
}
SHAPES: dict[str, Sequence[tuple[int, ...]]] = {  # the usual one, then others that the same file takes
    "view_cnn": [(1, 3, 32, 32), (3, 3, 32, 24)],
    "deconv_decoder": [(1, 3, 16, 16), (2, 3, 13, 18)],
    "window_attention": [(1, 6, 9, 128), (2, 8, 8, 128)],
    "recurrent": [(7, 1, 128), (3, 4, 128)],
    "masked_decoder": [(1, 12), (3, 5)],
}


def feed_of(name: str, shape: Sequence[int], seed: int = 0) -> Feed:
    """An input of this shape."""
    rng = np.random.default_rng([seed, *shape])
    if name == "masked_decoder":
        return {"ids": rng.integers(0, 50, shape, np.int64)}
    return {"x": rng.normal(0, 1, shape).astype(np.float32)}


def twin(name: str) -> onnx.ModelProto:
    """The graph with the sizes of its inputs frozen, and nothing else changed."""
    proto = SIZED[name]()
    dims = proto.graph.input[0].type.tensor_type.shape
    del dims.dim[:]
    for size in SHAPES[name][0]:
        dims.dim.add(dim_value=size)
    return proto
