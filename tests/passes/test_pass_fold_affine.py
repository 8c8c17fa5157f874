import numpy as np
import pytest
from handmade import HANDMADE
from handmade.core import feeds, model, vector, weight
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pass_checks import check, loaded, ops, reasons, rewritten, tensor

from onnxshot.graph import weights
from onnxshot.graph.load import load_model
from onnxshot.passes.fold_affine import FoldAffine
from onnxshot.passes.normalize import normalize


def const(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Values between 0.5 and 2, with both signs where there are several."""
    rng = np.random.default_rng([seed, *shape])
    return np.asarray(rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape), np.float32)


SHAPES = {"scalar": (), "one": (1,), "channels": (1, 8, 1, 1), "short": (8, 1, 1)}


@settings(max_examples=40)
@given(
    st.sampled_from(["Conv", "ConvTranspose"]),
    st.sampled_from([1, 2]),
    st.lists(st.sampled_from(["Mul", "Div", "Add", "Sub", "RSub"]), min_size=1, max_size=3),
    st.sampled_from(list(SHAPES)),
    st.booleans(),
)
def test_after_a_convolution(op: str, groups: int, steps: list[str], shape: str, with_bias: bool) -> None:
    """Conv -> Mul -> Add, as MobileOne has it, and every other order."""
    lines = [f"t0 = {op}<pads = [1, 1, 1, 1], group = {groups}>(x, w{', c' if with_bias else ''})"]
    for i, step in enumerate(steps):
        operands = f"k{i}, t{i}" if step == "RSub" else f"t{i}, k{i}"
        lines.append(f"t{i + 1} = {step.replace('RSub', 'Sub')}({operands})")
    last = f"t{len(steps)}"
    text = f"g (float[n, 4, 6, 6] x) => (float[n, 8, 6, 6] {last}) {{ {' '.join(lines)} }}"
    constants = {"w": weight(8, 4 // groups, 3, 3) if op == "Conv" else weight(4, 8 // groups, 3, 3)}
    constants |= {f"k{i}": const(*SHAPES[shape], seed=i) for i in range(len(steps))}
    if with_bias:
        constants["c"] = vector(8)
    after, change = rewritten(model(text, constants), FoldAffine(), *feeds(1, x=(2, 4, 6, 6)))
    assert change.edits == len(steps)
    assert ops(after) == {op: 1}


@pytest.mark.parametrize("k", [(), (8,), (1, 8)])
@pytest.mark.parametrize("attrs", ["transA = 0", "transB = 1", "alpha = 0.5, beta = 2.0"])
def test_after_gemm(attrs: str, k: tuple[int, ...]) -> None:
    text = f"g (float[n, 4] x) => (float[n, 8] y) {{ h = Gemm<{attrs}>(x, w, c) m = Mul(h, k) y = Sub(m, k) }}"
    constants = {"w": weight(8, 4) if "transB" in attrs else weight(4, 8), "c": vector(8), "k": const(*k)}
    after, change = rewritten(model(text, constants), FoldAffine(), *feeds(1, x=(3, 4)))
    assert change.edits == 2
    assert ops(after) == {"Gemm": 1}


def test_after_matmul_only_the_scale() -> None:
    text = "g (float[n, t, 4] x) => (float[n, t, 8] y) { h = MatMul(x, w) m = Div(h, k) y = Add(m, c) }"
    proto = model(text, {"w": weight(4, 8), "k": vector(8, 0, 1, 2), "c": vector(8)})
    after, change = rewritten(proto, FoldAffine(), *feeds(1, x=(2, 3, 4)))
    assert change.edits == 1
    assert not change.skips  # the Add is the bias
    assert ops(after) == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize("shape", [(3, 1), (1, 3, 1), (1, 1, 1, 8), (2, 1, 1)])
def test_constants_that_are_not_per_channel_stay(shape: tuple[int, ...]) -> None:
    text = "g (float[2, 3, 4] x) => (float[p, q, r, s] y) { h = MatMul(x, w) m = Mul(h, k) y = Unsqueeze(m, zero) }"
    if len(shape) == 4:
        text = text.replace("y = Unsqueeze(m, zero)", "y = Relu(m)")
    proto = model(text, {"w": weight(4, 8), "k": const(*shape), "zero": np.array([0])})
    _, change = rewritten(proto, FoldAffine(), *feeds(1, x=(2, 3, 4)))
    assert change.edits == 0
    assert "its constant" in reasons(change)[0]


def test_constant_that_broadcasts_a_single_channel_stays() -> None:
    text = "g (float[n, 4, 5, 5] x) => (float[n, 8, 5, 5] y) { h = Conv(x, w) y = Mul(h, k) }"
    proto = model(text, {"w": weight(1, 4, 1, 1), "k": weight(1, 8, 1, 1)})
    _, change = rewritten(proto, FoldAffine(), *feeds(1, x=(1, 4, 5, 5)))
    assert change.edits == 0


def test_input_that_broadcasts_a_single_channel_stays() -> None:
    """Grey to RGB: the Mul makes three channels of one."""
    text = "g (float[n, 1, 5, 5] x) => (float[n, 8, 5, 5] y) { m = Mul(x, k) y = Conv(m, w) }"
    proto = model(text, {"w": weight(8, 3, 1, 1), "k": weight(1, 3, 1, 1)})
    _, change = rewritten(proto, FoldAffine(), *feeds(1, x=(1, 1, 5, 5)))
    assert "not known to have as many channels" in reasons(change)[0]


@settings(max_examples=20)
@given(st.sampled_from(["Conv", "ConvTranspose"]), st.sampled_from([1, 2]), st.sampled_from([(), (1, 4, 1, 1)]))
def test_scale_before_a_padded_convolution(op: str, groups: int, shape: tuple[int, ...]) -> None:
    text = f"""g (float[n, 4, 6, 6] x) => (float[n, 8, 6, 6] y) {{
        m = Mul(x, k) y = {op}<pads = [1, 1, 1, 1], group = {groups}>(m, w)
    }}"""
    constants = {"w": weight(8, 4 // groups, 3, 3) if op == "Conv" else weight(4, 8 // groups, 3, 3)}
    after, change = rewritten(model(text, constants | {"k": const(*shape)}), FoldAffine(), *feeds(1, x=(2, 4, 6, 6)))
    assert change.edits == 1
    assert ops(after) == {op: 1}


@pytest.mark.parametrize("groups", [1, 2])
def test_shift_before_an_unpadded_convolution(groups: int) -> None:
    text = f"g (float[n, 4, 6, 6] x) => (float[n, 8, p, q] y) {{ m = Sub(x, k) y = Conv<group = {groups}>(m, w, c) }}"
    proto = model(text, {"w": weight(8, 4 // groups, 3, 3), "k": weight(4, 1, 1), "c": vector(8)})
    after, change = rewritten(proto, FoldAffine(), *feeds(1, x=(2, 4, 6, 6)))
    assert change.edits == 1
    assert ops(after) == {"Conv": 1}


@pytest.mark.parametrize("pads", ["pads = [0, 0, 1, 0]", 'auto_pad = "SAME_UPPER"'])
def test_shift_before_padding_stays(pads: str) -> None:
    text = f"g (float[n, 4, 6, 6] x) => (float[n, 8, p, q] y) {{ m = Add(x, k) y = Conv<{pads}>(m, w) }}"
    proto = model(text, {"w": weight(8, 4, 3, 3), "k": vector(1)})
    _, change = rewritten(proto, FoldAffine(), *feeds(1, x=(2, 4, 6, 6)))
    assert change.edits == 0
    assert "padding is not shifted" in reasons(change)[0]


@pytest.mark.parametrize(
    ("attrs", "k"), [("transA = 0", (4,)), ("transB = 1", (1, 4)), ("transA = 1", (4, 1)), ("alpha = 2.0", ())]
)
@pytest.mark.parametrize("step", ["Mul", "Add"])
def test_before_gemm(step: str, attrs: str, k: tuple[int, ...]) -> None:
    text = f"g (float[p, q] x) => (float[3, 8] y) {{ m = {step}(x, k) y = Gemm<{attrs}>(m, w, c) }}"
    shape = (4, 3) if "transA = 1" in attrs else (3, 4)
    text = text.replace("p, q", ", ".join(map(str, shape)))
    constants = {"w": weight(8, 4) if "transB" in attrs else weight(4, 8), "k": const(*k), "c": vector(8)}
    after, change = rewritten(model(text, constants), FoldAffine(), *feeds(1, x=shape))
    assert change.edits == 1
    assert ops(after) == {"Gemm": 1}


def test_scale_before_matmul() -> None:
    text = "g (float[2, 3, 4] x) => (float[2, 3, 8] y) { m = Mul(x, k) y = MatMul(m, w) }"
    after, change = rewritten(model(text, {"w": weight(4, 8), "k": weight(4)}), FoldAffine(), *feeds(1, x=(2, 3, 4)))
    assert change.edits == 1
    assert ops(after) == {"MatMul": 1}


def test_scale_passes_an_add_before_padding() -> None:
    """Act -> Mul -> Add -> depthwise Conv, as PP-LCNet has it: the Add stays, the Mul goes."""
    text = """g (float[n, 4, 6, 6] x) => (float[n, 4, 6, 6] y) {
        r = Relu(x) m = Mul(r, s) a = Add(m, b) y = Conv<pads = [1, 1, 1, 1], group = 4>(a, w)
    }"""
    proto = model(text, {"w": weight(4, 1, 3, 3), "s": vector(1, 0, 1, 2), "b": vector(1)})
    after, change = rewritten(proto, FoldAffine(), *feeds(1, x=(2, 4, 6, 6)))
    assert change.edits == 1
    assert ops(after) == {"Relu": 1, "Add": 1, "Conv": 1}


def test_chains_are_merged() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = Mul(x, k) c = Div(a, k2) d = Add(c, k) y = Sub(d, k2) }"
    proto = model(text, {"k": vector(4), "k2": vector(1, 1, 1, 2)})
    after, change = rewritten(proto, FoldAffine(), *feeds(1, x=(3, 4)))
    assert change.edits == 2
    assert ops(after) == {"Mul": 1, "Add": 1}


def test_a_chain_that_overflows_or_grows_stays() -> None:
    big = {"k": np.full(4, 1e30, np.float32), "k2": np.full(4, 1e30, np.float32)}
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = Mul(x, k) y = Mul(a, k2) }"
    _, change = rewritten(model(text, big), FoldAffine())
    assert (change.edits, "would not fit" in reasons(change)[0]) == (0, True)
    text = "g (float[n, 4, 4] x) => (float[n, 4, 4] y) { a = Mul(x, k) y = Mul(a, k2) }"
    _, change = rewritten(model(text, {"k": vector(4), "k2": weight(4, 1)}), FoldAffine())
    assert (change.edits, "larger than both" in reasons(change)[0]) == (0, True)


def test_integers_and_division_by_zero_stay() -> None:
    text = "g (int64[n] x) => (int64[n] y) { a = Div(x, k) y = Mul(a, k) }"
    assert rewritten(model(text, {"k": np.array([3])}), FoldAffine(), {"x": np.arange(5)})[1].edits == 0
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = MatMul(x, w) y = Div(a, k) }"
    assert rewritten(model(text, {"w": weight(4, 4), "k": np.zeros(1, np.float32)}), FoldAffine())[1].edits == 0


def test_shared_weight_takes_a_shift_but_no_scale() -> None:
    text = """g (float[n, 4, 5, 5] x) => (float[n, 4, 5, 5] y, float[n, 4, 5, 5] z) {
        a = Conv(x, w) y = Mul(a, k) b = Conv(x, w) z = Add(b, k)
    }"""
    proto = model(text, {"w": weight(4, 4, 1, 1), "k": vector(1)})
    after, change = rewritten(proto, FoldAffine(), *feeds(1, x=(1, 4, 5, 5)))
    assert change.edits == 1
    assert reasons(change) == ["not folded into 'a': its weight 'w' is shared with 'b'"]
    np.testing.assert_array_equal(weights.read(tensor(after, "w")), weight(4, 4, 1, 1))


def test_weight_shared_with_a_branch_stays() -> None:
    text = """g (float[2, 4] x, bool c) => (float[2, 4] y) {
        h = MatMul(x, w) s = Mul(h, k) y = If (c) <
            then_branch = t () => (float[2, 4] p) { p = MatMul(s, w) },
            else_branch = e () => (float[2, 4] q) { q = Relu(s) }
        >
    }"""
    proto = model(text, {"w": weight(4, 4), "k": vector(1)})
    (x,) = feeds(1, x=(2, 4))
    _, change = rewritten(proto, FoldAffine(), *({**x, "c": np.array(c)} for c in (True, False)))
    assert change.edits == 0
    assert "is shared with" in reasons(change)[0]


def test_output_of_the_graph_keeps_its_name_and_value() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] h, float[n, 4] y) { h = Gemm(x, w) y = Mul(h, k) }"
    after, change = rewritten(model(text, {"w": weight(4, 4), "k": vector(1)}), FoldAffine(), *feeds(1, x=(3, 4)))
    assert (change.edits, ops(after)) == (0, {"Gemm": 1, "Mul": 1})


def test_gelu_and_layer_norm_stay_whole() -> None:
    """ONNX Runtime fuses both, and only when they are whole."""
    case = HANDMADE["attention_block"]()
    before = ops(loaded(case.model))
    after, change = rewritten(case.model, FoldAffine(), *case.feeds[:1])
    assert (change.edits, ops(after)) == (0, before)
    text = """g (float[n, 8] x) => (float[n, 4] y) {
        m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes = [-1]>(q) e = Add(v, eps)
        r = Sqrt(e) n = Div(d, r) s = Mul(n, gamma) h = Add(s, beta) y = Gemm(h, w)
    }"""
    scalars = {"two": np.array(2, np.float32), "eps": np.array(1e-5, np.float32)}
    proto = model(text, {**scalars, "gamma": vector(8), "beta": vector(8, 1), "w": weight(8, 4)})
    assert rewritten(proto, FoldAffine(), *feeds(1, x=(3, 8)))[1].edits == 0


@pytest.mark.parametrize(
    "line",
    [
        "a = MatMul(x, w)  c = Add(a, b)  d = Sub(c, m)  e = Mul(d, s)  y = Add(e, t)",
        "a = MatMul(x, w)  d = Sub(a, m)  e = Mul(s, d)  y = Add(t, e)",
        "a = MatMul(x, w)  c = Sub(m, a)  e = Div(c, s)  y = Sub(t, e)",
        "a = MatMul(x, w)  c = Add(a, b)  y = BatchNormalization(c, s, t, m, v)",
    ],
)
@pytest.mark.parametrize("dims", ["n", "n, 3"])
def test_a_norm_behind_a_product_and_its_bias(line: str, dims: str) -> None:
    """Dense and BatchNormalization as Keras exports them."""
    if "Batch" in line and dims != "n":
        return  # its channels are on axis 1
    named = [name for name in "bmstv" if f"{name})" in line or f"{name}," in line]
    held = {"w": weight(16, 8), **{name: vector(8, i, 0.4, 1.4) for i, name in enumerate(named)}}
    proto = model(f"g (float[{dims}, 16] x) => (float[{dims}, 8] y) {{ {line} }}", held)
    after = load_model(proto)
    normalize(after)
    check(proto, after, *feeds(1, x=(2, *[3] * (dims.count(",")), 16)), rescales=True)
    assert ops(after) == {"MatMul": 1, "Add": 1}


def test_a_scale_that_a_second_reader_of_the_bias_does_not_see_stays() -> None:
    text = """g (float[n, 16] x) => (float[n, 8] c, float[n, 8] y) { a = MatMul(x, w)  c = Add(a, b)  y = Mul(c, s) }"""
    held = {"w": weight(16, 8), "b": vector(8), "s": vector(8, 1)}
    after, change = rewritten(model(text, held), FoldAffine(), *feeds(1, x=(2, 16)))
    assert change.edits == 0
    assert ops(after) == {"MatMul": 1, "Add": 1, "Mul": 1}
