"""Float products between DQ and Q keep their weights in ONNX Runtime. onnxruntime PR #24537, #25673, #22969."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from handmade.core import Feed, feeds, model, vector, weight
from numpy.typing import NDArray
from pass_checks import loaded, ops

from onnxshot.graph import Model
from onnxshot.passes.keep_float import KeepFloat
from onnxshot.passes.strip_qdq import StripQdq
from onnxshot.planning.trained_scales import read_pairs
from onnxshot.runtimes.ort_executed import executed

ROUNDS = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 23)
"""Whether this ONNX Runtime quantizes all of these by itself; 1.22 does some."""
GRID = {"s": np.float32(0.02), "z": np.uint8(128), "t": np.float32(0.05)}
IMAGE = (2, 16, 8, 8)
CONV = "{made} = Conv<pads = [1, 1, 1, 1], group = {group}>({x}, w, b)"


def between(
    product: str, shape: tuple[int, ...], constants: Feed, *, before: str = "", after: str = "", free: bool = True
) -> tuple[onnx.ModelProto, list[Feed]]:
    """x -> Q -> DQ -> before -> the product named mid -> after -> Q -> DQ -> y; `x` and `made` name what it reads."""
    names = {"x": "m" if before else "d", "made": "p" if after else "r"}
    sizes = ", ".join(["n" if free else str(shape[0]), *map(str, shape[1:])])
    text = f"""g (float[{sizes}] x) => (float y) {{
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
        {before}
        [mid] {product.format(**names)}
        {after}
        e = QuantizeLinear(r, t, z)  y = DequantizeLinear(e, t, z)
    }}"""
    made = model(text, GRID | constants)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    made = onnx.shape_inference.infer_shapes(made)
    del made.graph.value_info[:]
    return made, feeds(2, x=shape)


def conv(group: int = 1, inputs: int = 16, **options: Any) -> tuple[onnx.ModelProto, list[Feed]]:
    constants = {"w": weight(16, inputs // group, 3, 3), "b": vector(16)} | options.pop("constants", {})
    text = CONV.replace("{group}", str(group)) + options.pop("more", "")
    return between(text, (2, inputs, *options.pop("size", (8, 8))), constants, **options)


def transposed(relu: bool = False) -> tuple[onnx.ModelProto, list[Feed]]:
    text = "{made} = ConvTranspose<strides = [2, 2]>({x}, w, b)"
    return between(
        text, IMAGE, {"w": weight(16, 8, 3, 3, channel_axis=1), "b": vector(8)}, after="r = Relu(p)" * relu
    )


def gemm(bias: bool = True, turned: bool = False, **options: Any) -> tuple[onnx.ModelProto, list[Feed]]:
    w = weight(64, 48, channel_axis=1)
    text = f"{{made}} = Gemm<transB = {int(turned)}>({{x}}, w{', b' * bias})"
    return between(text, (6, 64), {"w": w.T.copy() if turned else w, "b": vector(48)}, **options)


def matmul(*shape: int, after: str = "r = Add(p, b)", free: bool = True) -> tuple[onnx.ModelProto, list[Feed]]:
    constants = {"w": weight(64, 48, channel_axis=1), "b": vector(48)}
    return between("{made} = MatMul({x}, w)", shape, constants, after=after, free=free)


MOVED = "m = Transpose<perm = [0, 1, 3, 2]>(d)"
FORMS = {
    "conv": conv(),
    "conv without bias": between(
        "{made} = Conv<pads = [1, 1, 1, 1]>({x}, w)", IMAGE, {"w": weight(16, 16, 3, 3)}
    ),
    "conv and relu": conv(after="r = Relu(p)"),
    "conv and clip": conv(after="r = Clip(p, low, high)", constants={"low": np.float32(0), "high": np.float32(6)}),
    "grouped": conv(4),
    "depthwise": conv(16),
    "one channel": conv(1, 1),
    "conv before max pool": conv(after="r = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(p)"),
    "conv before transpose": conv(after="r = Transpose<perm = [0, 2, 3, 1]>(p)"),
    "conv before reshape": conv(after="r = Reshape(p, c)", constants={"c": np.array([0, -1], np.int64)}),
    "conv behind max pool": conv(before="m = MaxPool<kernel_shape = [2, 2]>(d)"),
    "conv behind transpose": conv(before=MOVED),
    "conv between moves": conv(before=MOVED, after="u = Relu(p) r = Transpose<perm = [0, 2, 3, 1]>(u)"),
    "conv and added constant": conv(after="r = Add(p, c)", constants={"c": vector(16).reshape(1, 16, 1, 1)}),
    "transposed": transposed(),
    "transposed and relu": transposed(relu=True),
    "gemm": gemm(),
    "gemm without bias": gemm(bias=False),
    "gemm with its weight turned": gemm(turned=True, after="r = Relu(p)"),
    "gemm behind transpose": between(
        "{made} = Gemm({x}, w, b)", (64, 6), {"w": weight(64, 48, channel_axis=1), "b": vector(48)},
        before="m = Transpose<perm = [1, 0]>(d)",
    ),
    "matmul and add": matmul(6, 64),
    "matmul and add and relu": matmul(6, 64, after="a = Add(b, p) r = Relu(a)"),
    "matmul of three axes": matmul(2, 5, 64, free=False),
    "matmul of three axes, the first free": matmul(2, 5, 64),
}  # fmt: skip


def steps(proto: onnx.ModelProto, given: list[Feed], *, optimize: bool) -> NDArray[np.float64]:
    """Outputs of the model, in steps of its last Q."""
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    run = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [run.run(None, feed)[0].astype(np.float64).reshape(-1) for feed in given]
    return np.concatenate(found) / float(GRID["t"])


def moved_share(proto: onnx.ModelProto, given: list[Feed], reference: NDArray[np.float64]) -> float:
    """Share of outputs that ONNX Runtime's optimizations move to another step."""
    return float((np.abs(steps(proto, given, optimize=True) - reference) > 0.5).mean())


