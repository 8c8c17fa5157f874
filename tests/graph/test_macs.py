from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxshot.graph.load import load_model
from onnxshot.graph.macs import concrete_shapes, count, macs
from onnxshot.graph.model import Model


def parsed(text: str, imports: str = "", **weights: tuple[int, ...]) -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17{imports}]>\n{text}')
    for name, shape in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.full(shape, 0.5, np.float32), name))
    return proto


def only(proto: onnx.ModelProto, **feed: tuple[int, ...]) -> int:
    """Multiply-accumulates of the only node that multiplies matrices."""
    found = macs(Model(proto), feed)
    assert len(found) == 1
    return next(iter(found.values()))


@pytest.mark.parametrize(
    ("text", "weights", "feed", "expected"),
    [
        ("(float[N,3,8,8] x) => (float[N,4,8,8] y) { y = Conv<pads=[1,1,1,1]>(x, w) }",
         {"w": (4, 3, 3, 3)}, (2, 3, 8, 8), 2 * 4 * 64 * 27),
        ("(float[N,8,9,9] x) => (float[N,8,5,5] y) { y = Conv<pads=[1,1,1,1], strides=[2,2], group=8>(x, w) }",
         {"w": (8, 1, 3, 3)}, (1, 8, 9, 9), 8 * 25 * 9),
        ("(float[N,8,5] x) => (float[N,4,M] y) { y = Conv<group=2>(x, w) }",
         {"w": (4, 4, 2)}, (3, 8, 5), 3 * 4 * 4 * 8),
        ("(float[1,6,5,5] x) => (float[1,4,10,10] y) { y = ConvTranspose<strides=[2,2]>(x, w) }",
         {"w": (6, 4, 2, 2)}, (1, 6, 5, 5), 6 * 25 * 16),
        ("(float[N,8] x) => (float[N,4] y) { y = Gemm(x, w) }", {"w": (8, 4)}, (5, 8), 5 * 4 * 8),
        ("(float[N,8] x) => (float[N,4] y) { y = Gemm<transB=1>(x, w) }", {"w": (4, 8)}, (5, 8), 5 * 4 * 8),
        ("(float[N,T,8] x) => (float[N,T,4] y) { y = MatMul(x, w) }", {"w": (8, 4)}, (2, 7, 8), 2 * 7 * 4 * 8),
        ("(float[N,H,T,8] x) => (float[N,H,T,T] y) { k = Transpose<perm=[0,1,3,2]>(x)  y = MatMul(x, k) }",
         {}, (2, 3, 5, 8), 2 * 3 * 5 * 5 * 8),
        ("(float[8] x) => (float[4] y) { y = MatMul(x, w) }", {"w": (8, 4)}, (8,), 32),
        ("(float[T,B,6] x) => (float[T,1,B,5] y) { y = LSTM<hidden_size=5>(x, w, r) }",
         {"w": (1, 20, 6), "r": (1, 20, 5)}, (9, 2, 6), 9 * 2 * 20 * (6 + 5)),
        ("(float[T,B,6] x) => (float[T,2,B,5] y) { y = GRU<hidden_size=5, direction=\"bidirectional\">(x, w, r) }",
         {"w": (2, 15, 6), "r": (2, 15, 5)}, (9, 2, 6), 9 * 2 * 2 * 15 * (6 + 5)),
    ],
)  # fmt: skip
def test_macs_equal_the_count_by_hand(
    text: str, weights: dict[str, tuple[int, ...]], feed: tuple[int, ...], expected: int
) -> None:
    assert only(parsed(f"g {text}", **weights), x=feed) == expected


def test_free_dimensions_count_as_one_without_a_feed() -> None:
    proto = parsed("g (float[N,T,8] x) => (float[N,T,4] y) { y = MatMul(x, w) }", w=(8, 4))
    assert only(proto) == 32


def test_one_symbol_has_one_size_in_all_inputs() -> None:
    proto = parsed("g (float[N,8] a, float[N,8] b) => (float[N,4] y) { y = MatMul(b, w) z = Identity(a) }", w=(8, 4))
    assert only(proto, a=(6, 8)) == 6 * 32


