import numpy as np
import onnx
import pytest
from handmade import HANDMADE, Case
from handmade.core import weight
from planned_models import planned, run, small

from onnxshot.graph.copies import copy_of
from onnxshot.graph.lean_model import LeanModel
from onnxshot.planning.plan import DYNAMIC, STATIC, WEIGHTS
from onnxshot.recipes.recipe import Recipe
from onnxshot.rewriting.apply_plan import apply_plan
from onnxshot.rewriting.back_to_float import back_to_float

CONVS = """g (float[n, 8, 12, 12] x) => (float[n, 8, h, w] y) {
    a = Conv(x, w0)
    r = Relu(a)
    p = MaxPool<kernel_shape = [2, 2]>(r)
    b = Conv(p, w1)
    s = Add(b, b)
    y = Conv(s, w2)
}"""
PRODUCTS = """g (float[n, 64] x) => (float[n, 64] y) {
    a = MatMul(x, w0)
    t = Tanh(a)
    y = MatMul(t, w1)
}"""


def convs() -> Case:
    return small(CONVS, {f"w{i}": weight(8, 8, 3, 3, seed=i) for i in range(3)}, x=(2, 8, 12, 12))


def products() -> Case:
    return small(PRODUCTS, {f"w{i}": weight(64, 64, seed=i) for i in range(2)}, x=(3, 64))


def parts(case: Case, **options: object) -> tuple[LeanModel, LeanModel, dict[str, str], set[str]]:
    """The quantized and the float model, the first output of each planned node, and those of static nodes."""
    ready, plan = planned(case, calibrate=True, **options)
    made = copy_of(ready)
    apply_plan(made, plan, Recipe())
    outputs = {node.label: node.outputs[0].name for node in ready.graph.nodes}
    static = {outputs[label] for label in plan.labels(STATIC)}
    quantized = {label: outputs[label] for label in plan.labels(STATIC) | plan.labels(DYNAMIC)}
    return LeanModel.of(made), LeanModel.of(ready), quantized, static


@pytest.mark.parametrize("case", [convs(), products()], ids=["static", "dynamic"])
def test_all_nodes_back_in_float_compute_what_the_float_model_does(case: Case) -> None:
    int8, plain, nodes, static = parts(case)
    assert nodes
    made = back_to_float(int8, plain, set(nodes.values()), static)
    assert made is not None
    proto = made.to_proto()
    onnx.checker.check_model(proto)
    for feed in case.feeds:
        (wanted,), (got,), (rounded,) = (run(one, feed) for one in (case.model, proto, int8.to_proto()))
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
        assert np.abs(rounded - wanted).max() > 1e-3


def test_one_node_in_float_reads_its_inputs_unrounded_and_others_stay() -> None:
    case = convs()
    int8, plain, _, static = parts(case)
    made = back_to_float(int8, plain, {"b"}, static)
    assert made is not None
    floats = [node for node in made.proto.graph.node if node.name.endswith("#float")]
    assert [node.op_type for node in floats] == ["Conv"]
    quantized = [node for node in made.proto.graph.node if node.op_type == "Conv" and node not in floats]
    makers = {name: node for node in made.proto.graph.node for name in node.output}
    assert all(makers[node.input[1]].op_type == "DequantizeLinear" for node in quantized)
    assert floats[0].input[1] not in makers
    errors = []
    for feed in case.feeds:
        (wanted,), (one,), (all_int8,) = (run(m, feed) for m in (case.model, made.to_proto(), int8.to_proto()))
        errors.append((np.square(one - wanted).mean(), np.square(all_int8 - wanted).mean()))
    assert np.mean([e[0] for e in errors]) < np.mean([e[1] for e in errors])


def test_without_the_tensors_that_a_node_reads_there_is_no_model() -> None:
    int8, plain, _, static = parts(convs())

    def rename(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            node.input[:] = [f"{name}!" if name == "p" else name for name in node.input]
            node.output[:] = [f"{name}!" if name == "p" else name for name in node.output]

    assert back_to_float(int8, plain, {"b"}, static) is not None
    assert back_to_float(int8.edited(rename), plain, {"b"}, static) is None
    assert back_to_float(int8, plain, {"nothing of this name"}, static) is None


def test_a_node_whose_first_output_is_left_out_goes_back_to_float() -> None:
    case = HANDMADE["lstm"]()
    ready, plan = planned(case, mode="weights")
    made = copy_of(ready)
    apply_plan(made, plan, Recipe(mode="weights"))
    (lstm,) = [node for node in ready.graph.nodes if node.op == "LSTM"]
    names = [tensor.name for tensor in lstm.outputs if tensor.name]
    outputs = {node.label: next(t.name for t in node.outputs if t.name) for node in ready.graph.nodes}
    back = {outputs[label] for label in plan.labels(WEIGHTS)}
    assert names[0] in back
    found = back_to_float(LeanModel.of(made), LeanModel.of(ready), back, ())
    assert found is not None
    for feed in case.feeds:
        for wanted, got in zip(run(case.model, feed), run(found.to_proto(), feed), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    floats = [node for node in found.proto.graph.node if node.op_type == "LSTM" and node.name.endswith("#float")]
    assert [name for name in floats[0].output if name] == names