def kept(proto: onnx.ModelProto, *, per_axis: bool = True) -> tuple[Model, onnx.ModelProto]:
    after = loaded(proto)
    assert KeepFloat(frozenset({"mid"}), per_axis).run(after).edits == 1
    return after, after.to_proto()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("per_axis", [True, False])
def test_a_float_product_between_pairs_keeps_its_weights(name: str, per_axis: bool) -> None:
    proto, given = FORMS[name]
    reference = steps(proto, given, optimize=False)
    _, after = kept(proto, per_axis=per_axis)
    onnx.checker.check_model(after, full_check=True)
    np.testing.assert_array_equal(steps(after, given, optimize=False), reference)  # the meaning is the same
    assert moved_share(after, given, reference) < 0.005  # float sums in another order
    if "free" not in name and ROUNDS:
        assert moved_share(proto, given, reference) > 0.02  # what the pass is for


def test_every_channel_gets_a_scale_and_the_pair_is_shared() -> None:
    proto, _ = FORMS["conv and relu"]
    after, _ = kept(proto)
    product = next(n for n in after.graph.nodes if n.name == "mid")
    (dq,) = product.inputs[0].inputs
    assert dq.op == "DequantizeLinear" and dq.attrs["axis"] == 1
    assert dq.inputs[1].shape == dq.inputs[2].shape == (16,)
    pairs = read_pairs(after)
    assert not pairs.refused and set(pairs.activations) == {"x", "y"}
    assert float(pairs.activations["x"].scale) == GRID["s"]
    StripQdq().run(after)
    assert ops(after) == {"Conv": 1, "Relu": 1}