def test_stated_shapes_of_the_exporters_example_are_ignored() -> None:
    proto = parsed("g (float[N,8] x) => (float[1,4] y) { h = Relu(x)  y = MatMul(h, w) }", w=(8, 4))
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("h", 1, [1, 8]))
    assert only(proto, x=(6, 8)) == 6 * 32


def test_quantized_nodes_count_like_float_ones() -> None:
    ints = {"w": np.ones((4, 3, 3, 3), np.int8), "s": np.float32(0.1), "z": np.uint8(3), "wz": np.int8(0)}
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (uint8[N,3,8,8] x) => (uint8[N,4,6,6] y) { y = QLinearConv(x, s, z, w, s, wz, s, z) }"""
    )
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in ints.items())
    assert only(proto, x=(2, 3, 8, 8)) == 2 * 4 * 36 * 27


def test_stated_shapes_are_used_behind_unknown_operators() -> None:
    text = 'g (float[N,8] x) => (float[N,4] y) { h = custom.Thing(x)  y = MatMul(h, w) }'
    proto = parsed(text, ', "custom": 1', w=(8, 4))
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("h", 1, ["N", 8]))
    assert only(proto, x=(6, 8)) == 6 * 32


def test_a_missing_shape_is_marked_and_counts_one_position() -> None:
    text = 'g (float[N,8,T] x) => (float[N,4,T] y) { h = custom.Thing(x)  k = Conv(h, w)  y = custom.Thing(k) }'
    model = Model(parsed(text, ', "custom": 1', w=(4, 8, 3)))
    (row,) = count(model, concrete_shapes(model, {"x": (1, 8, 5)}))
    assert (row.macs, row.exact) == (96, False)


def test_branches_count_and_unnamed_nodes_are_labelled_by_their_output() -> None:
    text = """g (bool c, float[N,8] x) => (float[N,4] y) {
        y = If (c) <then_branch = t () => (float[N,4] a) { a = MatMul(x, w) },
                    else_branch = e () => (float[N,4] b) { b = Gemm(x, w) }> }"""
    found = macs(Model(parsed(text, w=(8, 4))), {"c": (), "x": (3, 8)})
    assert found == {"a": 96, "b": 96}


def test_large_weights_are_not_read(tmp_path: Any) -> None:
    proto = parsed("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", w=(64, 64))
    onnx.save(proto, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    model = load_model(tmp_path / "m.onnx")
    (tmp_path / "w.bin").unlink()
    assert macs(model, {"x": (2, 64)}) == {"y": 2 * 64 * 64}


EINSUM = "g (float[2,3,4] x) => (float y) {{ y = Einsum<equation = \"{equation}\">({inputs}) }}"


@pytest.mark.parametrize(
    ("equation", "inputs", "weights", "expected"),
    [
        ("abc,cd->abd", "x, w", {"w": (4, 5)}, 2 * 3 * 4 * 5),
        ("abc, cd", "x, w", {"w": (4, 5)}, 2 * 3 * 4 * 5),
        ("...c,cd->...d", "x, w", {"w": (4, 5)}, 2 * 3 * 4 * 5),
        ("...,...->...", "x, w", {"w": (4,)}, 2 * 3 * 4),  # an elementwise product is one too
        ("abc,cd,de->abe", "x, w, v", {"w": (4, 5), "v": (5, 6)}, 2 * 3 * 4 * 5 + 2 * 3 * 5 * 6),
        ("abc,abc->", "x, x", {}, 2 * 3 * 4),
        ("abc->ab", "x", {}, 0),
    ],
)
def test_an_einsum_counts_products_over_its_letters(
    equation: str, inputs: str, weights: dict[str, tuple[int, ...]], expected: int
) -> None:
    assert only(parsed(EINSUM.format(equation=equation, inputs=inputs), **weights), x=(2, 3, 4)) == expected


def contrib(op: str, shapes: dict[str, tuple[int, ...]], out: tuple[int, ...], **attributes: Any) -> int:
    """Multiply-accumulates of one com.microsoft operator; a name with a dash is an absent input."""
    domain = attributes.pop("domain", "com.microsoft")
    node = onnx.helper.make_node(op, ["" if "-" in n else n for n in shapes], ["y"], domain=domain, **attributes)
    floats = onnx.TensorProto.FLOAT
    given = [onnx.helper.make_tensor_value_info(n, floats, s) for n, s in shapes.items() if "-" not in n]
    graph = onnx.helper.make_graph([node], "g", given, [onnx.helper.make_tensor_value_info("y", floats, out)])
    ids = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("com.microsoft", 1)]
    return only(onnx.helper.make_model(graph, opset_imports=ids, ir_version=10))


def test_attention_counts_projections_and_attention_products() -> None:
    """Batch 2, 5 steps, width 8, and 3 steps of the past where there is one: projections, then q k' and p v."""
    both = 2 * 5 * 5 * (8 + 8)
    heads, past = (2, 5, 8), (2, 4, 3, 2)
    packed = 2 * 5 * 8 * 24 + both
    assert contrib("Attention", {"x": heads, "w": (8, 24)}, heads, num_heads=4) == packed
    qkv = [4, 4, 8]
    narrow = 2 * 5 * 8 * 16 + 2 * 5 * 5 * (4 + 8)
    assert contrib("Attention", {"x": heads, "w": (8, 16)}, heads, num_heads=4, qkv_hidden_sizes=qkv) == narrow
    states = {"x": heads, "w": (8, 24), "b-": (), "m-": (), "past": (2, 2, 4, 3, 2)}
    assert contrib("Attention", states, heads, num_heads=4) == 2 * 5 * 8 * 24 + 2 * 5 * 8 * 16
    assert contrib("MultiHeadAttention", {"q": heads, "k": (2, 7, 8), "v": (2, 7, 8)}, heads) == 2 * 5 * 7 * 16
    assert contrib("MultiHeadAttention", {"q": (2, 5, 4, 3, 2)}, heads, num_heads=4) == both
    grouped = {"q": heads, "k": (2, 5, 4), "v": (2, 5, 4), "pk": (2, 2, 3, 2), "pv": (2, 2, 3, 2)}
    assert contrib("GroupQueryAttention", grouped, heads, num_heads=4, kv_num_heads=2) == 2 * 5 * 8 * 16
    standard = {"q": (2, 4, 5, 2), "k": (2, 4, 5, 2), "v": (2, 4, 5, 2), "m-": (), "pk": past, "pv": past}
    assert contrib("Attention", standard, (2, 4, 5, 2), domain="") == 2 * 5 * 8 * 16


