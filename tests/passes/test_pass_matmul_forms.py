"""Einsums and products in other forms become MatMuls that int8 kernels know, and compute what they computed."""

from typing import Any

import numpy as np
import onnx
import pytest
from handmade import HANDMADE
from handmade.core import Feed, feeds, model, weight
from planned_models import FAST, PROVEN, initializers, nodes_of, planned, quantized, run, small, sqnr

import onnxshot
from onnxshot.graph.load import load_model
from onnxshot.passes.canonical_matmul import CanonicalMatMul
from onnxshot.passes.einsum_to_matmul import EinsumToMatMul
from onnxshot.runtimes.ort_executed import executed

SIZES = dict(zip("abcdefghijklmnop", (2, 3, 16, 32, 4, 24, 5, 8, 48, 7, 64, 6, 40, 20, 56, 12), strict=True))


def einsum(equation: str, slot: int = 1, opset: int = 17) -> tuple[onnx.ModelProto, list[Feed]]:
    """An Einsum whose operand `slot` is a weight; sizes by letter."""
    left, _, right = equation.partition("->")
    terms = [tuple(SIZES[c] for c in term) for term in left.split(",")]
    x, w = terms[1 - slot], terms[slot]
    operands = ("x, w", "w, x")[1 - slot]
    out = ", ".join(str(SIZES[c]) for c in right)
    text = f"""g (float[{", ".join(map(str, x))}] x) => (float[{out}] y) {{
        [product] y = Einsum<equation = "{equation}">({operands})
    }}"""
    return model(text, {"w": weight(*w)}, opset=opset), feeds(3, x=x)


EQUATIONS = {  # equation -> ops besides the MatMul
    "bc,ck->bk": [],
    "abc,ck->abk": [],
    "abd,edf->abef": ["Reshape"],
    "abd,edf->aebf": ["Reshape", "Transpose"],
    "abd,efd->abef": ["Reshape"],
    "ad,edi->aei": ["Reshape"],
    "aebf,efd->aebd": [],
    "abef,efd->abed": ["Transpose", "Transpose"],
    "ebd,edi->ebi": [],
    "abed,edi->abei": ["Transpose", "Transpose"],
    "abed,edi->abi": ["Reshape"],
    "aebd,edi->abi": ["Reshape", "Transpose"],
    "dab,di->abi": ["Transpose"],
    "abd,di->iab": ["Transpose"],
    "aebhd,ehdk->aebhk": ["Transpose", "Transpose"],
}


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_an_einsum_of_a_weight_becomes_a_matmul(equation: str, slot: int) -> None:
    x, w = equation.partition("->")[0].split(",")
    text = equation if slot else f"{w},{x}->{equation.partition('->')[2]}"
    proto, given = einsum(text, slot)
    ready = load_model(proto)
    assert EinsumToMatMul().run(ready).edits == 1
    made = ready.to_proto()
    onnx.checker.check_model(made, full_check=True)
    assert sorted(n.op_type for n in made.graph.node) == sorted(["MatMul", *EQUATIONS[equation]])
    assert [n.name for n in made.graph.node if n.op_type == "MatMul"] == ["product"]
    for feed in given:
        (wanted,), (found,) = run(proto, feed), run(made, feed)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))


@pytest.mark.parametrize(
    "equation",
    ["abc,c->ab", "abc,bc->abc", "ac,ck->k", "abc,cd->bd", "abc,dk->abcdk", "c,ck->k"],
)
def test_what_is_no_product_of_matrices_stays_an_einsum(equation: str) -> None:
    proto, _ = einsum(equation)
    ready = load_model(proto)
    change = EinsumToMatMul().run(ready)
    assert change.edits == 0
    assert change.skips[0].reason
    assert [n.op for n in ready.graph.nodes] == ["Einsum"]


@pytest.mark.parametrize("text", ["...c,ck->...k", "abc,ck", "aac,ck->ak"])
def test_equations_that_are_not_read_stay(text: str) -> None:
    shape = {"...c,ck->...k": "2, 3, 16", "abc,ck": "2, 3, 16", "aac,ck->ak": "2, 2, 16"}[text]
    proto = model(f'g (float[{shape}] x) => (float y) {{ y = Einsum<equation = "{text}">(x, w) }}',
                  {"w": weight(16, 64)})  # fmt: skip
    ready = load_model(proto)
    change = EinsumToMatMul().run(ready)
    assert change.edits == 0
    assert change.skips[0].reason


EXPERTS = """g (float[2, 12, 64] x) => (float[2, 12, 64] y) {
    a = Einsum<equation = "btd,edf->betf">(x, w1)
    g = Sigmoid(a)
    h = Mul(a, g)
    o = Einsum<equation = "betf,efd->betd">(h, w2)
    p = MatMul(x, router)
    s = Softmax<axis = -1>(p)
    y = Einsum<equation = "betd,bte->btd">(o, s)
}"""


def experts() -> tuple[onnx.ModelProto, list[Feed]]:
    constants = {"w1": weight(4, 64, 96), "w2": weight(4, 96, 64), "router": weight(64, 4)}
    return model(EXPERTS, constants), feeds(8, x=(2, 12, 64))


