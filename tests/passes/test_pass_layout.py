"""Transposes between NHWC and NCHW: which are removed, which must stay, and that outputs never change."""

import random
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from handmade.core import Feed, feeds, model, vector, weight
from handmade.nhwc import TO_FIRST, TO_LAST, Nhwc
from pass_checks import check, loaded, ops, outputs, rewritten, the

from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.passes.layout import FewestTransposes
from onnxshot.passes.normalize import normalize


def normalized(proto: onnx.ModelProto, *feeds: Feed) -> Model:
    """The normalized model, whose contract and outputs were checked."""
    result = load_model(proto)
    normalize(result)
    check(proto, result, *feeds, rescales=True)
    return result


def moved(proto: onnx.ModelProto, feed: Feed) -> int:
    """Number of values that the Transposes of a model move."""
    stored = {t.name for t in proto.graph.initializer}
    read = [n.input[0] for n in proto.graph.node if n.op_type == "Transpose" and n.input[0] not in stored]
    sizes = {name: value.size for name, value in feed.items()}
    inner = [name for name in dict.fromkeys(read) if name not in sizes]
    sizes |= dict(zip(inner, (v.size for v in outputs(proto, feed, inner)), strict=True)) if inner else {}
    return sum(sizes[name] for name in read)


# ---------------------------------------------------------------------- whole nets


def mobile(g: Nhwc) -> str:
    g.conv(8)
    g.norm()
    g.relu6()
    g.conv(0, depthwise=True)
    g.norm(rank=4)
    g.add("Clip", g.now, g.hold(0.0), g.hold(6.0))
    g.conv(6, 1)
    g.norm()
    g.pool("MaxPool")
    g.add("ReduceMean<axes = [1, 2], keepdims = 0>", g.now)
    g.add("MatMul", g.now, g.hold(weight(g.channels, 5)))
    return f"float[n, 5] {g.now}"


def residual(g: Nhwc) -> str:
    g.conv(8)
    g.norm()
    start = g.add("Relu", g.now)
    for _ in range(2):
        g.conv(8)
        g.norm()
        start = g.add("Relu", g.add("Add", g.now, start))
    g.add("ReduceMean<axes = [1, 2], keepdims = 0>", g.now)
    return f"float[n, 8] {g.now}"


def unet(g: Nhwc) -> str:
    skip = g.add("Relu", g.conv(4))
    g.pool("MaxPool")
    g.add("Relu", g.conv(6))
    g.add('Resize<mode = "linear">', g.now, "", g.hold(np.array([1, 2, 2, 1], np.float32)))
    g.add("Concat<axis = 3>", g.now, skip)
    g.channels += 4
    g.add("Sigmoid", g.conv(2, 1))
    return f"float[n, h, w, 2] {g.now}"


def squeeze_excite(g: Nhwc) -> str:
    x = g.add("Relu", g.conv(8))
    mean = g.add("ReduceMean<axes = [1, 2], keepdims = 0>", x)
    g.add("Reshape", mean, g.hold([-1, 1, 1, 8]))
    g.add("Relu", g.conv(4, 1))
    g.add("Sigmoid", g.conv(8, 1))
    g.add("Mul", x, g.now)
    g.conv(5, 1)
    g.add("ReduceMax<axes = [1, 2], keepdims = 0>", g.now)
    return f"float[n, 5] {g.now}"


def heads(g: Nhwc) -> str:
    """Boxes and scores as [N, cells, values]: in that order only channels last can be reshaped."""
    x = g.add("Relu", g.conv(8))
    g.conv(4)
    boxes = g.add("Reshape", g.now, g.hold([0, -1, 4]))
    g.now, g.channels = x, 8
    g.conv(3)
    scores = g.add("Sigmoid", g.add("Reshape", g.now, g.hold([0, -1, 3])))
    g.add("Concat<axis = 2>", boxes, scores)
    return f"float[n, cells, 7] {g.now}"


def segmentation(g: Nhwc) -> str:
    g.add("Relu", g.conv(8))
    g.conv(3, 1)
    g.norm()
    g.add("ArgMax<axis = -1, keepdims = 0>", g.now)
    return f"int64[n, h, w] {g.now}"


