from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
from handmade import HANDMADE, Case
from handmade.core import Feed, vector, weight
from parted import others
from planned_models import normalized, planned, quantized, reason, run, small, sqnr, statistics, treatment

from onnxshot.api.quantize import quantize
from onnxshot.errors import TargetError, UsageError
from onnxshot.graph.ops import channel_axis
from onnxshot.graph.skip import Skip
from onnxshot.maths.affine import INT8, UINT8, PerChannel, PerTensor
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.plan import DYNAMIC, FLOAT, STATIC, WEIGHTS
from onnxshot.recipes.recipe import Recipe
from onnxshot.runtimes.ort_executed import executed
from onnxshot.targets import TARGETS, target_named

PLANNABLE = [name for name in HANDMADE if not name.startswith("already_")]


def convs(text: str, **more: tuple[int, ...]) -> Case:
    """A case on x [2, 8, 10, 10] with Conv weights w1..w4 [8, 8, 3, 3]."""
    constants: Feed = {f"w{i}": weight(8, 8, 3, 3, seed=i) for i in (1, 2, 3, 4)}
    constants |= {"b": vector(8), "half": np.array(0.5, np.float32), "six": np.array(6, np.float32)}
    constants |= {"zero": np.array(0, np.float32)}
    used = {k: v for k, v in constants.items() if k in text.replace(",", " ").replace(")", " ").split()}
    case = small(text.replace("Conv(", "Conv<pads = [1, 1, 1, 1]>("), used, x=(2, 8, 10, 10), **more)
    return case


HEAD = "g (float[n, 8, 10, 10] x) => (float[n, c, h, w] y)"

# ---------------------------------------------------------------------- what a plan is


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PLANNABLE)
def test_planning_changes_nothing_and_gives_every_reason(name: str, target: str) -> None:
    recipe = Recipe(target=target)
    ready = normalized(HANDMADE[name]().model, recipe)
    before = ready.to_proto()
    names = set(ready._names)
    plan = make_plan(ready, target_named(target), recipe)
    assert make_plan(ready, target_named(target), recipe) == plan
    assert ready.to_proto().SerializeToString(deterministic=True) == before.SerializeToString(deterministic=True)
    assert ready._names == names, "no name was taken"
    for node in plan.nodes:
        assert (node.how == FLOAT) == bool(node.reason), node
    assert plan.to_text().startswith(f"target {target}, mode static\n")
    assert {s.node for s in plan.skips} == {n.node for n in plan.nodes if n.how == FLOAT}
    assert set(plan.weights) == {n.node for n in plan.nodes if n.how in (STATIC, DYNAMIC, WEIGHTS) and n.has_weight}


@pytest.mark.parametrize("name", ["resnet_block", "squeeze_excite", "concat_of_different_ranges", "opset_9"])
def test_the_same_statistics_give_the_same_scales(name: str) -> None:
    case = HANDMADE[name]()
    recipe, target = Recipe(), target_named("ort")
    ready = normalized(case.model, recipe)
    stats = statistics(ready, make_plan(ready, target, recipe).observe, case.feeds)
    before = ready.to_proto()
    plans = [make_plan(ready, target, recipe, stats) for _ in range(2)]
    assert str(asdict(plans[0])) == str(asdict(plans[1]))
    assert ready.to_proto() == before
    groups = {t.group for t in plans[0].tensors.values()}
    assert set(plans[0].params) == set(plans[0].ranges) == groups
    for params in plans[0].params.values():
        assert params.scale.dtype == np.float32
        assert float(params.scale) > 0


def test_missing_statistics_are_told_by_name() -> None:
    case = HANDMADE["resnet_block"]()
    ready = normalized(case.model, Recipe())
    with pytest.raises(UsageError, match="no statistics for tensor"):
        make_plan(ready, target_named("ort"), Recipe(), statistics(ready, ["x"], case.feeds))


