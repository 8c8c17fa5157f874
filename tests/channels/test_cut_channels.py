"""Channels that are cut: what goes with them, what cannot be cut, and that it is the same as if they were zero."""

from typing import Any

import numpy as np
import onnx
import pytest
from channel_removal import cut, grouped, masked, some
from handmade.core import Feed, feeds, model, vector, weight
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from pass_checks import outputs

from onnxshot.channels.costs import macs_cost, params_cost
from onnxshot.channels.groups import Group, in_steps, step_size
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import concrete_shapes, macs

X = feeds(2, x=(1, 4, 6, 6))


def check(proto: ModelProto, given_feeds: list[Feed] = X, seed: int = 0) -> tuple[ModelProto, list[Group]]:
    """Cut half of every group, and hold the outputs against the masked model in ONNX Runtime."""
    groups = grouped(proto)[1]
    rng = np.random.default_rng(seed)
    removed = [i for group in groups.rows for i in some(group, rng)]
    assert removed, [skip.reason for skip in groups.skips]
    small, zeroed = cut(proto, removed), masked(proto, removed)
    for feed in given_feeds:
        for want, got in zip(outputs(zeroed, feed), outputs(small, feed), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * max(float(np.abs(want).max()), 1e-3))
    return small, list(groups.rows)


def shape(proto: ModelProto, name: str) -> list[int]:
    (found,) = (list(t.dims) for t in proto.graph.initializer if t.name == name)
    return found


def reasons(proto: ModelProto) -> dict[str, str]:
    return {skip.node: skip.reason for skip in grouped(proto)[1].skips}


def net(body: str, out: str = "1, 3, 6, 6", opset: int = 17, **constants: NDArray[Any]) -> ModelProto:
    """Between a first Conv 4 -> 8 that gives a, and a last one 8 -> 3 that reads z."""
    text = f"net (float[1,4,6,6] x) => (float[{out}] y) {{ a = Conv(x, w1, b1) {body} y = Conv(z, w2, b2) }}"
    given = {"w1": weight(8, 4, 3, 3), "b1": vector(8), "w2": weight(3, 8, 1, 1), "b2": vector(3)} | constants
    text = text.replace("Conv(x, w1, b1)", "Conv<pads=[1,1,1,1]>(x, w1, b1)")
    used = {name: value for name, value in given.items() if f" {name}" in text or f"{name}," in text or name in text}
    return model(text, used, opset=opset)