@pytest.mark.parametrize("size", [12, "s"])
@pytest.mark.parametrize(
    ("build", "transposes"),
    [(mobile, 1), (residual, 1), (unet, 2), (squeeze_excite, 1), (heads, 3), (segmentation, 1)],
)
def test_an_nhwc_graph_becomes_an_nchw_graph(build: Callable[[Nhwc], str], transposes: int, size: int | str) -> None:
    """One Transpose stays after the input, and one before ops that need channels last."""
    g = Nhwc(3, size)
    proto = g.model(build(g))
    after = normalized(proto, *feeds(2, x=(2, 12, 12, 3)))
    assert ops(after)["Transpose"] == transposes
    assert not {"Sub", "Div"} & set(ops(after))  # BatchNormalization is in the Convs
    counts = ops(after)
    assert counts["Mul"] == (1 if build is squeeze_excite else 0)
    assert counts["Add"] == (2 if build is residual else 0)
    assert moved(after.to_proto(), *feeds(1, x=(1, 12, 12, 3))) < moved(proto, *feeds(1, x=(1, 12, 12, 3)))


def test_flattened_features_reorder_the_rows_of_the_weight() -> None:
    for product in ("MatMul", "Gemm<transB = 1>"):
        g = Nhwc(3, 6)
        g.add("Relu", g.conv(4))
        g.add("Reshape", g.now, g.hold([-1, 144]))
        g.add(product, g.now, g.hold(weight(5, 144) if "Gemm" in product else weight(144, 5)))
        after = normalized(g.model(f"float[n, 5] {g.now}"), *feeds(2, x=(2, 6, 6, 3)))
        assert ops(after)["Transpose"] == 1


def test_features_with_another_reader_keep_their_order() -> None:
    g = Nhwc(3, 6)
    g.add("Relu", g.conv(4))
    flat = g.add("Reshape", g.now, g.hold([-1, 144]))
    g.add("MatMul", flat, g.hold(weight(144, 5)))
    after = normalized(g.model(f"float[n, 5] {g.now}, float[n, 144] {flat}"), *feeds(2, x=(2, 6, 6, 3)))
    assert ops(after)["Transpose"] == 2


def test_outputs_keep_name_and_layout() -> None:
    """One tensor is an output in both layouts; `rewritten` compares names, shapes and values with the given model."""
    g = Nhwc(3)
    inner = g.add("Relu", g.conv(4))
    first = g.add(TO_FIRST, inner)
    again = g.add(TO_LAST, first)
    g.add("Relu", g.conv(5))
    declared = f"float[n, 12, 12, 4] {inner}, float[n, 4, 12, 12] {first}, float[n, 12, 12, 4] {again}"
    proto = g.model(f"{declared}, float[n, 12, 12, 5] {g.now}")
    after, change = rewritten(proto, FewestTransposes(), *feeds(2, x=(2, 12, 12, 3)))
    assert change.edits
    assert ops(after)["Transpose"] < ops(loaded(proto))["Transpose"]


def test_sizes_that_a_shape_reads_stay_in_their_order() -> None:
    g = Nhwc(3, "s")
    x = g.add("Relu", g.conv(4))
    double = g.add("Mul", g.add("Shape", x), g.hold([1, 2, 2, 1]))
    g.add('Resize<mode = "nearest">', x, "", "", double)
    g.add("Relu", g.conv(4))
    g.add("Pad", g.now, g.add("Concat<axis = 0>", g.hold([0, 1]), g.hold([2, 0, 0, 3, 4, 0])))
    g.conv(2)
    after, _ = rewritten(g.model(f"float[n, h, w, 2] {g.now}"), FewestTransposes(), *feeds(2, x=(1, 6, 6, 3)))
    assert ops(after)["Transpose"] == 5  # two of pictures, three of kernels