@pytest.mark.parametrize(
    ("per_channel", "expected"),
    [(True, {"w": PerChannel(0), "fc": PerChannel(1), "fct": PerChannel(0)}), (False, {"w": PerTensor()})],
)
def test_a_scale_per_output_channel(per_channel: bool, expected: dict[str, PerChannel | PerTensor]) -> None:
    text = """g (float[n, 8, 4, 4] x) => (float[n, 8] y) {
        c = Conv(x, w)
        p = GlobalAveragePool(c)
        f = Flatten(p)
        h = Gemm(f, fc)
        y = Gemm<transB = 1>(h, fct)
    }"""
    case = small(text, {"w": weight(8, 8, 1, 1), "fc": weight(8, 8), "fct": weight(8, 8)}, x=(2, 8, 4, 4))
    ready, plan = planned(case, per_channel=per_channel, include=("Gemm",))
    assert len(plan.weights) == 3
    for node in ready.graph.nodes:
        if node.label in plan.weights:
            found = plan.weights[node.label]
            axis = channel_axis(node, found.slot, len(node.inputs[1].shape))
            wanted = expected.get(node.inputs[1].name, PerTensor())
            assert found.scheme.granularity == wanted
            assert not per_channel or wanted == PerChannel(axis or 0)
            assert found.scheme.dtype == INT8
            assert found.scheme.symmetric


# ---------------------------------------------------------------------- followers


def test_an_add_between_convs_is_quantized_and_one_before_the_output_is_not() -> None:
    case = convs(HEAD + "{ a = Conv(x, w1) s = Add(a, x) c = Conv(s, w2) y = Add(c, s) }")
    ready, plan = planned(case)
    assert treatment(ready, plan) == {"a": STATIC, "s": STATIC, "c": STATIC, "y": FLOAT}
    assert reason(ready, plan, "y") == "no op with a weight comes after it"
    assert set(plan.tensors) == {"x", "a", "s", "c"}
    assert plan.tensors["a"].all_readers
    assert not plan.tensors["x"].all_readers, "a graph input is quantized for those who compute in int8 only"


def test_followers_that_rely_on_each_other_are_a_fixed_point() -> None:
    """Pool, Mul, Add are each worth it only because the next one is; without the last Conv none is."""
    chain = "a = Conv(x, w1) p = MaxPool<kernel_shape = [1, 1]>(a) m = Mul(p, a) s = Add(m, a)"
    ready, plan = planned(convs(HEAD + f"{{ {chain} y = Conv(s, w2) }}"))
    assert set(treatment(ready, plan).values()) == {STATIC}
    ready, plan = planned(convs(HEAD + f"{{ {chain} y = Sigmoid(s) }}"))
    found = treatment(ready, plan)
    assert {k for k, v in found.items() if v == STATIC} == {"a"}
    assert {reason(ready, plan, k) for k in ("p", "m", "s", "y")} == {"no op with a weight comes after it"}


def test_an_isolated_elementwise_op_stays_float() -> None:
    case = convs(HEAD + "{ a = Conv(x, w1) e = Erf(a) m = Mul(e, half) t = Tanh(m) y = Conv(t, w2) }")
    ready, plan = planned(case)
    assert treatment(ready, plan) == {"a": STATIC, "e": FLOAT, "m": FLOAT, "t": FLOAT, "y": STATIC}
    assert "not between int8 ops" in reason(ready, plan, "m")


@pytest.mark.parametrize(
    ("activation", "fused"),
    [("Relu(a)", True), ("Clip(a, zero, six)", True), ("Clip(a, zero)", True), ("Clip(a, half, six)", False)],
)
def test_a_relu_or_clip_at_zero_is_fused_with_what_makes_its_input(activation: str, fused: bool) -> None:
    ready, plan = planned(convs(HEAD + f"{{ a = Conv(x, w1) r = {activation} y = Conv(r, w2) }}"))
    assert treatment(ready, plan)["r"] == (STATIC if fused else FLOAT)
    assert ("a" in plan.tensors) is not fused, "no Q between an op and the activation fused with it"
    assert "r" in plan.tensors


def test_a_relu_is_not_fused_where_something_else_reads_its_input() -> None:
    ready, plan = planned(convs(HEAD + "{ a = Conv(x, w1) r = Relu(a) s = Add(r, a) y = Conv(s, w2) }"))
    assert treatment(ready, plan)["r"] == STATIC, "between int8 ops all the same"
    assert {"a", "r", "s"} <= set(plan.tensors)


@pytest.mark.parametrize("op", ["Relu(c)", "Clip(c, zero, six)"])
def test_a_relu_behind_a_concat(op: str) -> None:
    case = convs(
        "g (float[n, 8, 10, 10] x) => (float[n, 8, 10, 10] y)"
        f"{{ a = Conv(x, w1) b2 = Conv(x, w2) c = Concat<axis = 2>(a, b2) r = {op} y = Conv(r, w3) }}"
    )
    case.model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 20
    ready, plan = planned(case, calibrate=True)
    assert treatment(ready, plan)["r"] == STATIC
    assert "c" not in plan.tensors