KINDS: dict[str, tuple[ModelProto, dict[str, list[int]]]] = {
    "relu": (net("z = Relu(a)"), {"w1": [4, 4, 3, 3], "b1": [4], "w2": [3, 4, 1, 1]}),
    "residual": (
        net("r = Relu(a) c = Conv<pads=[1,1,1,1]>(r, w3) z = Add(c, r)", w3=weight(8, 8, 3, 3, seed=3)),
        {"w1": [4, 4, 3, 3], "w3": [4, 4, 3, 3], "w2": [3, 4, 1, 1]},
    ),
    "depthwise": (
        net("z = Conv<group=8, pads=[1,1,1,1]>(a, w3, b3)", w3=weight(8, 1, 3, 3, seed=3), b3=vector(8, 3)),
        {"w3": [4, 1, 3, 3], "b3": [4], "w2": [3, 4, 1, 1]},
    ),
    "depthwise times two": (
        net(
            "c = Conv<group=8>(a, w3) z = Conv(c, w4)",
            w3=weight(16, 1, 1, 1, seed=3),
            w4=weight(8, 16, 1, 1, seed=4),
        ),
        {"w1": [4, 4, 3, 3], "w3": [8, 1, 1, 1], "w4": [4, 8, 1, 1], "w2": [3, 4, 1, 1]},
    ),
    "grouped": (
        net("r = Relu(a) z = Conv<group=2>(r, w3)", w3=weight(8, 4, 1, 1, seed=3)),
        {"w1": [4, 4, 3, 3], "w3": [4, 2, 1, 1], "w2": [3, 4, 1, 1]},
    ),
    "batch norm": (
        net(
            "z = BatchNormalization(a, s, t, m, v)",
            s=vector(8, 1),
            t=vector(8, 2),
            m=vector(8, 3),
            v=vector(8, 4, 0.5, 2),
        ),
        {"s": [4], "t": [4], "m": [4], "v": [4]},
    ),
    "prelu and vectors": (
        net(
            "p = PRelu(a, s) q = Mul(p, t) z = Add(q, v)",
            s=vector(8, 1).reshape(8, 1, 1),
            t=vector(8, 2).reshape(1, 8, 1, 1),
            v=vector(1, 3),
        ),
        {"s": [4, 1, 1], "t": [1, 4, 1, 1], "v": [1]},
    ),
    "concat": (
        net("c = Conv(x, w3) k = Concat<axis=1>(a, c) z = Conv(k, w4)", w3=weight(6, 4, 1, 1), w4=weight(8, 14, 1, 1)),
        {"w1": [4, 4, 3, 3], "w3": [3, 4, 1, 1], "w4": [4, 7, 1, 1]},
    ),
    "concat with an input": (
        net("k = Concat<axis=1>(a, x) z = Conv(k, w4)", w4=weight(8, 12, 1, 1)),
        {"w1": [4, 4, 3, 3], "w4": [4, 8, 1, 1]},
    ),
    "split": (
        net(
            "p, q = Split<axis=1>(a, n) r = Concat<axis=1>(q, p) z = Relu(r)",
            n=np.asarray([3, 5]),
        ),
        {"w1": [4, 4, 3, 3], "w2": [3, 4, 1, 1]},
    ),
    "slice and gather": (
        net(
            "p = Slice(a, n0, n6, n1) q = Gather<axis=1>(a, i) z = Concat<axis=1>(p, q)",
            n0=np.asarray([2]),
            n6=np.asarray([6]),
            n1=np.asarray([1]),
            i=np.asarray([7, 0, 1, -2]),
        ),
        {"w1": [4, 4, 3, 3], "w2": [3, 4, 1, 1]},
    ),
    "shuffle": (
        net(
            "p = Reshape(a, s5) q = Transpose<perm=[0,2,1,3,4]>(p) z = Reshape(q, s4)",
            s5=np.asarray([1, 2, 4, 6, 6]),
            s4=np.asarray([1, 8, 6, 6]),
        ),
        {"w1": [4, 4, 3, 3], "w2": [3, 4, 1, 1]},
    ),
    "squeeze-excite": (
        net(
            "g = GlobalAveragePool(a) h = Conv(g, w3) i = Relu(h) j = Conv(i, w4) k = Sigmoid(j) z = Mul(k, a)",
            w3=weight(4, 8, 1, 1),
            w4=weight(8, 4, 1, 1),
        ),
        {"w1": [4, 4, 3, 3], "w3": [2, 4, 1, 1], "w4": [4, 2, 1, 1], "w2": [3, 4, 1, 1]},
    ),
    "pad of channels": (
        net(
            "c = Conv(x, w3) p = Pad(c, n) z = Add(a, p)",
            w3=weight(4, 4, 1, 1),
            n=np.asarray([0, 2, 0, 0, 0, 2, 0, 0]),
        ),
        {"w1": [4, 4, 3, 3], "w2": [3, 4, 1, 1]},
    ),
    "pools, resize, pad": (
        net(
            "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) q = Resize<mode=\"nearest\">(p, , , n) "
            "r = Pad(q, m) z = AveragePool<kernel_shape=[3,3]>(r)",
            n=np.asarray([1, 8, 6, 6]),
            m=np.asarray([0, 0, 1, 1, 0, 0, 1, 1]),
        ),
        {"w1": [4, 4, 3, 3], "w2": [3, 4, 1, 1]},
    ),
    "channels last and back": (
        net(
            "p = Transpose<perm=[0,2,3,1]>(a) q = MatMul(p, w3) r = Add(q, b3) z = Transpose<perm=[0,3,1,2]>(r)",
            w3=weight(8, 8),
            b3=vector(8, 3),
        ),
        {"w1": [4, 4, 3, 3], "w3": [4, 4], "b3": [4], "w2": [3, 4, 1, 1]},
    ),
    "depth to space": (
        net("c = Conv(a, w3) z = DepthToSpace<blocksize=2>(c)", out="1, 3, 12, 12", w3=weight(32, 8, 1, 1)),
        {"w3": [16, 4, 1, 1], "w2": [3, 4, 1, 1]},
    ),
    "transposed conv": (
        net("z = ConvTranspose(a, w3, b3)", w3=weight(8, 8, 1, 1), b3=vector(8)),
        {"w1": [4, 4, 3, 3], "w3": [4, 4, 1, 1], "b3": [4], "w2": [3, 4, 1, 1]},
    ),
    "a weight for two": (
        net("r = Relu(a) c = Conv(r, w3) d = Relu(c) e = Conv(d, w3) z = Relu(e)", w3=weight(8, 8, 1, 1)),
        {"w3": [4, 4, 1, 1], "w1": [4, 4, 3, 3]},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_goes_everywhere_it_is(kind: str) -> None:
    proto, expected = KINDS[kind]
    small, _ = check(proto)
    assert {name: shape(small, name) for name in expected} == expected


def test_a_flattened_channel_is_a_block_of_inputs() -> None:
    text = """net (float[1,4,6,6] x) => (float[1,3] y) {
        a = Conv(x, w1) r = Relu(a) f = Flatten(r) y = Gemm<transB=1>(f, w2, b2) }"""
    proto = model(text, {"w1": weight(8, 4, 3, 3), "w2": weight(3, 128), "b2": vector(3)})
    small, (group,) = check(proto)
    assert shape(small, "w2") == [3, 64]
    assert len(group.ids) == 8


ATTENTION = """net (float[1,5,16] x) => (float[1,5,3] y) {
    q = MatMul(x, wq) k = MatMul(x, wk) v0 = MatMul(x, wv) v = Add(v0, bv)
    q1 = Reshape(q, heads) k1 = Reshape(k, heads) v1 = Reshape(v, heads)
    q2 = Transpose<perm=[0,2,1,3]>(q1) k2 = Transpose<perm=[0,2,3,1]>(k1) v2 = Transpose<perm=[0,2,1,3]>(v1)
    s = MatMul(q2, k2) p = Softmax<axis=-1>(s) o = MatMul(p, v2) o1 = Transpose<perm=[0,2,1,3]>(o)
    o2 = Reshape(o1, flat) o3 = MatMul(o2, wo) n = LayerNormalization(o3, g, h)
    u = MatMul(n, wu) t = MatMul(n, wt) st = Sigmoid(t) m = Mul(u, st) y = MatMul(m, wd) }"""


def attention() -> ModelProto:
    constants = {name: weight(16, 16, seed=i) for i, name in enumerate(("wq", "wk", "wv"))}
    constants |= {"bv": vector(16), "heads": np.asarray([0, -1, 4, 4]), "flat": np.asarray([1, -1, 16])}
    constants |= {"wo": weight(16, 16, seed=5), "g": vector(16), "h": vector(16), "wu": weight(16, 12)}
    return model(ATTENTION, constants | {"wt": weight(16, 12, seed=1), "wd": weight(12, 3)})


def test_heads_and_hidden_units_of_a_gated_mlp() -> None:
    proto = attention()
    small, rows = check(proto, feeds(2, x=(1, 5, 16)))
    assert {(row.kind, len(row.ids), len(row.makers)) for row in rows} == {("heads", 4, 3), ("mlp", 12, 2)}
    assert (shape(small, "wq"), shape(small, "bv"), shape(small, "wo")) == ([16, 8], [8], [8, 16])
    assert (shape(small, "wu"), shape(small, "wt"), shape(small, "wd")) == ([16, 6], [16, 6], [6, 3])
    assert "computes across it" in " ".join(reasons(proto).values())


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("s = ReduceMean<axes=[1]>(a) z = Add(a, s)", "ReduceMean"),
        ("z = LpNormalization<axis=1>(a)", "LpNormalization"),
        ("n = Shape(a) c = Gather(n, one) f = Cast<to=1>(c) z = Div(a, f)", "read by Shape"),
        ("z = Softmax<axis=1>(a)", "computes across it"),
        ("z = Add(a, free)", "cannot be pruned"),
        ("r = Slice(a, n0, n8, one, two) z = Concat<axis=1>(r, r)", "has step 2"),
    ],
)
def test_what_cannot_be_cut_says_why(body: str, found: str) -> None:
    text = f"""net (float[1,4,6,6] x, float[1,8,6,6] free) => (float[1,3,6,6] y, float[1,8,6,6] extra) {{
        extra = Relu(free) a = Conv<pads=[1,1,1,1]>(x, w1) {body} y = Conv(z, w2) }}"""
    constants = {"w1": weight(8, 4, 3, 3), "w2": weight(3, 8, 1, 1), "one": np.asarray([1]), "two": np.asarray([2])}
    constants |= {"n0": np.asarray([0]), "n8": np.asarray([8])}
    used = {name: value for name, value in constants.items() if name in text}
    said = grouped(model(text, used))[1]
    assert not said.rows
    assert found in said.skips[0].reason
    assert "'y' is an output of the model" in said.skips[1].reason


