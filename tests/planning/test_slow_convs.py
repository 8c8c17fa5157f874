"""Convs with few channels: slower in int8 than in float on ONNX Runtime, so left float where that is sure."""

import numpy as np
import onnx
import pytest
from handmade import Case
from handmade.core import weight
from planned_models import planned, quantized, reason, small, sqnr, treatment

from onnxshot.planning.plan import FLOAT, STATIC, WEIGHTS
from onnxshot.runtimes.ort_executed import executed


def net(first: int, wide: int = 16, depth: int = 9, ins: int = 3) -> Case:
    """Conv of `ins` channels to `first`, and `depth` of `wide` behind it, with Relus."""
    lines = ["c0 = Conv<pads = [1, 1, 1, 1]>(x, w0)", "r0 = Relu(c0)"]
    constants = {"w0": weight(first, ins, 3, 3)}
    for i in range(1, depth + 1):
        lines += [f"c{i} = Conv<pads = [1, 1, 1, 1]>(r{i - 1}, w{i})", f"r{i} = Relu(c{i})"]
        constants[f"w{i}"] = weight(wide, first if i == 1 else wide, 3, 3, seed=i)
    text = f"g (float[n, {ins}, 8, 8] x) => (float[n, {wide}, 8, 8] r{depth}) {{ {' '.join(lines)} }}"
    return small(text, constants, x=(1, ins, 8, 8))


@pytest.mark.parametrize(
    ("first", "ins", "depth", "how"),
    [
        (16, 3, 9, FLOAT), (32, 3, 9, FLOAT), (64, 3, 9, STATIC), (32, 1, 9, FLOAT), (16, 8, 9, STATIC),
        (16, 3, 4, STATIC),
    ],
)  # fmt: skip
def test_the_first_conv_of_a_net_is_float_where_it_is_thin_and_the_rest_is_not(
    first: int, ins: int, depth: int, how: str
) -> None:
    ready, plan = planned(net(first, ins=ins, depth=depth))
    found = treatment(ready, plan)
    assert found["c0"] == how
    assert {found[f"c{i}"] for i in range(1, depth + 1)} == {STATIC}
    if how == FLOAT:
        assert reason(ready, plan, "c0").startswith(f"only {ins} input and {first} output channels")
        assert "x" not in plan.tensors