def test_forcing_a_fused_relu_puts_no_pair_before_it() -> None:
    _, plan = planned(convs(HEAD + "{ a = Conv(x, w1) r = Relu(a) y = Conv(r, w2) }"), include=("Relu",))
    assert set(plan.tensors) == {"x", "r", "y"}


def test_ops_that_move_values_share_the_scale_of_their_source() -> None:
    case = convs(
        HEAD
        + """{ a = Conv(x, w1) r = Relu(a) m = MaxPool<kernel_shape = [2, 2]>(r) t = Transpose<perm = [0, 1, 3, 2]>(m)
        v = GlobalAveragePool(t) y = Conv(v, w2) }"""
    )
    _, plan = planned(case)
    assert {n: plan.tensors[n].group for n in ("r", "m", "t", "v")} == {"r": "r", "m": "r", "t": "r", "v": "v"}
    assert plan.observe == ("x", "r", "v", "y")


def test_a_padding_of_another_value_has_a_scale_of_its_own() -> None:
    text = HEAD + "{ a = Conv(x, w1) p = Pad(a, pads, value) y = Conv(p, w2) }"
    constants = {"w1": weight(8, 8, 1, 1), "w2": weight(8, 8, 1, 1, seed=1), "value": np.array(50, np.float32)}
    constants["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    case = small(text, constants, x=(2, 8, 10, 10))
    _, plan = planned(case)
    assert plan.tensors["p"].group == "p"
    _, made = quantized(case)
    assert sqnr(case, made) > 25, "the padding is not clipped to the range of what it is put around"


# ---------------------------------------------------------------------- weighted ops


def encoder(width: int = 64) -> Case:
    """An attention block whose matrices are large enough for dynamic kernels."""
    text = f"""g (float[batch, 6, {width}] x) => (float[batch, 6, {width}] y) {{
        n = LayerNormalization(x, one, none)
        q = MatMul(n, wq)
        k = MatMul(n, wk)
        t = Transpose<perm = [0, 2, 1]>(k)
        s = MatMul(q, t)
        p = Softmax(s)
        v = MatMul(n, wv)
        h = MatMul(p, v)
        y = MatMul(h, wo)
    }}"""
    constants: Feed = {f"w{n}": weight(width, width, seed=i, channel_axis=1) for i, n in enumerate("qkvo")}
    return small(text, constants | {"one": np.ones(width, np.float32), "none": vector(width)}, x=(2, 6, width))


def test_matmuls_of_a_transformer_are_dynamic_and_attention_itself_is_float() -> None:
    ready, plan = planned(encoder())
    found = treatment(ready, plan)
    assert {k for k, v in found.items() if v == DYNAMIC} == {"q", "k", "v", "y"}
    assert {found[k] for k in ("n", "s", "p", "h", "t")} == {FLOAT}
    assert reason(ready, plan, "s").startswith("both inputs are activations")
    assert "0.16x" in reason(ready, plan, "p")
    assert plan.tensors == {}
    assert plan.watched == ("n", "h")


def test_small_matmuls_stay_float() -> None:
    ready, plan = planned(encoder(16))
    assert DYNAMIC not in treatment(ready, plan).values()
    assert "small" in reason(ready, plan, "q")


def test_two_gemms_in_a_row_are_dynamic_unless_they_are_asked_for() -> None:
    text = "g (float[n, 64] x) => (float[n, 64] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm<transB = 1>(r, w2, b) }"
    case = small(text, {"w": weight(64, 64), "w2": weight(64, 64, seed=1), "b": vector(64)}, x=(2, 64))
    ready, plan = planned(case)
    assert treatment(ready, plan) == {"a": DYNAMIC, "r": FLOAT, "y": DYNAMIC}
    assert plan.watched == ("x", "r")
    assert plan.tensors == {}
    ready, plan = planned(case, include=("Gemm",))
    assert treatment(ready, plan) == {"a": STATIC, "r": STATIC, "y": STATIC}
    assert set(plan.tensors) >= {"x", "r"}


@pytest.mark.parametrize(("op", "bias"), [("Gemm", ""), ("Gemm", ", b"), ("MatMul", "")])
def test_three_products_in_a_row_hand_integers_on(op: str, bias: str) -> None:
    lines = f"a = {op}(x, w{bias}) r = Relu(a) c = {op}(r, w2{bias}) y = {op}(c, w{bias})"
    text = f"g (float[n, 64] x) => (float[n, 64] y) {{ {lines} }}"
    ready, plan = planned(
        small(text, {"w": weight(64, 64), "w2": weight(64, 64, seed=1), "b": vector(64)}, x=(2, 64))
    )
    assert treatment(ready, plan) == {"a": STATIC, "r": STATIC, "c": STATIC, "y": STATIC}
    assert set(plan.tensors) == {"x", "r", "c"}, "the last one gives floats"


def test_products_behind_a_conv_hand_integers_on() -> None:
    text = """g (float[n, 8, 4, 4] x) => (float[n, 64] y) {
        a = Conv(x, k) f = Flatten(a) h = MatMul(f, w) r = Relu(h) y = MatMul(r, w2)
    }"""
    constants: Feed = {"k": weight(16, 8, 1, 1), "w": weight(256, 64), "w2": weight(64, 64)}
    ready, plan = planned(small(text, constants, x=(2, 8, 4, 4)))
    assert set(treatment(ready, plan).values()) == {STATIC}
    assert set(plan.tensors) == {"x", "a", "f", "r"}


def test_a_gemm_that_feeds_a_conv_is_static() -> None:
    text = """g (float[n, 16] x) => (float[n, 8, 4, 4] y) {
        a = Gemm(x, w, b)
        r = Relu(a)
        v = Reshape(r, image)
        y = Conv(v, k)
    }"""
    constants: Feed = {"w": weight(16, 128), "b": vector(128), "image": np.array([-1, 8, 4, 4], np.int64)}
    ready, plan = planned(small(text, constants | {"k": weight(8, 8, 1, 1)}, x=(2, 16)))
    assert set(treatment(ready, plan).values()) == {STATIC}
    assert {n: t.group for n, t in plan.tensors.items()} == {"x": "x", "r": "r", "v": "r", "y": "y"}


@pytest.mark.parametrize(
    ("name", "output", "words"),
    [
        ("matmul_weight_on_the_left", "a", "left operand"),
        ("gemm_trans_a", "y", "transposed"),
        ("gemm_trans_b_0", "y", "alpha or beta"),
        ("half_precision_model", "a", "float16"),
        ("conv_transpose", "c", "ConvTranspose"),
        ("gru", "y", "no int8 GRU"),
    ],
)
def test_what_has_no_int8_form_says_so(name: str, output: str, words: str) -> None:
    ready, plan = planned(HANDMADE[name]())
    assert treatment(ready, plan)[output] == FLOAT
    assert words in reason(ready, plan, output)


def test_a_constant_that_an_einsum_reads_is_not_said_to_be_missing() -> None:
    text = 'g (float[2, 3, 8] x) => (float[2, 3, 8] y) { y = Einsum<equation = "abc,cd->abd">(x, w) }'
    ready, plan = planned(small(text, {"w": weight(8, 8)}, x=(2, 3, 8)), mode="weights")
    assert treatment(ready, plan)["y"] == FLOAT
    assert reason(ready, plan, "y").startswith("reads a constant")
    assert "Einsum" in reason(ready, plan, "y")


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_an_lstm_in_a_subgraph_asks_for_no_option_that_cannot_help(mode: str) -> None:
    text = """g (float[3, 1, 8] x) => (float[3, 1, 1, 8] y) {
        total = ReduceSum<keepdims = 0>(x)
        positive = Greater(total, zero)
        y = If (positive) <
            then_branch = yes () => (float[3, 1, 1, 8] a) { a = LSTM<hidden_size = 8>(x, w, r) },
            else_branch = no () => (float[3, 1, 1, 8] b) { b = LSTM<hidden_size = 8>(x, r, w) }
        >
    }"""
    constants = {"w": weight(1, 32, 8), "r": weight(1, 32, 8, seed=1), "zero": np.array(0, np.float32)}
    ready, plan = planned(small(text, constants, x=(3, 1, 8)), mode=mode)
    assert treatment(ready, plan)["a"] == FLOAT
    assert "inside a subgraph" in reason(ready, plan, "a")
    assert 'mode="dynamic"' not in reason(ready, plan, "a")
    stored = planned(small(text, constants, x=(3, 1, 8)), mode="weights")
    assert treatment(*stored)["a"] == WEIGHTS, "the mode that is named helps"


def test_matmuls_in_subgraphs_are_dynamic_and_convs_there_are_float() -> None:
    text = """g (float[1, 4, 64, 64] x) => (float[1, 4, 64, 64] y) {
        total = ReduceSum<keepdims = 0>(x)
        positive = Greater(total, zero)
        y = If (positive) <
            then_branch = yes () => (float[1, 4, 64, 64] a) { a = MatMul(x, w) },
            else_branch = no () => (float[1, 4, 64, 64] b) { b = Conv<pads = [1, 1, 1, 1]>(x, k) }
        >
    }"""
    constants = {"w": weight(64, 64), "k": weight(4, 4, 3, 3), "zero": np.array(0, np.float32)}
    ready, plan = planned(small(text, constants, x=(1, 4, 64, 64)))
    found = treatment(ready, plan)
    assert (found["a"], found["b"]) == (DYNAMIC, FLOAT)
    assert "inside a subgraph" in reason(ready, plan, "b")
    assert plan.watched == (), "tensors of subgraphs are not observed"


@pytest.mark.parametrize("name", ["matmul_behind_constant", "half_precision_model", "attention_block"])
def test_after_the_last_weighted_op_means_what_it_says(name: str) -> None:
    """An op that leads to a weighted one, quantized or not, is not behind the last."""
    ready, plan = planned(HANDMADE[name]())
    weighted = {n.node for n in plan.nodes if n.has_weight}
    for node in ready.graph.nodes:
        text = next((n.reason for n in plan.nodes if n.node == node.label), "")
        if text == "no op with a weight comes after it":
            seen, stack = set(), [node]
            while stack:
                for user in (u for t in stack.pop().outputs for u in t.outputs):
                    assert user.label not in weighted, (node.label, user.label)
                    if user not in seen:
                        seen.add(user)
                        stack.append(user)


def test_a_relu_in_a_subgraph_is_not_said_to_have_no_kernel() -> None:
    ready, plan = planned(HANDMADE["if_captures_weights"]())
    assert "inside a subgraph" in reason(ready, plan, "no_out")


# ---------------------------------------------------------------------- Concat


def head(spread: float, tail: str) -> Case:
    """Two Convs of x whose outputs' ranges differ by `spread`, joined."""
    text = f"""g (float[1, 8, 10, 10] x) => (float[n, c, h, w] y) {{
        a = Conv(x, w1)
        b = Conv(x, w2)
        j = Concat<axis = 1>(a, b)
        {tail}
    }}"""
    constants: Feed = {"w1": weight(8, 8, 1, 1), "w3": weight(8, 16, 1, 1), "half": np.array(0.5, np.float32)}
    constants |= {"w2": constants["w1"] * np.float32(spread)}
    used = {k: v for k, v in constants.items() if k != "w3" or "w3" in tail}
    return small(text, {k: v for k, v in used.items() if k != "half" or "half" in tail}, x=(1, 8, 10, 10))


POOLED = "m = MaxPool<kernel_shape = [2, 2]>(j) y = Conv(m, w3)"


def test_a_concat_of_ranges_8x_apart_stays_float() -> None:
    ready, plan = planned(head(7, POOLED), calibrate=True)
    assert treatment(ready, plan)["j"] == STATIC
    ready, plan = planned(head(9, POOLED), calibrate=True)
    found = treatment(ready, plan)
    assert (found["j"], found["m"], found["y"]) == (FLOAT, FLOAT, STATIC)
    assert "differ 9x" in reason(ready, plan, "j")
    assert "not between int8 ops" in reason(ready, plan, "m")
    assert set(plan.tensors) == {"x", "a", "b", "m", "y"}
    assert set(plan.params) == {t.group for t in plan.tensors.values()}
    ready, plan = planned(head(9, POOLED), calibrate=True, concat_ratio=10.0)
    assert treatment(ready, plan)["j"] == STATIC
    ready, plan = planned(head(9, POOLED), calibrate=True, include=("Concat",))
    assert treatment(ready, plan)["j"] == STATIC


def test_a_concat_that_a_conv_reads_is_quantized_whatever_its_ranges() -> None:
    """The Conv quantizes its input all the same: one scale for all of it cannot be avoided."""
    ready, plan = planned(head(100, "y = Conv(j, w3)"), calibrate=True)
    assert treatment(ready, plan) == {"a": STATIC, "b": STATIC, "j": STATIC, "y": STATIC}


@pytest.mark.parametrize("name", ["yolo_head", "yolo_head_transposed", "nms_tail"])
def test_a_detection_head_keeps_its_decoding_in_float(name: str) -> None:
    """Boxes in 0..640 and scores in 0..1 behind one scale kill the scores."""
    case = HANDMADE[name]()
    ready, plan = planned(case, calibrate=True)
    found = treatment(ready, plan)
    assert {v for k, v in found.items() if ready.tensors()[k].inputs[0].op != "Conv" and k[-2:] != "_r"} == {FLOAT}
    assert sum(v == STATIC for v in found.values()) == 6, "four Convs and two Relus"
    if name == "yolo_head":
        _, made = quantized(case)
        wanted, got = (run(m, case.feeds[-1])[0] for m in (case.model, made))
        assert np.abs(wanted - got)[:, 4:].max() < 0.05
        assert np.corrcoef(wanted[:, 4:].ravel(), got[:, 4:].ravel())[0, 1] > 0.99


# ---------------------------------------------------------------------- outliers


def test_outliers_of_a_dynamic_input_are_moved_into_the_weights() -> None:
    text = "g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }"
    case = small(text, {"w": weight(64, 64)}, x=(8, 64))
    assert planned(case, calibrate=True)[1].smoothing == {}
    loud = [{"x": f["x"] * np.where(np.arange(64) == 3, np.float32(400), np.float32(1))} for f in case.feeds]
    ready, plan = planned(Case(case.model, loud), calibrate=True)
    assert treatment(ready, plan) == {"y": DYNAMIC}
    factors = plan.smoothing["x"]
    assert factors.shape == (64,)
    assert int(factors.argmax()) == 3
    assert factors[3] > 20 * np.delete(factors, 3).max()
    assert "moved into the weights" in plan.to_text()


# ---------------------------------------------------------------------- what the user says


def test_exclude_and_include() -> None:
    case = convs(HEAD + "{ a = Conv(x, w1) r = Relu(a) b2 = Conv(r, w2) s = Add(b2, r) y = Sigmoid(s) }")
    ready, plan = planned(case, exclude=("b2",))
    assert treatment(ready, plan)["b2"] == FLOAT
    assert reason(ready, plan, "b2") == "excluded by 'b2'"
    ready, plan = planned(case, exclude=("Conv*",))
    assert set(treatment(ready, plan).values()) == {FLOAT}
    assert plan.tensors == {}
    ready, plan = planned(case, include=("Add",))
    assert treatment(ready, plan)["s"] == STATIC
    with pytest.raises(UsageError, match="exclude pattern 'Convv'"):
        planned(case, exclude=("Convv",))
    with pytest.raises(UsageError, match="include pattern 'Convv'"):
        planned(case, include=("Convv",))


def test_excluding_a_relu_moves_the_pair_to_the_conv() -> None:
    ready, plan = planned(convs(HEAD + "{ a = Conv(x, w1) r = Relu(a) y = Conv(r, w2) }"), exclude=("Relu",))
    assert treatment(ready, plan)["r"] == FLOAT
    assert {"a", "r"} <= set(plan.tensors)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation_type": "uint16"}, "0.8x of the float model"),
        ({"activation_type": "int16"}, "0.8x of the float model"),
        ({"activation_type": "float8e4m3fn", "weight_type": "float8e4m3fn"}, "fails to load float8 MatMul"),
        ({"weight_type": "float8e4m3fn"}, "fails to load float8 MatMul"),
        ({"weight_type": "int16"}, "16-bit"),
        ({"target": "tensorrt", "activation_type": "uint8"}, "refuses uint8"),
        ({"target": "ort-avx2", "weight_type": "uint8"}, "no kernel for uint8 activations with uint8 weights"),
        ({"mode": "weights", "weight_type": "float8e4m3fn"}, "float8"),
        pytest.param({"mode": "dynamic", "weight_type": "int16"}, "int16"),
        pytest.param({"mode": "dynamic", "weight_type": "float8e4m3fn"}, "float8"),
        pytest.param({"mode": "dynamic", "activation_type": "int8"}, "uint8"),
        pytest.param({"mode": "dynamic", "target": "tensorrt"}, "dynamic"),
    ],
    ids=str,
)
def test_types_the_target_cannot_compute_in_are_refused_before_any_data_is_read(
    options: dict[str, str], words: str
) -> None:
    def never() -> Feed:
        raise AssertionError("data was read")
        yield

    with pytest.raises(TargetError, match=words) as caught:
        quantize(HANDMADE["resnet_block"]().model, never(), **options)
    assert caught.value.exit_code == 6
    assert caught.value.hint


