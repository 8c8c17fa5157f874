"""Graphs of any number of nodes, whose values stay bounded however deep they are."""

from collections.abc import Callable, Mapping

import numpy as np

from handmade.core import Case, feeds, model, weight


def deep_chain(nodes: int) -> Case:
    """Elementwise nodes one after the other, in front of a product."""
    ops = ("Sigmoid(t{0})", "Tanh(t{0})", "Mul(t{0}, s)", "Relu(t{0})")
    lines = [f"t{i + 1} = {ops[i % 4].format(i)}" for i in range(nodes)]
    text = f"net (float[N,8] t0) => (float[N,8] y) {{ {' '.join(lines)} y = MatMul(t{nodes}, w) }}"
    return Case(model(text, {"s": np.float32(0.9), "w": weight(8, 8)}), feeds(2, t0=(2, 8)))


def deep_cnn(nodes: int) -> Case:
    """Residual blocks of five nodes: Conv, Relu, Conv, Add, Relu."""
    lines, held, at = [], {}, "x"
    for i in range(nodes // 5):
        lines += [f"a{i} = Conv<pads = [1, 1, 1, 1]>({at}, v{i}) b{i} = Relu(a{i})"]
        lines += [f"c{i} = Conv<pads = [1, 1, 1, 1]>(b{i}, w{i}) d{i} = Add(c{i}, {at}) t{i} = Relu(d{i})"]
        held |= {f"v{i}": weight(16, 16, 3, 3, seed=i), f"w{i}": weight(16, 16, 3, 3, seed=i + 1) * np.float32(0.02)}
        at = f"t{i}"
    text = f"net (float[N,16,4,4] x) => (float[N,16,4,4] y) {{ {' '.join(lines)} y = Identity({at}) }}"
    return Case(model(text, held), feeds(2, x=(1, 16, 4, 4)))


def deep_decoder(nodes: int) -> Case:
    """Decoder layers of 22 nodes, whose sizes are asked of the tensors at hand."""
    lines, held, at = [], {}, "x"
    for i in range(nodes // 22):
        names = {"i": i, "x": at}
        lines += [
            line.format(**names)
            for line in (
                "n{i} = LayerNormalization({x}, one)",
                *(f"{p}{{i}} = MatMul(n{{i}}, w{p}{{i}})" for p in "qkv"),
                "s{i} = Shape({x})",
                "l{i} = Gather<axis = 0>(s{i}, first)",
                "o{i} = Unsqueeze(l{i}, axis)",
                "g{i} = Concat<axis = 0>(o{i}, rest)",
                *(f"{p}h{{i}} = Reshape({p}{{i}}, g{{i}})" for p in "qkv"),
                "qt{i} = Transpose<perm = [0, 2, 1, 3]>(qh{i})",
                "kt{i} = Transpose<perm = [0, 2, 3, 1]>(kh{i})",
                "vt{i} = Transpose<perm = [0, 2, 1, 3]>(vh{i})",
                "a{i} = MatMul(qt{i}, kt{i})",
                "p{i} = Softmax(a{i})",
                "m{i} = MatMul(p{i}, vt{i})",
                "mt{i} = Transpose<perm = [0, 2, 1, 3]>(m{i})",
                "f{i} = Reshape(mt{i}, flat)",
                "u{i} = MatMul(f{i}, wu{i})",
                "r{i} = Relu(u{i})",
                "d{i} = Add(r{i}, {x})",
            )
        ]
        held |= {f"w{p}{i}": weight(64, 64, seed=4 * i + j) for j, p in enumerate("qkv")}
        held[f"wu{i}"] = weight(64, 64, seed=4 * i + 3) * np.float32(0.02)
        at = f"d{i}"
    held |= {"one": np.ones(64, np.float32), "first": np.int64(0), "axis": np.array([0]), "flat": np.array([0, 0, 64])}
    held["rest"] = np.array([-1, 4, 16])
    text = f"net (float[N,T,64] x) => (float[N,T,64] y) {{ {' '.join(lines)} y = Identity({at}) }}"
    return Case(model(text, held), feeds(2, x=(1, 3, 64)))


def deep_shapes(nodes: int) -> Case:
    """Products whose inputs are reshaped by sizes that are computed from sizes: six nodes each."""
    lines, held, at = [], {}, "x"
    for i in range(nodes // 6):
        lines += [f"s{i} = Shape({at}) a{i} = Gather<axis = 0>(s{i}, first) b{i} = Unsqueeze(a{i}, axis)"]
        lines += [f"c{i} = Concat<axis = 0>(b{i}, rest) r{i} = Reshape({at}, c{i}) t{i} = MatMul(r{i}, w{i})"]
        held[f"w{i}"] = np.linalg.qr(weight(32, 32, seed=i))[0]
        at = f"t{i}"
    held |= {"first": np.int64(0), "axis": np.array([0]), "rest": np.array([-1, 32])}
    text = f"net (float[N,T,32] x) => (float[N,T,32] y) {{ {' '.join(lines)} y = Identity({at}) }}"
    return Case(model(text, held), feeds(2, x=(1, 3, 32)))


DEEP: Mapping[str, Callable[[int], Case]] = {
    "chain": deep_chain,
    "cnn": deep_cnn,
    "decoder": deep_decoder,
    "shapes": deep_shapes,
}