def test_experts_of_einsums_run_in_int8() -> None:
    proto, given = experts()
    result = onnxshot.quantize(proto, given, settings=PROVEN)
    assert result.report.int8_macs_share is not None
    assert result.report.int8_macs_share > 0.9
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 30
    assert result.model.to_proto().ByteSize() < 0.35 * proto.ByteSize()
    assert {row.node: row.how for row in result.plan.nodes if row.op == "MatMul"} == {
        "Einsum_a": "dynamic", "Einsum_o": "dynamic", "MatMul_p": "float",
    }  # fmt: skip


def test_patterns_still_find_what_was_an_einsum() -> None:
    """By the op that a user knows, by name, and by the tensor that it gives."""
    proto, given = experts()
    for pattern in ("Einsum", "Einsum_o", "o"):
        result = onnxshot.quantize(proto, given, exclude=(pattern,), settings=FAST)
        kept = {row.node: row.how for row in result.plan.nodes}
        assert kept["Einsum_o"] == "float", pattern
        assert nodes_of(result.model.to_proto(), "Einsum")
    asked = onnxshot.quantize(proto, given, include=("Einsum",), settings=FAST)
    assert len(nodes_of(asked.model.to_proto(), "Einsum")) == 1, "that of two activations"
    onnxshot.quantize(proto, given, include=("o",), settings=FAST)