def test_ort_avx2_has_weights_of_seven_bits() -> None:
    """Sums of two products of 255 x 63 fit int16, so the result is the same with and without VNNI."""
    case = HANDMADE["resnet_block"]()
    _, made = quantized(case, target="ort-avx2")
    stored = [onnx.numpy_helper.to_array(t) for t in made.graph.initializer]
    weights = [w for w in stored if w.ndim == 4]
    assert [w.dtype.name for w in weights] == ["int8", "int8"]
    assert all(w.min() >= -64 and w.max() <= 63 for w in weights)
    assert max(int(w.max()) for w in weights) >= 62
    assert sqnr(case, made) > 28


# ---------------------------------------------------------------------- targets


def test_tensorrt_wants_symmetric_int8_no_pair_on_outputs_and_one_on_the_shortcut() -> None:
    case = convs(HEAD + "{ a = Conv(x, w1) r = Relu(a) b2 = Conv(r, w2) s = Add(b2, x) y = Conv(s, w3) }")
    _, plan = planned(case, target="tensorrt", calibrate=True)
    assert set(plan.tensors) == {"x", "r", "s"}
    assert all(p.scheme.dtype == INT8 and int(p.zero_point) == 0 for p in plan.params.values())
    _, made = quantized(case, target="tensorrt")
    add = next(n for n in made.graph.node if n.op_type == "Add")
    makers = {o: n.op_type for n in made.graph.node for o in n.output}
    assert [makers.get(name) for name in add.input] == ["Conv", "DequantizeLinear"]
    assert {i.elem_type for i in (o.type.tensor_type for o in made.graph.output)} == {onnx.TensorProto.FLOAT}
    assert not {"b2", "y"} & {n.input[0] for n in made.graph.node if n.op_type == "QuantizeLinear"}
    assert sqnr(case, made) > 28