def test_ops_that_onnx_runtime_does_not_quantize_stay() -> None:
    proto, _ = conv()
    assert KeepFloat(frozenset()).run(loaded(proto)).edits == 0
    free = model(
        """g (float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y) {
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
            [mid] p = Conv<pads = [1, 1, 1, 1]>(d, w, b)  y = Tanh(p)
        }""",
        {"s": GRID["s"], "z": GRID["z"], "w": weight(16, 16, 3, 3), "b": vector(16)},
    )
    assert KeepFloat(frozenset({"mid"})).run(loaded(free)).edits == 0
    alone, _ = matmul(6, 64, after="r = Tanh(p)")
    assert KeepFloat(frozenset({"mid"})).run(loaded(alone)).edits == 0


ALONE = {  # ops without a weight, and what they read beside `d`: `k`, which is dequantized too
    "add": "r = Add(d, k)",
    "mul": "r = Mul(d, k)",
    "concat": "r = Concat<axis = 1>(d, k)",
    "where": "c = Less(x, x2)  r = Where(c, d, k)",
    "sigmoid": "r = Sigmoid(d)",
    "leaky relu": "r = LeakyRelu<alpha = 0.1>(d)",
    "softmax": "r = Softmax<axis = -1>(d)",
    "average pool": "r = AveragePool<kernel_shape = [2, 2]>(d)",
    "global average pool": "r = GlobalAveragePool(d)",
    "matmul": "r = MatMul(d, k)",
    "add behind transpose": "m = Transpose<perm = [0, 1, 3, 2]>(d)  r = Add(m, k)",
    "add before transpose": "p = Add(d, k)  r = Transpose<perm = [0, 1, 3, 2]>(p)",
}


def alone(text: str, channels: str = "16") -> onnx.ModelProto:
    made = model(
        f"""g (float[n, {channels}, 8, 8] x, float[n, {channels}, 8, 8] x2) => (float y) {{
            q = QuantizeLinear(x, s, z)   d = DequantizeLinear(q, s, z)
            q2 = QuantizeLinear(x2, s, z)  k = DequantizeLinear(q2, s, z)
            {text}
            e = QuantizeLinear(r, t, z)  y = DequantizeLinear(e, t, z)
        }}""",
        GRID,
    )
    made.graph.output[0].type.tensor_type.ClearField("shape")
    made = onnx.shape_inference.infer_shapes(made)
    del made.graph.value_info[:]
    return made


def quantized_ops(proto: onnx.ModelProto) -> list[str]:
    run = executed(proto.SerializeToString(), sample=feeds(1, x=IMAGE, x2=IMAGE)[0])
    return [op for op in run.ops if op.startswith(("QLinear", "MatMulInteger", "QGemm"))]


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("per_axis", [True, False])
@pytest.mark.parametrize("channels", ["16", "c"])
def test_a_float_op_without_a_weight_runs_in_float(name: str, per_axis: bool, channels: str) -> None:
    proto, given = alone(ALONE[name], channels), feeds(2, x=IMAGE, x2=IMAGE)
    assert len(quantized_ops(proto)) == 1  # what the pass is for
    after = loaded(proto)
    op = next(n for n in after.graph.nodes if n.op.lower() == name.split(" be")[0].replace(" ", ""))
    assert KeepFloat(frozenset({op.label}), per_axis).run(after).edits == 1
    made = after.to_proto()
    onnx.checker.check_model(made, full_check=True)
    assert quantized_ops(made) == []
    reference = steps(proto, given, optimize=False)
    np.testing.assert_array_equal(steps(made, given, optimize=False), reference)
    assert moved_share(made, given, reference) < 0.03  # means of codes often lie half way between two


def test_an_op_with_other_readers_stays() -> None:
    proto = alone("r = Add(d, k)  o = Neg(r)")
    proto.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("o", 1, list(IMAGE)))
    after = loaded(proto)
    add = next(n for n in after.graph.nodes if n.op == "Add")
    assert quantized_ops(proto) == []
    assert KeepFloat(frozenset({add.label})).run(after).edits == 0
