"""Which quantized nodes go back to float, by given times of kernels: the choice is that of trying every combination."""

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxshot.graph import Model
from onnxshot.planning.faster_in_float import faster_in_float
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.plan import Plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.runtimes.ort_border_times import Border
from onnxshot.runtimes.ort_kernels import Kernel
from onnxshot.targets import target_named

BORDER = Border(fixed=1.0, each=0.0, each_of_pictures=0.0, profiled=0.0)
SHAPE = (1, 16, 8, 8)
NAMES = ("a", "b", "c", "d")


def chain() -> Model:
    """Four Convs in a row."""
    weights = [numpy_helper.from_array(np.ones((16, 16, 1, 1), np.float32) / (i + 16), f"w{i}") for i in range(4)]
    tensors = ["x", "ta", "tb", "tc", "td"]
    nodes = [
        helper.make_node("Conv", [tensors[i], f"w{i}"], [tensors[i + 1]], name=name) for i, name in enumerate(NAMES)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "td")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    return Model(proto)


def planned(model: Model) -> Plan:
    return make_plan(model, target_named("ort"), Recipe())


def kernels(times: dict[str, float], op: str) -> list[Kernel]:
    tensors = ("x", "ta", "tb", "tc", "td")
    return [
        Kernel(name, op, (tensors[i], f"w{i}"), (tensors[i + 1],), SHAPE, times[name]) for i, name in enumerate(NAMES)
    ]


def quantized(times: dict[str, float]) -> list[Kernel]:
    """Those of int8, with the Q in front and the DQ behind."""
    found = kernels(times, "QLinearConv")
    ends = [Kernel("q", "QuantizeLinear", ("x",), ("x_q",), SHAPE, 1.0)]
    ends += [Kernel("dq", "DequantizeLinear", ("td",), ("y",), SHAPE, 1.0)]
    return [ends[0], *found, ends[1]]


def cheapest(in_float: dict[str, float], in_int8: dict[str, float]) -> float:
    """The least microseconds over all choices: a border of 1 wherever int8 meets float, the ends included."""
    best = np.inf
    for choice in itertools.product((False, True), repeat=len(NAMES)):
        taken = sum((in_int8 if int8 else in_float)[name] for name, int8 in zip(NAMES, choice, strict=True))
        sides = (False, *choice, False)
        best = min(best, taken + sum(one != other for one, other in itertools.pairwise(sides)))
    return float(best)


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_cheapest_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    in_float, in_int8 = ({name: float(rng.integers(1, 8)) for name in NAMES} for _ in range(2))
    model = chain()
    found = faster_in_float(
        model, planned(model), kernels(in_float, "Conv"), quantized(in_int8), BORDER, forced=frozenset()
    )
    assert found.placed == pytest.approx(cheapest(in_float, in_int8))
    assert found.planned == pytest.approx(sum(in_int8.values()) + 2)
    assert found.all_float == pytest.approx(sum(in_float.values()))
    assert sum(found.saved.values()) == pytest.approx(sum(in_float.values()) - sum(in_int8.values()) - 1)  # the last DQ
    assert found.saved["b"] == pytest.approx(in_float["b"] - in_int8["b"])


def test_equal_times_are_float_and_forced_nodes_stay() -> None:
    model, same = chain(), dict.fromkeys(NAMES, 5.0)
    every = faster_in_float(model, planned(model), kernels(same, "Conv"), quantized(same), BORDER, frozenset())
    assert every.floats == NAMES
    some = faster_in_float(model, planned(model), kernels(same, "Conv"), quantized(same), BORDER, frozenset({"b"}))
    assert set(some.floats) == {"a", "c", "d"}


def test_what_float_merges_stays_together() -> None:
    """One float kernel computes b and c: neither can be in float without the other."""
    model = chain()
    in_float = [
        Kernel("a", "Conv", ("x", "w0"), ("ta",), SHAPE, 10.0),
        Kernel("c", "Conv", ("ta", "w1", "w2"), ("tc",), SHAPE, 4.0),
        Kernel("d", "Conv", ("tc", "w3"), ("td",), SHAPE, 10.0),
    ]
    in_int8 = quantized({"a": 1.0, "b": 9.0, "c": 1.0, "d": 1.0})
    found = faster_in_float(model, planned(model), in_float, in_int8, BORDER, frozenset())
    assert found.floats == ("b", "c")  # 4 and two borders instead of 10
