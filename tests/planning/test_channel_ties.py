"""Which channels are one and the same, and which nothing may scale."""

from typing import Any

import numpy as np
import pytest
from handmade.core import model, vector, weight
from numpy.typing import NDArray
from onnx import ModelProto
from pass_checks import loaded

from onnxshot.planning.channel_ties import Channels, channels_of

Consts = dict[str, NDArray[Any]]


def ints(*values: int) -> NDArray[np.int64]:
    return np.asarray(values, np.int64)


def graph(body: str, constants: Consts, out: str = "float[1, 4, 6, 6] y") -> ModelProto:
    """A network that begins with Conv(x, w) of 3 to 4 channels, c, and ends as `body` says."""
    text = f"g (float[1, 3, 6, 6] x) => ({out}) {{ c = Conv<pads = [1, 1, 1, 1]>(x, w) {body} }}"
    return model(text, {"w": weight(4, 3, 3, 3), **constants})


def found(body: str, constants: Consts, out: str = "float[1, 4, 6, 6] y") -> Channels:
    return channels_of(loaded(graph(body, constants, out)))


def numbers(channels: Channels, name: str) -> list[int]:
    return [int(i) for i in channels.of[name]]


def free(channels: Channels, name: str) -> list[bool]:
    """Channel by channel, whether it may be scaled."""
    return [i not in channels.fixed for i in numbers(channels, name)]


def makers(channels: Channels) -> dict[str, list[int]]:
    return {node.outputs[0].name: ids.tolist() for node, ids in channels.made_by}


def readers(channels: Channels) -> dict[str, list[int]]:
    return {node.outputs[0].name: ids.tolist() for node, ids in channels.read_by}


LAST = {"v": weight(2, 4, 1, 1, seed=1)}
TWO = "float[1, 2, 6, 6] y"


@pytest.mark.parametrize(
    "between",
    [
        "Relu(c)",
        "LeakyRelu<alpha = 0.1>(c)",
        "MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c)",
        "AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c)",
        "GlobalAveragePool(c)",
        "PRelu(c, slope)",
        "Pad(c, around)",
        'Pad<mode = "reflect">(c, around)',
        'Resize<mode = "linear">(c, , twice)',
        "ReduceMax<axes = [-1, 2]>(c)",
        "ReduceMean<axes = [3]>(c)",
        "Mul(c, gate)",
        "Div(c, gate)",
    ],
)
def test_a_channel_keeps_its_number_on_its_way_to_the_next_conv(between: str) -> None:
    constants = {
        "slope": vector(4)[:, None, None], "around": ints(0, 0, 1, 1, 0, 0, 1, 1),
        "gate": vector(4)[None, :, None, None], "twice": np.asarray([1, 1, 2, 2], np.float32), **LAST,
    }  # fmt: skip
    used = {name: values for name, values in constants.items() if name in f"{between} v"}
    channels = found(f"r = {between} y = Conv(r, v)", used, "float[1, 2, h, h2] y")
    assert len(set(numbers(channels, "c"))) == 4
    assert numbers(channels, "r") == numbers(channels, "c") == makers(channels)["c"] == readers(channels)["y"]
    assert free(channels, "c") == [True] * 4
    assert free(channels, "y") == [False] * 2, "what the graph gives out is a promise"
    assert not set(numbers(channels, "y")) & set(numbers(channels, "c"))
    assert "c" not in readers(channels), "the channels of the graph's input are not numbered"
    assert "x" not in channels.of


@pytest.mark.parametrize(
    "between",
    [
        "Mul(c, c)",
        "Div(gate, c)",
        "Pad(c, around, one)",
        "ReduceMax<axes = [1]>(c)",
        "Resize(c, , channels)",
        "PRelu(c, t)",
    ],
)
def test_what_mixes_channels_or_is_not_linear_in_them_fixes_them(between: str) -> None:
    constants = {
        "around": ints(0, 0, 1, 1, 0, 0, 1, 1), "gate": vector(4)[None, :, None, None], "one": np.float32(1),
        "channels": np.asarray([1, 2, 1, 1], np.float32),
    }  # fmt: skip
    used = {name: values for name, values in constants.items() if name in between}
    channels = found(f"t = Sigmoid(x) r = {between} y = Relu(r)", used, "float[1, a, b, d] y")
    assert free(channels, "c") == [False] * 4


