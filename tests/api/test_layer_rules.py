"""What a recipe asks of some layers, by glob, in place of what it asks of all."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from fixture_data import fixture, heldout
from fixture_runs import command
from handmade import Case
from handmade.core import weight
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from planned_models import initializers, maker, nodes_of, planned, quantized, reason, run, small, sqnr, treatment

from onnxshot import Settings, quantize, replay
from onnxshot.errors import TargetError, UsageError
from onnxshot.maths.affine import PerBlock, PerChannel, PerTensor
from onnxshot.planning.plan import DYNAMIC, FLOAT, STATIC, WEIGHTS
from onnxshot.recipes.recipe import Recipe
from onnxshot.runtimes.ort_executed import executed


def convs() -> Case:
    """Three Convs in a row, a, b and y; b has a Relu behind it."""
    text = """g (float[n, 8, 10, 10] x) => (float[n, 8, 4, 4] y) {
        a = Conv(x, w1) b = Conv(a, w2) r = Relu(b) y = Conv(r, w3)
    }"""
    return small(text, {f"w{i}": weight(8, 8, 3, 3, seed=i) for i in (1, 2, 3)}, x=(2, 8, 10, 10))


def products() -> Case:
    """Two Gemms in a row and a MatMul behind them."""
    text = """g (float[n, 128] x) => (float[n, 96] y) { a = Gemm(x, w1) b = Gemm(a, w2) y = MatMul(b, w3) }"""
    constants = {"w1": weight(128, 128), "w2": weight(128, 64, seed=1), "w3": weight(64, 96, seed=2)}
    return small(text, constants, x=(8, 128))


def node(proto: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(n for n in proto.graph.node if output in n.output)


def scale_of_weight(proto: onnx.ModelProto, output: str) -> np.ndarray:
    """The scales that the weight of the node that makes this tensor is dequantized with."""
    made = maker(proto, node(proto, output).input[1])
    assert made is not None
    return initializers(proto)[made.input[1]]


def test_float_leaves_the_layers_alone_and_the_others_not() -> None:
    ready, plan = planned(convs(), layers={"b": {"mode": "float"}})
    assert treatment(ready, plan) == {"a": STATIC, "b": FLOAT, "r": FLOAT, "y": STATIC}
    assert reason(ready, plan, "b") == "left in float by `layers` of the result's recipe"


def test_a_scale_per_tensor_for_some_weights_only() -> None:
    _, proto = quantized(convs(), target="openvino", layers={"b": {"per_channel": False}})
    assert [scale_of_weight(proto, name).shape for name in ("a", "b", "y")] == [(8,), (), (8,)]


def test_scales_of_least_squared_error_for_some_weights_only() -> None:
    text = "g (float[n, 8192] x) => (float[n, 4] y, float[n, 4] z) { y = MatMul(x, w1) z = MatMul(x, w2) }"
    values = np.random.default_rng(0).normal(size=(8192, 8)).astype(np.float32)  # so many that clipping a few pays
    case = small(text, {"w1": values[:, :4], "w2": values[:, 4:]}, x=(1, 8192))
    asked: dict[str, dict[str, Any]] = {"plain": {}, "all": {"weight_method": "mse"}}
    found = {}
    for name, options in (asked | {"z": {"layers": {"z": {"weight_method": "mse"}}}}).items():
        _, proto = quantized(case, target="openvino", **options)
        found[name] = {output: scale_of_weight(proto, output) for output in "yz"}
    assert (found["all"]["z"] < found["plain"]["z"]).any()
    np.testing.assert_array_equal(found["z"]["y"], found["plain"]["y"])
    np.testing.assert_array_equal(found["z"]["z"], found["all"]["z"])


def test_the_range_of_what_some_layers_give_is_chosen_by_another_method() -> None:
    case = convs()
    options: dict[str, Any] = {"layers": {"b": {"method": "percentile"}}, "method": "minmax"}
    _, plan = planned(case, calibrate=True, **options)
    assert {name: tensor.method for name, tensor in plan.tensors.items()} == {
        "x": None, "a": None, "r": "percentile", "y": None,
    }  # fmt: skip
    methods = {name: plan.ranges[tensor.group].method for name, tensor in plan.tensors.items()}
    assert methods["r"] == "percentile"
    assert {methods[name] for name in "xay"} == {"minmax"}
    _, plain = planned(case, calibrate=True, method="minmax")
    _, whole = planned(case, calibrate=True, method="percentile")
    for name, like in {"x": plain, "a": plain, "r": whole, "y": plain}.items():
        assert plan.params_of(name).scale == like.params_of(name).scale


def test_weights_alone_of_one_conv_in_a_static_model() -> None:
    case = convs()
    result, proto = quantized(case, layers={"b": {"mode": "weights"}})
    assert {n.node: n.how for n in result.plan.nodes if n.op == "Conv"}["Conv_b"] == WEIGHTS
    made = maker(proto, node(proto, "b").input[1])
    assert made is not None
    assert made.op_type == "Mul"
    cast = maker(proto, made.input[0])
    assert cast is not None
    stored = {t.name: t.data_type for t in proto.graph.initializer}
    assert stored[cast.input[0]] == TensorProto.INT8
    ran = executed(proto.SerializeToString()).ops
    assert ran["QLinearConv"] + 1 == len(nodes_of(proto, "Conv")), "ONNX Runtime computes it in float"
    assert sqnr(case, proto) > 30


def test_dynamic_for_a_product_that_would_be_static() -> None:
    case = products()
    ready, plan = planned(case)
    assert treatment(ready, plan)["a"] == STATIC
    ready, plan = planned(case, layers={"a": {"mode": "dynamic"}})
    assert treatment(ready, plan)["a"] == DYNAMIC
    assert plan.notes == ()
    _, proto = quantized(case, layers={"Gemm": {"mode": "dynamic"}})
    assert len(nodes_of(proto, "MatMulInteger")) >= 2
    assert sqnr(case, proto) > 30


def test_static_for_a_product_that_would_be_dynamic() -> None:
    text = "g (float[n, 128] x) => (float[n, 96] y) { a = MatMul(x, w1) r = Tanh(a) y = MatMul(r, w2) }"
    case = small(text, {"w1": weight(128, 128), "w2": weight(128, 96, seed=1)}, x=(8, 128))
    ready, plan = planned(case)
    assert treatment(ready, plan)["a"] == DYNAMIC
    ready, plan = planned(case, layers={"a": {"mode": "static"}})
    assert {name: treatment(ready, plan)[name] for name in "ay"} == {"a": STATIC, "y": DYNAMIC}


def test_a_mode_that_a_layer_cannot_have_is_told() -> None:
    ready, plan = planned(convs(), layers={"Conv": {"mode": "dynamic"}})
    assert treatment(ready, plan)["a"] == FLOAT
    (note,) = plan.notes
    start = "3 of 3 layers do not have the mode that the recipe asks for: dynamic for 'Conv_a', which is float: "
    assert note.startswith(start)
    assert "slower than float" in note


def test_int4_blocks_for_one_product_in_an_int8_model() -> None:
    case = products()
    rules = {"b": {"mode": "weights", "weight_type": "int4", "block": 32}}
    _, plan = planned(case, target="tensorrt", layers=rules)
    assert plan.weights["Gemm_b"].scheme.granularity == PerBlock(0, 32)
    assert {plan.weights[name].scheme.dtype.name for name in ("Gemm_a", "MatMul_y")} == {"int8"}
    assert plan.notes == ()
    _, proto = quantized(case, target="tensorrt", layers=rules)
    types = [t.data_type for t in proto.graph.initializer]
    assert types.count(TensorProto.INT4) == 1
    wanted = ReferenceEvaluator(proto).run(None, case.feeds[0])[0]
    np.testing.assert_allclose(run(proto, case.feeds[0])[0], wanted, atol=np.abs(wanted).max() / 40)


def test_a_later_glob_counts_key_by_key() -> None:
    rules = {"Conv": {"per_channel": False, "weight_method": "mse"}, "b": {"per_channel": True}, "y": {"mode": "float"}}
    _, plan = planned(convs(), layers=rules)
    found = {n: (w.scheme.granularity, w.method) for n, w in plan.weights.items()}
    assert found == {"Conv_a": (PerTensor(), "mse"), "Conv_b": (PerChannel(0), "mse")}
    _, plan = planned(convs(), layers=dict(reversed(rules.items())))
    assert plan.weights["Conv_b"].scheme.granularity == PerTensor()


def test_exclude_goes_before_layers() -> None:
    ready, plan = planned(convs(), exclude=("b",), layers={"b": {"mode": "static"}})
    assert reason(ready, plan, "b") == "excluded by 'b'"
    assert plan.notes == ()


def test_products_with_different_rules_are_not_merged() -> None:
    text = "g (float[n, 64] x) => (float[n, 128] y) { q = MatMul(x, w1) k = MatMul(x, w2) y = Concat<axis = 1>(q, k) }"
    case = small(text, {"w1": weight(64, 64), "w2": weight(64, 64, seed=1)}, x=(8, 64))
    assert len(nodes_of(quantized(case)[1], "MatMulInteger")) == 1
    _, apart = quantized(case, layers={"k": {"weight_method": "mse"}})
    assert len(nodes_of(apart, "MatMulInteger")) == 2


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"b": {"mode": "half"}}, "layers.b.mode is 'half'"),
        ({"b": {"mod": "float"}}, "layers.b.mod is no key"),
        ({"b": {"weight_type": "int3"}}, "layers.b.weight_type is 'int3'"),
        ({"b": {"block": True}}, "layers.b.block is True"),
        ({"b": {"per_channel": "yes"}}, "layers.b.per_channel is 'yes'"),
        ({"b": {"method": "least"}}, "layers.b.method is 'least'"),
        ({"b": None}, "layers.b is None"),
        ({3: {"mode": "float"}}, "layers[3] is {"),
        (["b"], "layers is ['b']"),
    ],
)
def test_what_is_no_rule_is_refused_with_its_path(
    layers: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.from_dict({"layers": layers})
    assert caught.value.message.startswith(said)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"stages": [{"quantize": {"layers": layers}}]}))
    assert command("compress", fixture("digits_resnet"), "--recipe", recipe, "--calib", "random") == 2
    assert f"r.yaml: stages[0].quantize.{said}" in capsys.readouterr().err


def test_rules_that_the_recipe_or_the_target_rules_out() -> None:
    with pytest.raises(UsageError, match=r"layers\.b\.mode is 'static', which does not go with mode"):
        Recipe(mode="weights", layers={"b": {"mode": "static"}})
    with pytest.raises(UsageError, match="layers is"):
        Recipe(precision="fp16", layers={"b": {"mode": "float"}})
    with pytest.raises(UsageError, match="the pattern of layers 'c' matches no node name"):
        planned(convs(), layers={"c": {"mode": "float"}})
    with pytest.raises(TargetError, match=r"layers\['b'\]: openvino has no dynamic quantization"):
        planned(convs(), target="openvino", layers={"b": {"mode": "dynamic"}})
    with pytest.raises(TargetError, match=r"layers\['b'\]: uint8 activations with int4 weights"):
        planned(convs(), layers={"b": {"weight_type": "int4"}})


def test_a_run_with_rules_is_replayed_byte_for_byte(tmp_path: Path) -> None:
    feeds = heldout("digits_resnet")[0][:16]
    made = tmp_path / "a.onnx"
    names = [n.name for n in onnx.load(str(fixture("digits_resnet"))).graph.node if n.op_type == "Conv"]
    rules = {"Conv": {"weight_method": "mse"}, names[0]: {"mode": "float"}}
    settings = Settings(samples=12, verify=False, use_cache=False)
    found = quantize(fixture("digits_resnet"), feeds, output=made, settings=settings, layers=rules)
    assert any(skip.reason == "left in float by `layers` of the result's recipe" for skip in found.report.skips)
    assert replay(fixture("digits_resnet"), made, tmp_path / "b.onnx", calib=feeds).same is True
    assert (tmp_path / "b.onnx").read_bytes() == made.read_bytes()