@pytest.mark.parametrize("rank", [3, 5])
def test_sound_and_video_with_channels_last(rank: int) -> None:
    axes = list(range(1, rank - 1))
    first, last = [0, rank - 1, *axes], [0, *range(2, rank), 1]
    dims = ", ".join("5" for _ in axes)
    text = f"""g (float[n, {dims}, 3] x) => (float[n, 4] y) {{
        a = Transpose<perm = {first}>(x)
        b = Conv<pads = {[1] * 2 * len(axes)}>(a, w)
        c = Transpose<perm = {last}>(b)
        d = Mul(c, s)
        e = Add(d, t)
        f = Relu(e)
        h = Transpose<perm = {first}>(f)
        i = Conv(h, v)
        j = Transpose<perm = {last}>(i)
        k = Tanh(j)
        y = ReduceMean<axes = {axes}, keepdims = 0>(k)
    }}"""
    three, one = (3,) * len(axes), (1,) * len(axes)
    held = {"w": weight(4, 3, *three), "v": weight(4, 4, *one), "s": vector(4, 1), "t": vector(4, 2)}
    after = normalized(model(text, held), *feeds(2, x=(2, *[5] * len(axes), 3)))
    assert ops(after)["Transpose"] == 1
    assert not ops(after)["Mul"]


def test_a_conv_of_one_dimension_written_with_two() -> None:
    """TensorFlow widens sound [N, W, C] to [N, 1, W, C] around each Conv."""
    text = """g (float[n, 9, 3] x) => (float[n, 9, 4] y) {
        a = Unsqueeze(x, one)
        b = Transpose<perm = [0, 3, 1, 2]>(a)
        c = Conv<pads = [0, 1, 0, 1]>(b, w)
        d = Transpose<perm = [0, 2, 3, 1]>(c)
        e = Squeeze(d, one)
        f = Relu(e)
        h = Unsqueeze(f, one)
        i = Transpose<perm = [0, 3, 1, 2]>(h)
        j = Conv<pads = [0, 1, 0, 1]>(i, v)
        k = Transpose<perm = [0, 2, 3, 1]>(j)
        y = Squeeze(k, one)
    }"""
    held = {"w": weight(4, 3, 1, 3), "v": weight(4, 4, 1, 3), "one": np.array([1])}
    after, _ = rewritten(model(text, held), FewestTransposes(), *feeds(2, x=(2, 9, 3)))
    assert ops(after)["Transpose"] == 2


# ---------------------------------------------------------------------- what stays


def test_the_transposes_of_attention_stay() -> None:
    """Keys [N, T, heads, D] go to [N, heads, D, T] by the same permutation as pictures do."""
    text = """g (float[n, 6, 8] x) => (float[n, 2, 6, 6] y) {
        k = MatMul(x, wk)
        k4 = Reshape(k, split)
        kt = Transpose<perm = [0, 2, 3, 1]>(k4)
        ks = Mul(kt, half)
        q = MatMul(x, wq)
        q4 = Reshape(q, split)
        qt = Transpose<perm = [0, 2, 1, 3]>(q4)
        y = MatMul(qt, ks)
    }"""
    held = {"wk": weight(8, 8), "wq": weight(8, 8, seed=1), "split": np.array([0, 0, 2, 4]), "half": np.float32(0.5)}
    after, change = rewritten(model(text, held), FewestTransposes(), *feeds(1, x=(2, 6, 8)))
    assert change.edits == 0
    assert ops(after) == {"MatMul": 3, "Reshape": 2, "Transpose": 2, "Mul": 1}


def test_a_norm_over_channels_last_keeps_its_transposes() -> None:
    """ConvNeXt: a Conv with channels first, then a norm and products that need them last."""
    text = """g (float[n, 8, 6, 6] x) => (float[n, 8, 6, 6] y) {
        a = Conv<group = 8, pads = [1, 1, 1, 1]>(x, w)
        b = Transpose<perm = [0, 2, 3, 1]>(a)
        c = LayerNormalization<axis = -1>(b, s, t)
        d = MatMul(c, u)
        e = Add(d, v)
        f = Mul(e, s)
        h = Transpose<perm = [0, 3, 1, 2]>(f)
        y = Add(h, x)
    }"""
    held = {"w": weight(8, 1, 3, 3), "s": vector(8, 1), "t": vector(8, 2), "u": weight(8, 8), "v": vector(8, 3)}
    _, change = rewritten(model(text, held), FewestTransposes(), *feeds(1, x=(2, 8, 6, 6)))
    assert change.edits == 0