def test_zeros_that_are_appended_are_channels_of_their_own() -> None:
    constants = {"pads": ints(0, 1, 0, 0, 0, 2, 0, 0), "v7": weight(2, 7, 1, 1)}
    channels = found("r = Pad(c, pads) y = Conv(r, v7)", constants, TWO)
    assert numbers(channels, "r")[1:5] == numbers(channels, "c")
    assert len(set(numbers(channels, "r"))) == 7
    assert free(channels, "c") == [True] * 4


def test_a_gate_is_not_scaled_and_what_it_multiplies_is() -> None:
    constants = {"u": weight(4, 4, 1, 1), **LAST}
    body = "r = Relu(c) p = GlobalAveragePool(r) g = Conv(p, u) k = Sigmoid(g) m = Mul(k, r) y = Conv(m, v)"
    channels = found(body, constants, TWO)
    assert numbers(channels, "m") == numbers(channels, "c") == readers(channels)["g"]
    assert free(channels, "m") == [True] * 4
    assert free(channels, "g") == [False] * 4


def test_a_residual_add_makes_both_branches_one() -> None:
    constants = {"u": weight(4, 4, 3, 3), **LAST}
    channels = found("r = Relu(c) d = Conv<pads = [1, 1, 1, 1]>(r, u) s = Add(d, r) y = Conv(s, v)", constants, TWO)
    assert numbers(channels, "d") == numbers(channels, "r") == numbers(channels, "s") == readers(channels)["y"]
    assert readers(channels)["d"] == makers(channels)["d"]
    assert free(channels, "s") == [True] * 4


def test_a_chain_of_adds_makes_all_of_them_one() -> None:
    constants = {f"u{i}": weight(4, 4, 1, 1, seed=i) for i in range(3)} | LAST
    body = "a = Conv(c, u0) b = Conv(c, u1) d = Conv(c, u2) p = Add(a, b) q = Add(d, p) y = Conv(q, v)"
    channels = found(body, constants, TWO)
    assert numbers(channels, "a") == numbers(channels, "b") == numbers(channels, "d") == numbers(channels, "q")
    assert not set(numbers(channels, "a")) & set(numbers(channels, "c"))


@pytest.mark.parametrize("other", ["x3", "k"])
def test_an_add_of_something_unknown_fixes(other: str) -> None:
    constants = {"k": vector(4).reshape(1, 4, 1, 1), "one": np.ones((1, 4, 6, 6), np.float32), **LAST}
    channels = found(f"x3 = Sigmoid(one) s = Add(c, {other}) y = Conv(s, v)", constants, TWO)
    assert free(channels, "c") == [False] * 4
    assert "s" not in channels.of


def test_a_channel_shuffle_is_followed() -> None:
    constants = {"u": weight(2, 2, 1, 1), "halves": ints(2, 2), "mixed": ints(0, 2, 1, 3), **LAST}
    body = """a, b = Split<axis = 1>(c, halves) d = Conv(b, u) e = Relu(d) j = Concat<axis = 1>(a, e)
              g1 = Gather<axis = 1>(j, mixed) y = Conv(g1, v)"""
    channels = found(body, constants, TWO)
    c, d = numbers(channels, "c"), numbers(channels, "d")
    assert numbers(channels, "a") == c[:2]
    assert numbers(channels, "b") == readers(channels)["d"] == c[2:]
    assert numbers(channels, "j") == [*c[:2], *d]
    assert numbers(channels, "g1") == readers(channels)["y"] == [c[0], d[0], c[1], d[1]]
    assert free(channels, "c") == [True] * 4


def test_a_split_into_unequal_parts_is_followed() -> None:
    constants = {"parts": ints(1, 3), "u": weight(2, 1, 1, 1), "t": weight(2, 3, 1, 1)}
    channels = found("a, b = Split<axis = 1>(c, parts) d = Conv(a, u) e = Conv(b, t) y = Add(d, e)", constants, TWO)
    assert numbers(channels, "a") == numbers(channels, "c")[:1]
    assert numbers(channels, "b") == numbers(channels, "c")[1:]


