"""Depthwise Conv in ONNX Runtime: slower in int8 than in float, so worth it only where it spares a Q and a DQ."""

import pytest
from handmade import Case
from handmade.core import weight
from planned_models import planned, quantized, reason, small, sqnr, treatment

from onnxshot.planning.plan import FLOAT, STATIC


def between(before: str, after: str, channels: int = 32, kernel: int = 3) -> Case:
    """x -> Conv a -> lines -> depthwise Conv d of b -> lines -> Conv y of c."""
    text = f"""g (float[n, {channels}, 12, 12] x) => (float[n, {channels}, h, w] y) {{
        a = Conv(x, w1)
        {before}
        d = Conv<group = {channels}, pads = [{kernel // 2}, {kernel // 2}, {kernel // 2}, {kernel // 2}]>(b, w2)
        {after}
        y = Conv(c, w3)
    }}"""
    constants = {
        "w1": weight(channels, channels, 1, 1), "w2": weight(channels, 1, kernel, kernel, seed=1),
        "w3": weight(channels, channels, 1, 1, seed=2),
    }  # fmt: skip
    return small(text, constants, x=(1, channels, 12, 12))


@pytest.mark.parametrize(
    ("before", "after", "how"),
    [
        ("b = Relu(a)", "c = Relu(d)", STATIC),
        ("b = Relu(a)", "c = HardSwish(d)", FLOAT),
        ("b = HardSwish(a)", "c = Relu(d)", FLOAT),
        ("b = HardSwish(a)", "c = HardSwish(d)", FLOAT),
    ],
)
def test_it_is_int8_only_between_int8_ops(before: str, after: str, how: str) -> None:
    case = between(before, after)
    ready, plan = planned(case)
    assert treatment(ready, plan)["d"] == how
    assert treatment(ready, plan)["a"] == treatment(ready, plan)["y"] == STATIC
    if how == FLOAT:
        assert reason(ready, plan, "d") == "depthwise, next to a float op: it is faster in float"
    assert sqnr(case, quantized(case)[1]) > 25


def test_a_row_of_them_falls_as_one() -> None:
    """The first stands behind a float op, so the second does too once the first is float."""
    text = """g (float[n, 32, 12, 12] x) => (float[n, 32, h, w] y) {
        a = Conv(x, w1) b = HardSwish(a) d = Conv<group = 32>(b, w2) e = Conv<group = 32>(d, w4) y = Conv(e, w3)
    }"""
    constants = {"w1": weight(32, 32, 1, 1), "w2": weight(32, 1, 3, 3), "w3": weight(32, 32, 1, 1)}
    ready, plan = planned(small(text, constants | {"w4": weight(32, 1, 3, 3, seed=3)}, x=(1, 32, 12, 12)))
    assert {name: treatment(ready, plan)[name] for name in "adey"} == {"a": STATIC, "d": FLOAT, "e": FLOAT, "y": STATIC}


@pytest.mark.parametrize(
    ("channels", "kernel", "how"),
    [(8, 7, FLOAT), (1, 7, FLOAT), (8, 3, STATIC), (24, 5, FLOAT), (32, 5, STATIC), (32, 7, FLOAT), (64, 7, STATIC)],
)
def test_few_channels_with_a_large_kernel_are_float_anywhere(channels: int, kernel: int, how: str) -> None:
    ready, plan = planned(between("b = Relu(a)", "c = Relu(d)", channels, kernel))
    assert treatment(ready, plan)["d"] == how


def test_whoever_asks_for_it_gets_it() -> None:
    case = between("b = HardSwish(a)", "c = HardSwish(d)", 8, 7)
    for options in ({"include": ("d",)}, {"layers": {"d": {"mode": "static"}}}):
        ready, plan = planned(case, **options)
        assert treatment(ready, plan)["d"] == STATIC


def test_other_runtimes_have_fast_kernels_and_so_has_a_conv_of_one_axis() -> None:
    ready, plan = planned(between("b = HardSwish(a)", "c = HardSwish(d)"), target="openvino")
    assert treatment(ready, plan)["d"] == STATIC
    text = "g (float[n, 32, 50] x) => (float[n, 32, t] y) { a = HardSwish(x) d = Conv<group = 32>(a, w) y = Tanh(d) }"
    ready, plan = planned(small(text, {"w": weight(32, 1, 9)}, x=(1, 32, 50)))
    assert treatment(ready, plan)["d"] == STATIC