@pytest.mark.parametrize("target", ["ort", "ort-avx2", "tensorrt"])
def test_a_relu6_does_not_pass_its_limit(target: str) -> None:
    """Only where the largest quantized value is at most 6 may a runtime drop the Clip. It compares in float32."""
    case = HANDMADE["mbconv_block"]()
    loud = [{"x": f["x"] * np.float32(20)} for f in case.feeds]
    _, plan = planned(Case(case.model, loud), target=target, calibrate=True)
    for name in ("e6", "d6"):
        assert plan.tensors[name].bound == 6
        params = plan.params_of(name)
        steps = np.float32(params.scheme.limits[1] - int(params.zero_point))
        assert np.float32(5.9) < params.scale * steps <= np.float32(6)


def test_a_clip_above_what_is_seen_keeps_the_range_that_is_seen() -> None:
    _, plan = planned(convs(HEAD + "{ a = Conv(x, w1) r = Clip(a, zero, six) y = Conv(r, w2) }"), calibrate=True)
    params = plan.params_of("r")
    assert params.scheme == replace(params.scheme, dtype=UINT8)
    assert params.scale * np.float32(255) <= np.float32(6)


def test_skips_list_weighted_ops_first() -> None:
    _, plan = planned(HANDMADE["opset_21"]())
    assert plan.skips[0] == Skip("Gemm_y", "Gemm", plan.skips[0].reason)
    assert "Gelu" in {s.op for s in plan.skips[1:]}


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("p = Relu(a)", "q = Relu(b2)", True),
        ("p = Identity(a) p2 = Relu(p)", "q = Relu(b2)", False),  # a signed input and one that starts at 0
        ("p = Clip(a, zero, six)", "q = Relu(b2)", False),  # the Clip ends at 6, and must still be made by its Q
    ],
)
def test_a_concat_shares_a_scale_only_among_inputs_with_the_same_limits(first: str, second: str, shared: bool) -> None:
    """A scale that reaches below 0, or above a Clip, would keep that Relu or Clip from being fused with its Conv."""
    text = f"{{ a = Conv(x, w1) b2 = Conv(x, w2) {first} {second} c = Concat<axis = 2>(p, q) y = Conv(c, w3) }}"
    ready, plan = planned(convs(f"{HEAD} {text}"), calibrate=True)
    made = {n.outputs[0].name for n in ready.graph.nodes}
    left = "p" if "p" in plan.tensors else "a"
    assert {left, "q", "c"} <= set(plan.tensors) and "q" in made
    groups = {plan.tensors[name].group for name in (left, "q", "c")}
    assert (len(groups) == 1) == shared
    assert int(plan.params_of("q").zero_point) == 0, "or its Relu stays between Conv and Q"