@pytest.mark.parametrize("axis", [0, 2, 3])
def test_a_concat_or_split_of_another_axis_fixes(axis: int) -> None:
    joined = found(f"j = Concat<axis = {axis}>(c, c) y = Conv(j, v)", LAST, "float[n, 2, h, w2] y")
    assert free(joined, "c") == [False] * 4
    if axis:
        split = found(
            f"a, b = Split<axis = {axis}>(c, halves) s = Add(a, b) y = Conv(s, v)", {"halves": ints(3, 3), **LAST},
            "float[1, 2, h, w2] y",
        )  # fmt: skip
        assert free(split, "c") == [False] * 4


def test_a_slice_of_channels_is_followed_and_one_of_positions_keeps_them() -> None:
    constants = {"lo": ints(1, 2), "hi": ints(3, 2**31 - 1), "axes": ints(1, 3), "u": weight(2, 2, 1, 1)}
    channels = found("s = Slice(c, lo, hi, axes) y = Conv(s, u)", constants, "float[1, 2, 6, 4] y")
    assert numbers(channels, "s") == readers(channels)["y"] == numbers(channels, "c")[1:3]
    assert free(channels, "c") == [True] * 4


def test_a_slice_with_steps_or_axes_from_the_end_fixes() -> None:
    for axes, steps in ((ints(1), ints(2)), (ints(-3), ints(1))):
        constants = {"lo": ints(0), "hi": ints(4), "axes": axes, "steps": steps, "u": weight(2, 2, 1, 1), **LAST}
        read = "u" if steps[0] == 2 else "v"
        channels = found(f"s = Slice(c, lo, hi, axes, steps) y = Conv(s, {read})", constants, TWO)
        assert free(channels, "c") == [False] * 4


def test_a_depthwise_and_a_grouped_conv_read_their_channels_and_make_new_ones() -> None:
    constants = {"d": weight(4, 1, 3, 3), "g": weight(6, 2, 1, 1), "t": weight(2, 6, 1, 1)}
    body = "k = Conv<group = 4, pads = [1, 1, 1, 1]>(c, d) r = Relu(k) h = Conv<group = 2>(r, g) y = Conv(h, t)"
    channels = found(body, constants, TWO)
    assert readers(channels)["k"] == numbers(channels, "c")
    assert readers(channels)["h"] == numbers(channels, "k")
    assert len(numbers(channels, "h")) == 6
    every = [*numbers(channels, "c"), *numbers(channels, "k"), *numbers(channels, "h"), *numbers(channels, "y")]
    assert len(set(every)) == len(every) == channels.count
    assert free(channels, "k") == [True] * 4


def test_a_clip_at_zero_and_above_limits_and_one_below_zero_fixes() -> None:
    zero, six, less = np.array(0, np.float32), np.array(6, np.float32), np.array(-1, np.float32)
    limited = found("r = Clip(c, lo, hi) y = Conv(r, v)", {"lo": zero, "hi": six, **LAST}, TWO)
    ((name, ids, limit),) = limited.limits
    assert (name, ids.tolist(), limit) == ("r", numbers(limited, "c"), 6.0)
    assert free(limited, "c") == [True] * 4
    relu = found("r = Clip(c, lo) y = Conv(r, v)", {"lo": zero, **LAST}, TWO)
    assert relu.limits == []
    assert free(relu, "c") == [True] * 4
    both = found("r = Clip(c, lo, hi) y = Conv(r, v)", {"lo": less, "hi": six, **LAST}, TWO)
    assert free(both, "c") == [False] * 4
    computed = found("m = ReduceMax<keepdims = 0>(x) r = Clip(c, lo, m) y = Conv(r, v)", {"lo": zero, **LAST}, TWO)
    assert free(computed, "c") == [False] * 4


@pytest.mark.parametrize("flat", ["Flatten(p)", "Reshape(p, shape)", "Squeeze(p, axes)"])
def test_a_gemm_behind_pooling_reads_channels(flat: str) -> None:
    constants = {"f": weight(5, 4), "shape": ints(1, -1), "axes": ints(2, 3)}
    body = f"p = GlobalAveragePool(c) q = {flat} y = Gemm<transB = 1>(q, f)"
    channels = found(body, constants, "float[1, 5] y")
    assert numbers(channels, "q") == readers(channels)["y"] == numbers(channels, "c")
    assert free(channels, "c") == [True] * 4
    assert "y" not in makers(channels)