def test_what_a_branch_reads_stays() -> None:
    text = """net (float[1,4,6,6] x, bool c) => (float[1,3,6,6] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1)
        z = If(c) <then_branch = one () => (float[1,8,6,6] p) { p = Relu(a) },
                   else_branch = two () => (float[1,8,6,6] q) { q = Neg(a) }>
        y = Conv(z, w2) }"""
    proto = model(text, {"w1": weight(8, 4, 3, 3), "w2": weight(3, 8, 1, 1)})
    assert "subgraph" in grouped(proto)[1].skips[0].reason


@pytest.mark.parametrize(("multiple", "expected"), [(1, 1), (8, 8), (16, 16)])
def test_chunks_keep_layers_a_multiple(multiple: int, expected: int) -> None:
    (group,) = grouped(net("z = Relu(a)"))[1].rows
    assert step_size(group, multiple) == expected
    heads = next(row for row in grouped(attention())[1].rows if row.kind == "heads")
    assert step_size(heads, multiple) == max(1, expected // 4), "a head is four outputs"


# ---------------------------------------------------------------------------- graphs at random


class Grammar:
    """Grows a network on [1, C, 8, 8], one block after the other."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.width = 8
        self.now = self.conv("x", 4, 8, 3)

    def node(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> str:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, f"n{len(self.nodes)}", **attrs))
        return names[0]

    def constant(self, values: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def random(self, *shape: int) -> str:
        values = self.rng.normal(0, 1 / np.sqrt(max(1, np.prod(shape[1:]))), shape)
        return self.constant(values.astype(np.float32))

    def conv(self, x: str, before: int, after: int, kernel: int = 1, group: int = 1) -> str:
        pads = [kernel // 2] * 4
        w, b = self.random(after, before // group, kernel, kernel), self.random(after)
        return self.node("Conv", x, w, b, pads=pads, group=group)

    def residual(self) -> None:
        inner = int(self.rng.integers(2, 9))
        c = self.node("Relu", self.conv(self.now, self.width, inner, 3))
        self.now = self.node("Add", self.conv(c, inner, self.width), self.now)

    def concat(self) -> None:
        more = int(self.rng.integers(2, 7))
        branch = self.node("Tanh", self.conv(self.now, self.width, more))
        self.now = self.node("Concat", self.now, branch, axis=1)
        self.width += more

    def depthwise(self) -> None:
        self.now = self.node("Clip", self.conv(self.now, self.width, self.width, 3, self.width))

    def widen(self) -> None:
        after = 2 * int(self.rng.integers(2, 7))
        group = 2 if self.width % 2 == 0 and self.rng.random() < 0.5 else 1
        self.now, self.width = self.node("LeakyRelu", self.conv(self.now, self.width, after, 1, group)), after

    def squeeze_excite(self) -> None:
        g = self.node("ReduceMean", self.now, axes=[2, 3], keepdims=1)
        h = self.node("Relu", self.conv(g, self.width, 4))
        self.now = self.node("Mul", self.now, self.node("Sigmoid", self.conv(h, 4, self.width)))

    def split(self) -> None:
        first = int(self.rng.integers(1, self.width))
        sizes = self.constant(np.asarray([first, self.width - first]))
        a = self.node("Split", self.now, sizes, outputs=2, axis=1)
        b = self.node("Sigmoid", a[:-1] + "1")
        self.now = self.node("Concat", b, a, axis=1)

    def shuffle(self) -> None:
        if self.width % 2:
            return
        five = self.constant(np.asarray([0, 2, self.width // 2, 8, 8]))
        turned = self.node("Transpose", self.node("Reshape", self.now, five), perm=[0, 2, 1, 3, 4])
        self.now = self.node("Reshape", turned, self.constant(np.asarray([1, -1, 8, 8])))
        if self.rng.random() < 0.5:
            self.nodes.pop()
            self.now = self.node("Reshape", turned, self.constant(np.asarray([1, self.width, 8, 8])))

    def norm(self) -> None:
        s, t, m = (self.random(self.width) for _ in range(3))
        v = self.constant(self.rng.uniform(0.5, 2, self.width).astype(np.float32))
        self.now = self.node("BatchNormalization", self.now, s, t, m, v)

    def last(self) -> None:
        """Channels last, a product and a gain there, and back."""
        turned = self.node("Transpose", self.now, perm=[0, 2, 3, 1])
        p = self.node("MatMul", turned, self.random(self.width, self.width))
        self.now = self.node("Transpose", self.node("Mul", p, self.random(self.width)), perm=[0, 3, 1, 2])

    def attention(self) -> None:
        heads, size = 3, 2
        flat = self.node("Reshape", self.now, self.constant(np.asarray([1, self.width, 64])))
        x = self.node("Transpose", flat, perm=[0, 2, 1])
        shape4 = self.constant(np.asarray([1, 64, heads, size]))
        made = []
        for turned in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            p = self.node("MatMul", x, self.random(self.width, heads * size))
            p = self.node("Add", p, self.random(heads * size))
            made.append(self.node("Transpose", self.node("Reshape", p, shape4), perm=turned))
        weights = self.node("Softmax", self.node("MatMul", made[0], made[1]), axis=-1)
        out = self.node("Transpose", self.node("MatMul", weights, made[2]), perm=[0, 2, 1, 3])
        out = self.node("Reshape", out, self.constant(np.asarray([1, 64, heads * size])))
        out = self.node("MatMul", out, self.random(heads * size, self.width))
        if self.rng.random() < 0.5:
            out = self.node("Add", out, x)
        back = self.node("Transpose", out, perm=[0, 2, 1])
        self.now = self.node("Reshape", back, self.constant(np.asarray([1, self.width, 8, 8])))

    def model(self) -> ModelProto:
        if self.rng.random() < 0.5:
            pooled = self.node("AveragePool", self.now, kernel_shape=[4, 4], strides=[4, 4])
            flat, size = self.node("Flatten", pooled), self.width * 4
        else:
            flat, size = self.node("Flatten", self.node("GlobalAveragePool", self.now)), self.width
        self.nodes.append(helper.make_node("Gemm", [flat, self.random(size, 3), self.random(3)], ["y"], "head"))
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 8, 8])
        y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3])
        graph = helper.make_graph(self.nodes, "net", [x], [y], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


BLOCKS = ("residual", "concat", "depthwise", "widen", "squeeze_excite", "split", "shuffle", "norm", "last", "attention")


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=7), st.integers(0, 2**32 - 1))
def test_random_graphs_give_what_they_give_with_zeros(blocks: list[str], seed: int) -> None:
    grammar = Grammar(seed)
    for block in blocks:
        getattr(grammar, block)()
    proto = grammar.model()
    _, groups = grouped(proto)
    rng = np.random.default_rng(seed)
    assume([i for group in groups.rows for i in some(group, rng)])  # one channel all the way leaves none to cut
    check(proto, feeds(1, x=(1, 4, 8, 8)), seed)


def test_chunks_are_of_channels_of_the_same_layers() -> None:
    """A stage of 16 is added to the middle of one of 32: of both together, 8 would leave neither a multiple."""
    text = """net (float[1,4,6,6] x) => (float[1,3,6,6] y) {
        a = Conv(x, w1) p = Pad(a, n) c = Conv(x, w2) z = Add(c, p) y = Conv(z, w3) }"""
    constants = {"w1": weight(16, 4, 1, 1), "w2": weight(32, 4, 1, 1, seed=2), "w3": weight(3, 32, 1, 1)}
    (group,) = grouped(model(text, constants | {"n": np.asarray([0, 8, 0, 0, 0, 8, 0, 0])}))[1].rows
    order = in_steps(group, np.random.default_rng(0).permutation(group.ids), 8)
    assert sorted(order.tolist()) == sorted(group.ids.tolist())
    for start in range(0, 32, 8):
        inside = [np.isin(order[start : start + 8], ids).sum() for _, ids in group.makers]
        assert set(inside) <= {0, 8}


def test_work_is_counted_as_it_is_after_the_cut() -> None:
    for proto in (KINDS["squeeze-excite"][0], KINDS["depthwise times two"][0], KINDS["grouped"][0], attention()):
        ready, groups = grouped(proto)
        work, stored_work = macs_cost(ready, groups.axes, concrete_shapes(ready)), params_cost(ready, groups.axes)
        removed = [i for group in groups.rows for i in some(group, np.random.default_rng(3))]
        alive = np.ones(groups.axes.count, bool)
        alive[removed] = False
        small = cut(proto, removed)
        assert work.left(alive) == sum(macs(load_model(small)).values())
        stored = [t for t in small.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        assert stored_work.left(alive) == sum(np.prod(t.dims) for t in stored)