def test_an_operand_that_is_infinite_keeps_its_op_in_float() -> None:
    case = convs(f"{HEAD} {{ a = Conv(x, w1) m = Mul(a, half) y = Conv(m, w2) }}")
    (half,) = [i for i in case.model.graph.initializer if i.name == "half"]
    for value, how in ((0.5, STATIC), (np.inf, FLOAT), (np.nan, FLOAT)):
        image = np.full((1, 1, 10, 10), 0.5, np.float32)  # a value per pixel: not folded into the Conv
        image[0, 0, 3, 4] = value
        half.CopyFrom(onnx.numpy_helper.from_array(image, "half"))
        assert treatment(*planned(case))["m"] == how


TOKENS = "g (float[1, 6, 64] x) => (float[1, 6, 64] y)"
BIASED = "h = MatMul(x, w1) t = Add(h, b) e = Tanh(t) u = MatMul(e, w2) y = Add(u, b)"
GIVES: dict[str, tuple[str, str, bool]] = {  # name -> (text, product, whether a Q follows it)
    "a product of tokens": (f"{TOKENS} {{ {BIASED} }}", "h", False),
    "a bias of its own": ("g (float[8, 64] x) => (float[8, 64] y) { h = Gemm(x, w1, b) y = Softmax(h) }", "h", False),
    "in front of a Relu": (
        "g (float[8, 64] x) => (float[8, 64] y) { h = Gemm(x, w1, b) r = Relu(h) y = Softmax(r) }", "r", True
    ),
    "in front of a Clip": (
        "g (float[8, 64] x) => (float[8, 64] y) { h = MatMul(x, w1) r = Clip(h, low, high) y = Softmax(r) }", "h", True
    ),
    "in front of a Relu and more": (
        f"{TOKENS} {{ h = MatMul(x, w1) r = Relu(h) t = Tanh(h) y = Sub(r, t) }}", "h", False
    ),
    "no bias": ("g (float[8, 64] x) => (float[8, 64] y) { h = Gemm(x, w1) y = Softmax(h) }", "h", False),
    "matrices, and what becomes a bias": (f"g (float[8, 64] x) => (float[8, 64] y) {{ {BIASED} }}", "h", True),
    "matrices": ("g (float[8, 64] x) => (float[8, 64] y) { h = MatMul(x, w1) y = Softmax(h) }", "h", False),
    "for another product": (f"{TOKENS} {{ h = MatMul(x, w1) y = MatMul(h, w2) }}", "h", True),
}