def test_experts_and_other_contrib_operators_count() -> None:
    moe = {"x": (2, 5, 8), "r": (10, 4), "a": (4, 8, 16), "b-": (), "c": (4, 16, 8)}
    assert contrib("MoE", moe, (2, 5, 8), k=2) == 10 * 2 * (8 * 16 + 16 * 8)
    assert contrib("CDist", {"x": (3, 8), "w": (5, 8)}, (3, 5), metric="euclidean") == 3 * 5 * 8
    assert contrib("FusedMatMul", {"x": (2, 8, 5), "w": (2, 8, 6)}, (2, 5, 6), transA=1) == 2 * 5 * 6 * 8


def test_attention_inside_a_quantized_operator_counts_as_float() -> None:
    node = onnx.helper.make_node("QAttention", ["x", "w"], ["y"], domain="com.microsoft", num_heads=4)
    given = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in {"x": (2, 5, 8), "w": (8, 24)}.items()]
    graph = onnx.helper.make_graph([node], "g", given, [onnx.helper.make_tensor_value_info("y", 1, (2, 5, 8))])
    ready = Model(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("com.microsoft", 1)]))
    (row,) = count(ready, concrete_shapes(ready))
    assert (row.macs, row.in_float) == (2 * 5 * 8 * 24 + 2 * 5 * 5 * 16, 2 * 5 * 5 * 16)
