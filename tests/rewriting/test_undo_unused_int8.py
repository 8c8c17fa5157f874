"""No weight of a file for ONNX Runtime is dequantized at every run."""

import numpy as np
import onnx
import pytest
from handmade import Case
from handmade.core import vector, weight
from planned_models import quantized, run, small, sqnr

import onnxshot
from onnxshot import memory
from onnxshot.graph import shape_inference, weights
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.load import load_model
from onnxshot.planning import make_plan
from onnxshot.rewriting import undo_unused_int8
from onnxshot.runtimes.ort_dequantized_weights import dequantized_weights
from onnxshot.runtimes.parts import Parts

PRODUCTS = {
    "MatMul": "h = MatMul(x, w)",
    "Gemm": "h = Gemm(x, w)",
    "Gemm, transposed": "h = Gemm<transB = 1>(x, wt)",
    "Gemm with a bias": "h = Gemm(x, w, b)",
}
BEHIND = {
    "nothing": "e = Identity(h)",
    "Relu": "r = Relu(h) e = Softmax(r)",
    "Clip": "r = Clip(h, low, high) e = Softmax(r)",
    "Clip at 0": "r = Clip(h, zero, six) e = Softmax(r)",
    "LeakyRelu": "r = LeakyRelu(h) e = Softmax(r)",
    "Sigmoid": "r = Sigmoid(h) e = Softmax(r)",
    "residual Add": "e = Add(h, x)",
    "Relu and residual Add": "r = Relu(h) e = Add(r, x)",
    "Relu and other readers": "r = Relu(h) t = Tanh(h) e = Sub(r, t)",
    "Relu and a product": "r = Relu(h) e = MatMul(r, w)",
    "Add and Relu": "a = Add(h, b) r = Relu(a) e = Softmax(r)",
}


def case(product: str, behind: str, rank: int = 2) -> Case:
    shape = (8, 64) if rank == 2 else (1, 8, 64)
    dims = ", ".join("nst"[i] if i < rank - 1 else "64" for i in range(rank))
    text = f"g (float[{dims}] x) => (float[{dims}] y) {{ {product} {behind} y = Neg(e) }}"
    constants = {
        "w": weight(64, 64), "wt": weight(64, 64, seed=2), "b": vector(64), "low": np.float32(-1),
        "high": np.float32(1), "zero": np.float32(0), "six": np.float32(6),
    }  # fmt: skip
    used = {k: np.asarray(v) for k, v in constants.items() if f", {k})" in text or f", {k}," in text}
    return small(text, used, x=shape)


def forms() -> list[tuple[str, str, int]]:
    return [(p, b, rank) for p in PRODUCTS for b in BEHIND for rank in ((2, 3) if p == "MatMul" else (2,))]


@pytest.mark.parametrize("include", [(), ("MatMul", "Gemm")], ids=["default", "asked for"])
@pytest.mark.parametrize(("product", "behind", "rank"), forms())
def test_no_weight_is_dequantized_at_run_time(
    product: str, behind: str, rank: int, include: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the planner's rules alone, for every form of a product and of what follows it; pain 46."""
    given = case(PRODUCTS[product], BEHIND[behind], rank)
    monkeypatch.setattr(undo_unused_int8, "dequantized_weights", lambda _: set())
    ops = {n.op_type for n in given.model.graph.node}
    _, proto = quantized(given, include=tuple(op for op in include if op in ops))
    assert dequantized_weights(proto) == set()


def test_a_layer_that_is_not_fused_is_restored_to_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_plan, "_only_relu_reads", lambda *_: False)
    given = case(PRODUCTS["MatMul"], BEHIND["Relu and residual Add"])
    result, proto = quantized(given, include=("MatMul",))
    (skip,) = (s for s in result.report.skips if s.op == "MatMul")
    assert skip.reason == undo_unused_int8.REASON
    assert dequantized_weights(proto) == set()
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    (product,) = (n for n in proto.graph.node if n.op_type == "MatMul")
    assert stored[product.input[1]].dtype == np.float32
    assert sqnr(given, proto) > 30
    for feed in given.feeds:  # nor has ONNX Runtime quantized it by itself
        np.testing.assert_allclose(run(proto, feed)[0], run(proto, feed, optimize=False)[0], atol=1e-4)


def test_expanded_weights_are_read_from_the_optimized_graph() -> None:
    text = "g (float[64, 64] x) => (float[64, 64] y) { w = DequantizeLinear<axis = 1>(q, s) y = Mul(x, w) }"
    constants = {"q": np.ones((64, 64), np.int8), "s": np.ones(64, np.float32)}
    assert dequantized_weights(small(text, constants, x=(64, 64)).model) == {"q"}
    assert dequantized_weights(onnx.ModelProto()) == set(), "what does not load is for the proof to tell"


def test_a_large_model_is_looked_at_part_by_part_without_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of products: each part is optimized as it is in the whole model, and its weights are not read."""
    layers = "\n".join(
        f"w{i} = DequantizeLinear<axis = 1>(k{i}, t) "
        + (
            f"q{i} = QuantizeLinear(r{i - 1}, s, z) a{i} = DequantizeLinear(q{i}, s, z) p{i} = MatMul(a{i}, w{i}) "
            f"u{i} = QuantizeLinear(p{i}, s, z) r{i} = DequantizeLinear(u{i}, s, z)"
            if i % 2
            else f"p{i} = Mul({'x' if i == 0 else f'r{i - 1}'}, w{i}) r{i} = Tanh(p{i})"
        )
        for i in range(6)
    )
    text = f"g (float[72, 72] x) => (float[72, 72] y) {{ {layers} y = Neg(r5) }}"
    constants: dict[str, np.ndarray] = {f"k{i}": np.full((72, 72), i + 1, np.int8) for i in range(6)}
    constants |= {"s": np.float32(0.1), "z": np.uint8(128), "t": np.full(72, 0.01, np.float32)}
    model = load_model(small(text, constants, x=(72, 72)).model)
    shape_inference.infer(model)
    whole = dequantized_weights(model)
    assert whole == {"k0", "k2", "k4"}
    monkeypatch.setattr(memory, "part_bytes", lambda: 72 * 72)
    monkeypatch.setattr(weights, "read", lambda constant: pytest.fail("a matrix was read"))
    assert len(Parts(LeanModel.of(model), memory.part_bytes())) == 6
    assert dequantized_weights(model) == whole


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_restored_weights_are_those_of_the_input_with_and_without_proof(
    effort: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay runs no proof, but must restore the float model's weights too, to write the same bytes."""
    monkeypatch.setattr(make_plan, "_only_relu_reads", lambda *_: False)
    given = case(PRODUCTS["MatMul"], BEHIND["Relu and residual Add"])
    made = [
        onnxshot.quantize(
            given.model, given.feeds, include=("MatMul",), effort=effort,
            settings=onnxshot.Settings(verify=verify, use_cache=False, bench_seconds=0.01),
        ).model.to_proto()
        for verify in (True, False)
    ]  # fmt: skip
    assert made[0].SerializeToString(deterministic=True) == made[1].SerializeToString(deterministic=True)
    (product,) = (n for n in made[0].graph.node if n.op_type == "MatMul")
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in made[0].graph.initializer}
    (source,) = (onnx.numpy_helper.to_array(t) for t in given.model.graph.initializer if t.name == "w")
    np.testing.assert_array_equal(weights[product.input[1]], source)