@pytest.mark.parametrize(
    "line",
    [
        "Softmax<axis = 1>",  # below opset 13 it flattens what is behind the axis
        "CumSum",
        "Reshape",
    ],
)
def test_an_op_without_a_layout_change_keeps_its_layout(line: str) -> None:
    extra = {"CumSum": ", axis", "Reshape": ", shape"}.get(line, "")
    text = f"""g (float[n, 4, 4, 3] x) => (float[n, 2, 4, 4] y) {{
        a = Transpose<perm = [0, 3, 1, 2]>(x)
        b = Conv(a, w)
        c = Transpose<perm = [0, 2, 3, 1]>(b)
        d = {line}(c{extra})
        e = Transpose<perm = [0, 3, 1, 2]>(d)
        y = Conv(e, v)
    }}"""
    held = {"w": weight(2, 3, 1, 1), "v": weight(2, 2, 1, 1), "axis": np.array(3), "shape": np.array([-1, 4, 4, 2])}
    proto = model(text, held, opset=11)
    after, _ = rewritten(proto, FewestTransposes(), *feeds(1, x=(2, 4, 4, 3)))
    assert ops(after)["Transpose"] == 3


def test_a_large_constant_that_others_read_is_not_stored_twice() -> None:
    text = """g (float[1, 16, 16, 8] x, float[1, 16, 16, 8] z) => (float[1, 8, 16, 16] y, float[1, 16, 16, 8] u) {
        u = Mul(z, table)
        a = Add(x, table)
        y = Transpose<perm = [0, 3, 1, 2]>(a)
    }"""
    proto = model(text, {"table": weight(1, 16, 16, 8)})
    _, change = rewritten(proto, FewestTransposes(), *feeds(1, x=(1, 16, 16, 8), z=(1, 16, 16, 8)))
    assert change.edits == 0


# ---------------------------------------------------------------------- any graph


def _layers(g: Nhwc, rng: random.Random) -> dict[str, Callable[[], object]]:
    """Layers that keep height and width."""
    x, c = g.now, g.channels

    def means() -> None:
        g.add("ReduceMean<axes = [1, 2], keepdims = 1>", x)
        g.add("Mul", x, g.conv(c, 1))

    def halves() -> None:
        names = [f"s{len(g.lines)}{i}" for i in "ab"]
        g.lines.append(f"{', '.join(names)} = Split<axis = 3>({x})")
        g.now = names[1]
        g.add("Concat<axis = -1>", names[1], g.add("Neg", names[0]), names[0])
        g.channels = c // 2 * 3

    def sizes() -> None:
        size = g.add("Gather<axis = 0>", g.add("Shape", x), g.hold(np.array(rng.choice([1, 2, 3]))))
        g.add("Div", x, g.add("Cast<to = 1>", size))

    def chosen() -> None:
        g.add("Where", g.add("Greater", x, g.hold(vector(c))), x, g.hold(-0.1))

    def sliced() -> None:
        g.add("Slice", x, g.hold([1]), g.hold([99]), g.hold([rng.choice([3, -1])]))
        g.channels -= 1

    def picked() -> None:
        g.add("Gather<axis = 3>", x, g.hold([1, 0, 1, 0]))
        g.channels = 4

    def largest() -> None:
        g.add("Sub", x, g.add("ReduceMax<axes = [3]>", x))

    def first() -> None:
        g.add("Mul", g.add("Relu", g.add(TO_FIRST, x)), g.hold(vector(c).reshape(-1, 1, 1)))
        g.add(TO_LAST, g.now)

    found: dict[str, Callable[[], object]] = {
        "conv": lambda: g.conv(rng.choice([2, 4, 6]), rng.choice([1, 3])),
        "depthwise": lambda: g.conv(0, depthwise=True),
        "norm": lambda: g.norm(rank=rng.choice([1, 4])),
        "relu6": g.relu6,
        "swish": lambda: g.add("Mul", x, g.add("Sigmoid", x)),
        "softmax": lambda: g.add(f"Softmax<axis = {rng.choice([-1, 1])}>", x),
        "prelu": lambda: g.add("PRelu", x, g.hold(vector(c))),
        "twice": lambda: g.add(TO_LAST, g.add(TO_FIRST, x)),
        "table": lambda: g.add("Add", x, g.hold(weight(1, 8, 8, c))),
        "means": means,
        "sizes": sizes,
        "chosen": chosen,
        "largest": largest,
        "first": first,
    }
    if c > 1:
        found |= {"sliced": sliced, "picked": picked}
    if c % 2 == 0:
        found["halves"] = halves
    return found