@pytest.mark.parametrize("shape", [(4, 12, 64), (2, 4, 12, 64), (12, 64), (1, 12, 64)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_of_rank_3_in_numbers(shape: tuple[int, ...], per_channel: bool) -> None:
    w = weight(4, 64, 48)
    w[1] *= 50
    out = (*shape[:-3], 4, *shape[-2:-1], 48)
    dims = [", ".join(map(str, s)) for s in (shape, out)]
    case = small(f"g (float[{dims[0]}] x) => (float[{dims[1]}] y) {{ y = MatMul(x, w) }}", {"w": w}, x=shape)
    _, made = quantized(case, mode="dynamic", per_channel=per_channel)
    ran = executed(made.SerializeToString()).ops
    assert ran == {"DynamicQuantizeMatMul": 1} | {k: n for k, n in ran.items() if k != "DynamicQuantizeMatMul"}
    (product,) = nodes_of(made, "MatMulInteger")
    values = initializers(made)
    assert values[product.input[1]].dtype == np.int8
    scale = np.abs(w).max(axis=1, keepdims=True) / 127 if per_channel else np.abs(w).max() / 127
    np.testing.assert_array_equal(values[product.input[1]], np.rint(w / scale.astype(np.float32)))
    for feed in case.feeds:
        x = feed["x"]
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        x_scale = np.float32((high - low) / 255)
        zero = int(np.clip(np.rint(-low / x_scale), 0, 255))
        x_q = np.clip(np.rint(x / x_scale) + zero, 0, 255) - zero
        wanted = (x_q.astype(np.float64) @ np.rint(w / scale)) * x_scale * scale
        for optimize in (False, True):
            (found,) = run(made, feed, optimize=optimize)
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(np.abs(wanted).max()))
    if per_channel:
        assert sqnr(case, made) > 30


def test_one_row_for_each_matrix_stays_float_in_8_bits() -> None:
    case = small("g (float[4, 1, 64] x) => (float[4, 1, 48] y) { y = MatMul(x, w) }", {"w": weight(4, 64, 48)},
                 x=(4, 1, 64))  # fmt: skip
    result, made = quantized(case)
    assert not nodes_of(made, "MatMulInteger")
    (skip,) = (s for s in result.report.skips if s.op == "MatMul")
    assert skip.reason.startswith("its input has one row per matrix")
    assert skip.reason.endswith("its weight is stored in 8 bits")
    assert made.ByteSize() < 0.35 * case.model.ByteSize()


def test_products_of_many_matrices_that_read_one_tensor_are_one() -> None:
    text = "g (float[4, 12, 64] x) => (float[4, 12, 48] y) { a = MatMul(x, w) b = MatMul(x, v) y = Mul(a, b) }"
    case = small(text, {"w": weight(4, 64, 48), "v": weight(4, 64, 48, seed=1)}, x=(4, 12, 64))
    _, made = quantized(case)
    assert len(nodes_of(made, "MatMulInteger")) == 1
    assert sqnr(case, made) > 28


def test_a_weight_of_two_experts_layers_is_stored_once() -> None:
    text = """g (float[2, 12, 64] x) => (float[2, 4, 12, 64] y) {
        a = Einsum<equation = "btd,edf->betf">(x, w1)
        o = Einsum<equation = "betf,efd->betd">(a, w2)
        n = Neg(x)
        b = Einsum<equation = "btd,edf->betf">(n, w1)
        p = Einsum<equation = "betf,efd->betd">(b, w2)
        y = Add(o, p)
    }"""
    case = small(text, {"w1": weight(4, 64, 96), "w2": weight(4, 96, 64)}, x=(2, 12, 64))
    _, made = quantized(case)
    sizes = [v.size for v in initializers(made).values() if v.dtype == np.int8 and v.ndim > 1]
    assert sizes == [4 * 64 * 96] * 2


TURNED: dict[str, tuple[str, tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "alpha and beta": ("Gemm<alpha = 0.5, beta = 2.0>(x, w, b)", (6, 64), {"w": (64, 96), "b": (96,)}),
    "alpha alone": ("Gemm<alpha = 0.25, transB = 1>(x, w)", (6, 64), {"w": (96, 64)}),
    "a transposed input": ("Gemm<transA = 1>(x, w, b)", (64, 6), {"w": (64, 96), "b": (96,)}),
    "everything": (
        "Gemm<alpha = 3.0, beta = 0.5, transA = 1, transB = 1>(x, w, b)", (64, 6), {"w": (96, 64), "b": (96,)}
    ),
    "left": ("MatMul(w, x)", (256, 24), {"w": (256, 256)}),
    "left of many": ("MatMul(w, x)", (2, 3, 256, 24), {"w": (200, 256)}),
    "left Gemm": ("Gemm(w, x)", (256, 24), {"w": (256, 256)}),
    "left Gemm, a column": ("Gemm<beta = 2.0>(w, x, b)", (256, 24), {"w": (256, 256), "b": (256, 1)}),
    "left Gemm, one value": ("Gemm(w, x, b)", (256, 24), {"w": (256, 256), "b": (1,)}),
    "left Gemm, a row": ("Gemm<alpha = 2.0>(w, x, b)", (256, 24), {"w": (256, 256), "b": (24,)}),
    "left Gemm, both transposed": ("Gemm<transA = 1, transB = 1>(w, x)", (24, 256), {"w": (256, 200)}),
    "one matrix of rank 3": ("MatMul(x, w)", (2, 6, 64), {"w": (1, 64, 96)}),
}  # fmt: skip


def product(body: str, shape: tuple[int, ...], constants: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    given: dict[str, Any] = {name: weight(*size) if len(size) > 1 else weight(*size, 1)[:, 0]
                             for name, size in constants.items()}  # fmt: skip
    proto = model(f"g (float[{', '.join(map(str, shape))}] x) => (float y) {{ y = {body} }}", given)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(proto)


@pytest.mark.parametrize("name", TURNED)
def test_a_product_in_another_form_is_turned_and_runs_in_int8(name: str) -> None:
    body, shape, constants = TURNED[name]
    proto, given = product(body, shape, constants), feeds(6, x=shape)
    ready = load_model(proto)
    assert CanonicalMatMul().run(ready).edits == 1
    turned = ready.to_proto()
    onnx.checker.check_model(turned, full_check=True)
    for feed in given[:2]:
        (wanted,) = run(proto, feed)
        np.testing.assert_allclose(run(turned, feed)[0], wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))
    result = onnxshot.quantize(proto, given, settings=PROVEN, effort="fast")
    assert result.report.int8_macs_share == 1.0
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 28
    assert list(result.model.to_proto().graph.output) == list(proto.graph.output)


@pytest.mark.parametrize(
    ("body", "shape", "constants"),
    [
        ("MatMul(w, x)", (48, 24), {"w": (48, 48)}),  # two Transposes would cost more
        ("Gemm(x, w, b)", (6, 64), {"w": (64, 96), "b": (96,)}),  # nothing to be done
        ("MatMul(w, x)", (2, 256, 24), {"w": (2, 256, 256)}),
    ],
)
def test_what_does_not_pay_stays(body: str, shape: tuple[int, ...], constants: dict[str, tuple[int, ...]]) -> None:
    ready = load_model(product(body, shape, constants))
    assert CanonicalMatMul().run(ready).edits == 0


def test_a_product_that_is_left_out_keeps_its_form() -> None:
    for name, options in (("gemm_trans_a", {"exclude": ("Gemm",)}), ("gemm_trans_a", {"mode": "weights"})):
        case = HANDMADE[name]()
        ready, _ = planned(case, **options)
        assert [n.op for n in ready.graph.nodes] == [n.op_type for n in case.model.graph.node]


@pytest.mark.parametrize("around", ["Transpose<perm = [1, 0]>(w)", "Reshape(w, s)", "Squeeze(u)", "Identity(w)",
                                    "Cast<to = 1>(h)", "Unsqueeze(w, axis)"])  # fmt: skip
def test_a_weight_behind_ops_that_move_it_is_quantized(around: str) -> None:
    constants: Feed = {"w": weight(64, 64), "s": np.array([64, 64]), "u": weight(1, 64, 64), "axis": np.array([0])}
    constants["h"] = weight(64, 64).astype(np.float16)
    used = {name: value for name, value in constants.items() if name in around.replace("perm", "")}
    out = "1, 12, 64" if "axis" in around else "12, 64"
    case = small(f"g (float[12, 64] x) => (float[{out}] y) {{ v = {around} y = MatMul(x, v) }}", used, x=(12, 64))
    _, made = quantized(case)
    assert nodes_of(made, "MatMulInteger"), [n.op_type for n in made.graph.node]
    assert sqnr(case, made) > 30