@pytest.mark.parametrize("name", GIVES)
def test_a_product_that_nothing_takes_in_int8_gives_floats_and_still_runs_in_int8(name: str) -> None:
    """The Q on what an encoder's products add to the residual branch cost 9 dB."""
    text, product, quantizes = GIVES[name]
    given: Feed = {"w1": weight(64, 64), "w2": weight(64, 64, seed=1), "b": vector(64)}
    given |= {"low": np.array(-1, np.float32), "high": np.array(1, np.float32)}
    constants = {k: v for k, v in given.items() if f"{k}," in text or f"{k})" in text}
    case = small(text, constants, x=(1, 6, 64) if "6, 64" in text else (8, 64))
    options = {"include": ["[MG][ae][tm][Mm]*"]}  # MatMul and Gemm, as far as there are any
    _, plan = planned(case, calibrate=True, **options)
    assert plan.labels(STATIC)
    assert (product in plan.tensors and plan.tensors[product].all_readers) == quantizes
    _, proto = quantized(case, **options)
    assert executed(proto.SerializeToString(), sample=case.feeds[0]).share == 1, "all products ran in int8"
    assert sqnr(Case(case.model, others(case.feeds)), proto) > 30, "on samples whose ranges are known"
    _, plan = planned(case, calibrate=True, format="qoperator", **options)
    assert product in plan.tensors, "QLinearMatMul has no float output"


def test_a_method_without_ranges_is_said_to_have_no_effect() -> None:
    case = small("g (float[8, 64] x) => (float[8, 64] y) { y = MatMul(x, w) }", {"w": weight(64, 64)}, x=(8, 64))
    told = "method has no effect: no range of an activation is calibrated"
    cases = (("dynamic", "mse", 1), ("weights", "mse", 1), ("dynamic", "auto", 0), ("static", "mse", 0))
    for mode, method, said in cases:
        _, plan = planned(case, calibrate=True, mode=mode, method=method, include=["MatMul"])
        assert plan.notes.count(told) == said, (mode, method)