def any_graph(seed: int) -> onnx.ModelProto:
    """A random chain of layers with skips, and outputs in either layout."""
    rng = random.Random(seed)
    g = Nhwc(rng.choice([3, 4]), rng.choice([8, "s"]), seed=seed)
    given = "x"
    skips: list[tuple[str, int]] = []
    for _ in range(rng.randint(2, 12)):
        g.now = given
        layers = _layers(g, rng)
        layers[rng.choice(sorted(layers))]()
        same = [name for name, channels in skips if channels == g.channels]
        if same and rng.random() < 0.3:
            g.add("Add", g.now, rng.choice(same))
        given = g.now
        skips.append((given, g.channels))
    declared = [f"float[n, h, w, {g.channels}] {given}"] if rng.random() < 0.5 else []
    end = rng.choice(["mean", "head", "first", "flat"])
    if end == "mean":
        declared.append(f"float[n, k] {g.add('ReduceMean<axes = [1, 2], keepdims = 0>', given)}")
    elif end == "head":
        declared.append(f"float[n, k, {g.channels}] {g.add('Reshape', given, g.hold([0, -1, g.channels]))}")
    elif end == "first":
        declared.append(f"float[n, {g.channels}, k, l] {g.add(TO_FIRST, given)}")
    else:
        flat = g.add("Reshape", given, g.hold([-1, g.channels * 64]))
        declared.append(f"float[n, 5] {g.add('MatMul', flat, g.hold(weight(g.channels * 64, 5)))}")
    return g.model(", ".join(declared))


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 400), marks=pytest.mark.slow)])
def test_random_graphs_keep_their_outputs_and_move_no_more_values(seeds: range) -> None:
    for seed in seeds:
        proto = any_graph(seed)
        fed = feeds(1, x=(2, 8, 8, proto.graph.input[0].type.tensor_type.shape.dim[3].dim_value))
        after, _ = rewritten(proto, FewestTransposes(), *fed)
        assert moved(after.to_proto(), fed[0]) <= moved(proto, fed[0]), seed
        assert moved(normalized(proto, *fed).to_proto(), fed[0]) <= moved(proto, fed[0]), seed


def test_a_removed_name_still_finds_its_layer() -> None:
    g = Nhwc(3)
    g.conv(4)
    inner = g.add("Relu", g.now)
    g.conv(2)
    after, _ = rewritten(g.model(f"float[n, 12, 12, 2] {g.now}"), FewestTransposes(), *feeds(1, x=(1, 12, 12, 3)))
    assert after.renamed[inner] == the(after, "Relu").outputs[0].name


def test_a_decomposed_norm_stays_over_the_last_axis() -> None:
    """Below opset 17 a LayerNormalization is nine nodes, which runtimes fuse over the last axis only."""
    text = """g (float[n, 8, 6, 6] x) => (float[n, 8, 6, 6] y) {
        a = Transpose<perm = [0, 2, 3, 1]>(x)
        mean = ReduceMean<axes = [-1]>(a)
        d = Sub(a, mean)
        square = Pow(d, two)
        variance = ReduceMean<axes = [-1]>(square)
        more = Add(variance, epsilon)
        root = Sqrt(more)
        q = Div(d, root)
        s = Mul(q, gamma)
        t = Add(s, beta)
        y = Transpose<perm = [0, 3, 1, 2]>(t)
    }"""
    held = {"two": np.float32(2), "epsilon": np.float32(1e-5), "gamma": vector(8, 1), "beta": vector(8, 2)}
    _, change = rewritten(model(text, held, opset=13), FewestTransposes(), *feeds(1, x=(2, 8, 6, 6)))
    assert change.edits == 0


def test_one_pixel_is_reshaped_in_either_layout() -> None:
    """tf2onnx writes the Transpose of one pixel as a Reshape."""
    g = Nhwc(3)
    x = g.add("Relu", g.conv(8))
    first = g.add("GlobalAveragePool", g.add(TO_FIRST, x))
    g.add("Sigmoid", g.add("Reshape", first, g.hold([-1, 1, 1, 8])))
    g.add("Mul", x, g.now)
    g.conv(4)
    after, _ = rewritten(g.model(f"float[n, 12, 12, 4] {g.now}"), FewestTransposes(), *feeds(1, x=(2, 12, 12, 3)))
    assert ops(after)["Transpose"] == 4  # two of kernels