def test_a_thin_conv_that_a_pool_reads_is_int8() -> None:
    """In a detector it is so: the pool, and the depthwise Convs behind it, would be float too, for no gain."""
    case = net(16)
    for node in case.model.graph.node:
        if node.op_type == "Conv" and node.output[0] == "c1":
            node.input[0] = "pooled"
    case.model.graph.node.insert(
        2, onnx.helper.make_node("MaxPool", ["r0"], ["pooled"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    )
    ready, plan = planned(case)
    assert set(treatment(ready, plan).values()) == {STATIC}


@pytest.mark.parametrize("left", [("c1",), ("c[2-9]",), ("c[1-9]",)])
def test_what_others_are_left_in_float_makes_no_thin_conv_int8(left: tuple[str, ...]) -> None:
    """A search that leaves all of them in float would come to an int8 Conv that it cannot leave out."""
    ready, plan = planned(net(16), exclude=left)
    assert treatment(ready, plan)["c0"] == FLOAT
    assert reason(ready, plan, "c0").startswith("only 3 input and 16 output channels")


def test_a_net_of_thin_convs_is_left_alone() -> None:
    ready, plan = planned(net(8, wide=8))
    assert set(treatment(ready, plan).values()) == {STATIC}


def test_a_thin_conv_between_int8_ops_is_int8() -> None:
    text = "g (float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y) { a = Conv(x, down) b = Conv(a, same) y = Conv(b, up) }"
    constants = {"down": weight(8, 16, 1, 1), "same": weight(8, 8, 1, 1), "up": weight(16, 8, 1, 1)}
    ready, plan = planned(small(text, constants, x=(1, 16, 8, 8)))
    assert set(treatment(ready, plan).values()) == {STATIC}


def test_what_runs_is_what_was_planned_and_costs_no_accuracy() -> None:
    case = net(16)
    result, proto = quantized(case)
    ran = executed(proto.SerializeToString())
    assert ran.ops["QLinearConv"] == 9
    assert not ran.unplanned(result.plan.labels(FLOAT))
    _, all_int8 = quantized(case, include=("Conv",))
    assert executed(all_int8.SerializeToString()).ops["QLinearConv"] == 10
    assert sqnr(case, proto) > sqnr(case, all_int8) - 0.5


@pytest.mark.parametrize(("groups", "how"), [(32, FLOAT), (16, FLOAT), (8, FLOAT), (4, STATIC), (2, STATIC)])
def test_few_channels_a_group_are_float(groups: int, how: str) -> None:
    text = f"""g (float[n, 64, 6, 6] x) => (float[n, 64, 6, 6] y) {{
        a = Conv(x, w1) r = Relu(a) g = Conv<group = {groups}, pads = [1, 1, 1, 1]>(r, w2) s = Relu(g) y = Conv(s, w3)
    }}"""
    constants = {"w1": weight(64, 64, 1, 1), "w2": weight(64, 64 // groups, 3, 3), "w3": weight(64, 64, 1, 1)}
    case = small(text, constants, x=(1, 64, 6, 6))
    ready, plan = planned(case)
    assert treatment(ready, plan)["g"] == how
    assert (how == STATIC) or f"{64 // groups} channels a group" in reason(ready, plan, "g")
    ready, plan = planned(case, include=("g",))
    assert treatment(ready, plan)["g"] == STATIC
    if how == FLOAT:
        result, proto = quantized(case)
        assert not executed(proto.SerializeToString()).unplanned(result.plan.labels(FLOAT))


@pytest.mark.parametrize(
    ("ins", "outs", "kernel", "groups", "how"),
    [
        (3, 16, 3, 1, FLOAT), (3, 64, 7, 1, FLOAT), (8, 8, 3, 1, FLOAT), (16, 16, 3, 1, STATIC), (32, 64, 3, 1, STATIC),
        (8, 8, 1, 1, STATIC), (16, 16, 3, 16, FLOAT), (32, 32, 3, 32, STATIC), (32, 32, 3, 4, FLOAT),
        (64, 64, 3, 2, STATIC),
    ],
)  # fmt: skip
def test_convs_in_three_dimensions(ins: int, outs: int, kernel: int, groups: int, how: str) -> None:
    p = [kernel // 2] * 6
    text = f"""g (float[n, {ins}, 4, 4, 4] x) => (float[n, 16, 4, 4, 4] y) {{
        c = Conv<group = {groups}, pads = {p}>(x, w) r = Relu(c) y = Conv(r, last)
    }}"""
    constants = {"w": weight(outs, ins // groups, *[kernel] * 3), "last": weight(16, outs, 1, 1, 1)}
    ready, plan = planned(small(text, constants, x=(1, ins, 4, 4, 4)))
    assert treatment(ready, plan)["c"] == how


def test_a_video_net_is_quantized_where_it_has_channels() -> None:
    text = """g (float[n, 3, 4, 8, 8] x) => (float[n, 64] y) {
        a = Conv<pads = [1, 1, 1, 1, 1, 1]>(x, w1) r = Relu(a)
        b = Conv<pads = [1, 1, 1, 1, 1, 1]>(r, w2) s = Relu(b)
        c = Conv<pads = [1, 1, 1, 1, 1, 1]>(s, w3) m = GlobalAveragePool(c) y = Flatten(m)
    }"""
    constants = {"w1": weight(16, 3, 3, 3, 3), "w2": weight(32, 16, 3, 3, 3), "w3": weight(64, 32, 3, 3, 3)}
    case = small(text, constants, x=(1, 3, 4, 8, 8))
    result, proto = quantized(case)
    ran = executed(proto.SerializeToString())
    assert ran.ops["QLinearConv"] == 2
    assert ran.ops["Conv"] + ran.ops.get("FusedConv", 0) == 1
    skip = next(s for s in result.report.skips if s.op == "Conv")
    assert "3D with 3 input and 16 output channels" in skip.reason


@pytest.mark.parametrize(("outs", "layers", "how"), [(96, 8, FLOAT), (96, 2, STATIC), (1024, 8, STATIC)])
def test_patches_of_a_picture_are_float_in_front_of_a_transformer(outs: int, layers: int, how: str) -> None:
    """Nothing takes them in int8: a norm follows."""
    lines = ["c = Conv<strides = [4, 4]>(x, k)", "r = Reshape(c, flat)", "n0 = Softmax(r)"]
    lines += [f"m{i} = MatMul(n{i}, w{i}) n{i + 1} = Softmax(m{i})" for i in range(layers)]
    text = f"g (float[1, 3, 16, 16] x) => (float[a, b, c] n{layers}) {{ {' '.join(lines)} }}"
    constants = {f"w{i}": weight(64, 64, seed=i) for i in range(layers)}
    constants |= {"k": weight(outs, 3, 4, 4), "flat": np.array([1, -1, 64])}
    ready, plan = planned(small(text, constants, x=(1, 3, 16, 16)))
    assert treatment(ready, plan)["c"] == how
    ready, plan = planned(small(text, constants, x=(1, 3, 16, 16)), exclude=("MatMul",))
    assert treatment(ready, plan)["c"] == how, "the net is no smaller because the rest is left in float"


def test_other_runtimes_are_not_told() -> None:
    ready, plan = planned(net(16), target="openvino")
    assert treatment(ready, plan)["c0"] == STATIC


def test_other_modes_are_what_they_were() -> None:
    ready, plan = planned(net(16), mode="weights")
    assert {treatment(ready, plan)[f"c{i}"] for i in range(10)} == {WEIGHTS}


BRANCHES = """g (float[n, 32, {size}, {size}] x) => (float[n, 16, h, w] y) {{
    a = Conv(x, stem) r = Relu(a)
    p = AveragePool<{pool}>(r) b = Conv(p, one) s = Relu(b)
    c = Conv(r, two) d = Conv<strides = [{stride}, {stride}]>(c, three) t = Relu(d)
    u = Concat<axis = 1>(s, t) y = Conv(u, last)
}}"""


def branches(pool: str, size: int | str = 12, stride: int = 1) -> Case:
    """Two branches of Convs, one of them behind an AveragePool, that a Concat joins."""
    constants = {
        "stem": weight(48, 32, 1, 1), "one": weight(24, 48, 1, 1, seed=1), "two": weight(32, 48, 1, 1, seed=2),
        "three": weight(24, 32, 1, 1, seed=3), "last": weight(16, 48, 1, 1, seed=4),
    }  # fmt: skip
    given = 12 if isinstance(size, str) else size
    return small(BRANCHES.format(pool=pool, size=size, stride=stride), constants, x=(1, 32, given, given))


@pytest.mark.parametrize("target", ["ort", "ort-avx2"])
@pytest.mark.parametrize(
    ("pool", "size", "stride"),
    [
        ("kernel_shape = [3, 3], pads = [1, 1, 1, 1]", 12, 1), ("kernel_shape = [2, 2], strides = [2, 2]", 12, 2),
        ("kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1", "h", 1),
    ],
)  # fmt: skip
def test_an_average_pool_with_windows_is_float_and_all_else_is_int8(
    pool: str, size: int | str, stride: int, target: str
) -> None:
    case = branches(pool, size, stride)
    ready, plan = planned(case, target=target)
    found = treatment(ready, plan)
    assert found.pop("p") == FLOAT
    assert set(found.values()) == {STATIC}
    assert reason(ready, plan, "p").startswith("int8 AveragePool runs at ")
    result, proto = quantized(case, target=target)
    ran = executed(proto.SerializeToString())
    assert (ran.ops["QLinearConv"], ran.ops["QLinearConcat"], ran.ops["AveragePool"]) == (5, 1, 1)
    assert "QLinearAveragePool" not in ran.ops
    assert not ran.unplanned(result.plan.labels(FLOAT))
    _, all_int8 = quantized(case, target=target, include=("AveragePool",))
    assert executed(all_int8.SerializeToString()).ops["QLinearAveragePool"] == 1
    assert sqnr(case, proto) > sqnr(case, all_int8) - 0.5


def test_an_average_pool_over_the_whole_picture_is_int8() -> None:
    text = """g (float[n, 16, 7, 7] x) => (float[n, 8, 1, 1] y) {
        a = Conv(x, v) p = AveragePool<kernel_shape = [7, 7]>(a) y = Conv(p, w)
    }"""
    case = small(text, {"v": weight(32, 16, 1, 1), "w": weight(8, 32, 1, 1)}, x=(1, 16, 7, 7))
    _, proto = quantized(case)
    assert executed(proto.SerializeToString()).ops["QLinearAveragePool"] == 1


def test_an_average_pool_is_int8_on_another_runtime() -> None:
    ready, plan = planned(branches("kernel_shape = [3, 3], pads = [1, 1, 1, 1]"), target="openvino")
    assert treatment(ready, plan)["p"] == STATIC