def test_positions_on_axis_1_are_no_channels() -> None:
    """Four channels of 2 x 2: [4, 4] has a channel a row, and as many columns as there are channels."""
    shrunk = {"t": weight(4, 4, 5, 5), "f": weight(4, 4)}
    text = "s = Conv(c, t) q = {} y = Gemm(q, f)"
    for flat in ("Reshape(s, shape)", "Flatten<axis = 2>(s)"):
        channels = found(text.format(flat), {**shrunk, "shape": ints(4, 4)}, "float[4, 4] y")
        assert "q" not in channels.of
        assert free(channels, "s") == [False] * 4


def test_a_flatten_of_positions_or_a_transposed_gemm_fixes() -> None:
    spatial = found("q = Flatten(c) y = Gemm(q, f)", {"f": weight(144, 5)}, "float[1, 5] y")
    assert free(spatial, "c") == [False] * 4
    body = "p = GlobalAveragePool(c) q = Flatten(p) y = Gemm<transA = 1>(q, f)"
    assert free(found(body, {"f": weight(1, 5)}, "float[4, 5] y"), "c") == [False] * 4


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "HardSwish", "Exp", "Softmax", "Abs"])
def test_what_is_not_linear_in_a_channel_fixes_it(op: str) -> None:
    channels = found(f"r = Relu(c) s = {op}(r) y = Conv(s, v)", LAST, TWO)
    assert free(channels, "c") == [False] * 4
    assert "s" not in channels.of


def test_a_tensor_that_is_given_out_and_read_is_fixed() -> None:
    channels = found("r = Relu(c) y = Conv(r, v)", LAST, f"{TWO}, float[1, 4, 6, 6] r")
    assert free(channels, "c") == [False] * 4


def test_only_what_is_read_otherwise_is_fixed() -> None:
    constants = {"halves": ints(2, 2), "u": weight(2, 2, 1, 1)}
    channels = found("a, b = Split<axis = 1>(c, halves) s = Sigmoid(a) m = Conv(b, u) y = Add(s, m)", constants, TWO)
    assert free(channels, "c") == [False, False, True, True]


def test_a_shared_weight_fixes_what_it_reads_and_makes_and_a_shared_bias_does_not() -> None:
    constants = {"u": weight(4, 4, 1, 1), "b": vector(4), "u2": weight(4, 4, 1, 1, seed=3), "b2": vector(4, 1), **LAST}
    body = "d = Conv(c, u, b) r = Relu(d) e = Conv(r, {}) y = Conv(e, v)"
    channels = found(body.format("u2, b"), constants, TWO)
    assert free(channels, "c") == free(channels, "d") == free(channels, "e") == [True] * 4
    channels = found(body.format("u, b2"), constants, TWO)
    assert free(channels, "c") == [False] * 4
    assert "d" not in channels.of
    assert "e" not in channels.of
    assert set(makers(channels)) == {"c", "y"}


def test_a_computed_weight_fixes() -> None:
    computed = found("m = Relu(k) y = Conv(c, m)", {"k": weight(2, 4, 1, 1)}, TWO)
    assert free(computed, "c") == [False] * 4


def test_what_a_branch_reads_is_fixed() -> None:
    body = """r = Relu(c) m = ReduceMean<keepdims = 0>(x) go = Greater(m, zero)
        p = If (go) <
            then_branch = yes () => (float[1, 4, 6, 6] a) { a = Sigmoid(r) },
            else_branch = no () => (float[1, 4, 6, 6] b) { b = Neg(other) }
        >
        y = Conv(r, v) z = Conv(p, v2)"""
    constants = {"zero": np.array(0, np.float32), "v2": weight(2, 4, 1, 1, seed=4), **LAST}
    text = f"other = Conv<pads = [1, 1, 1, 1]>(x, w2) {body}"
    channels = found(text, {**constants, "w2": weight(4, 3, 3, 3, seed=5)}, f"{TWO}, float[1, 2, 6, 6] z")
    assert free(channels, "c") == [False] * 4
    assert free(channels, "other") == [False] * 4


def test_its_shape_tells_nothing_of_a_channel() -> None:
    body = "r = Relu(c) s = Shape(r) n = Size(r) y = Conv(r, v)"
    channels = found(body, LAST, f"{TWO}, int64[4] s, int64 n")
    assert free(channels, "r") == [True] * 4
    assert numbers(channels, "r") == readers(channels)["y"]
