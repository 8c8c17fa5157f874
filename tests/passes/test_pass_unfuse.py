"""Fused operators of ONNX Runtime, each given to ONNX Runtime as it is and as it is taken apart."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import session
from handmade.core import Feed, model, vector, weight
from pass_checks import ops, outputs

from onnxshot.graph import Model, shape_inference
from onnxshot.graph.load import load_model
from onnxshot.passes.unfuse import Unfuse

_X = "float[n, 8, 16] x"
_RNG = np.random.default_rng(3)
_MASK = (_RNG.random((2, 8)) > 0.3).astype(np.int32)
_TABLES = {"words": weight(50, 16), "places": weight(12, 16), "parts": weight(2, 16)}
_GAMMA_BETA = {"g": vector(16, 1), "b": vector(16, 2)}
_QKV = {"w": weight(16, 48), "b": vector(48)}


@dataclass(frozen=True)
class Fused:
    """One operator: its text, what it reads, and the operators that it is to become."""

    text: str
    becomes: dict[str, int]
    constants: dict[str, Any] = field(default_factory=dict)
    feed: dict[str, Any] = field(default_factory=dict)
    runs: bool = True


def _picture(attrs: str, becomes: dict[str, int], z: str = "") -> Fused:
    inputs = "float[1, 3, 8, 8] x" + (", float[1, 4, 8, 8] z" if z else "")
    return Fused(
        f"g ({inputs}) => (float[1, 4, 8, 8] y)"
        f" {{ y = com.microsoft.FusedConv<pads = [1, 1, 1, 1]{attrs}>(x, w, b{z}) }}",
        becomes,
        {"w": weight(4, 3, 3, 3), "b": vector(4)},
        {"x": (1, 3, 8, 8), **({"z": (1, 4, 8, 8)} if z else {})},
    )


def _product(
    attrs: str, becomes: dict[str, int], x: tuple[int, ...], w: tuple[int, ...], op: str = "FusedMatMul"
) -> Fused:
    rank = len(x)
    text = f"g (float{list(x)} x) => (float{['a'] * rank} y) {{ y = com.microsoft.{op}<{attrs}>(x, w) }}".replace(
        "'", ""
    )
    return Fused(text.replace("[a, a]", "[a, c]"), becomes, {"w": weight(*w)}, {"x": x})


def _of_two(attrs: str, becomes: dict[str, int], x: tuple[int, ...], z: tuple[int, ...]) -> Fused:
    text = f"g (float{list(x)} x, float{list(z)} z) => (float[a, c, d, e] y)"
    text += f" {{ y = com.microsoft.FusedMatMul<{attrs}>(x, z) }}"
    return Fused(text, becomes, {}, {"x": x, "z": z})


def _attention(attrs: str, rest: str = "", more: str = "", outs: str = "y", **feed: Any) -> Fused:
    given = f"g ({_X}{more}) => (float[n, 8, c] y{', float[2, n, 4, t, 4] present' if 'present' in outs else ''})"
    text = f"{given} {{ {outs} = com.microsoft.Attention<num_heads = 4{attrs}>(x, w, b{rest}) }}"
    becomes = {"MatMul": 3, "Add": 3, "MultiHeadAttention": 1}
    if "past" in feed:
        becomes |= {"Split": 1, "Squeeze": 2, "Unsqueeze": 2, "Concat": 1}
    return Fused(text, becomes, _QKV, {"x": (2, 8, 16), **feed})


def _same_shape(op: str, reads: str, becomes: dict[str, int], *, runs: bool = True, **constants: Any) -> Fused:
    last = 8 if op == "BiasSplitGelu" else 16
    more = ", float[n, 8, 16] z" if "z" in reads.split(", ") else ""
    feed = {"x": (2, 8, 16), **({"z": (2, 8, 16)} if more else {})}
    return Fused(
        f"g ({_X}{more}) => (float[n, 8, {last}] y) {{ y = com.microsoft.{op}({reads}) }}",
        becomes,
        constants,
        feed,
        runs,
    )


_ERF = {"Div": 1, "Erf": 1, "Add": 1, "Mul": 2}
_TANH = {"Pow": 1, "Mul": 4, "Add": 2, "Tanh": 1}
CASES = {
    "conv": _picture("", {"Conv": 1}),
    "conv relu": _picture(', activation = "Relu"', {"Conv": 1, "Relu": 1}),
    "conv clip": _picture(', activation = "Clip", activation_params = [-0.2, 0.3]', {"Conv": 1, "Clip": 1}),
    "conv leaky": _picture(', activation = "LeakyRelu", activation_params = [0.3]', {"Conv": 1, "LeakyRelu": 1}),
    "conv hard": _picture(
        ', activation = "HardSigmoid", activation_params = [0.3, 0.4]', {"Conv": 1, "HardSigmoid": 1}
    ),
    "conv swish": _picture(', activation = "HardSwish"', {"Conv": 1, "HardSwish": 1}),
    "conv sum swish": _picture(', activation = "HardSwish"', {"Conv": 1, "Add": 1, "HardSwish": 1}, ", z"),
    "conv tanh": _picture(', activation = "Tanh"', {"Conv": 1, "Tanh": 1}),
    "conv sigmoid": _picture(', activation = "Sigmoid"', {"Conv": 1, "Sigmoid": 1}),
    "conv sum": _picture("", {"Conv": 1, "Add": 1}, ", z"),
    "conv sum relu": _picture(', activation = "Relu"', {"Conv": 1, "Add": 1, "Relu": 1}, ", z"),
    "gemm": _product(
        'activation = "LeakyRelu", activation_alpha = 0.3, alpha = 0.5, transB = 1',
        {"Gemm": 1, "LeakyRelu": 1},
        (3, 16),
        (4, 16),
        "FusedGemm",
    ),
    "matmul alpha": _product("alpha = 0.25", {"MatMul": 1}, (2, 8, 16), (16, 4)),
    "matmul turned": _product("transB = 1, alpha = 3.0", {"MatMul": 1}, (2, 8, 16), (4, 16)),
    "matmul left": _product("transA = 1", {"MatMul": 1, "Transpose": 1}, (2, 16, 8), (16, 4)),
    "transposed": _product("transB = 1", {"MatMul": 1}, (2, 8, 16), (4, 16), "TransposeMatMul"),
    "scores": _of_two("transB = 1, alpha = 0.3", {"Mul": 1, "Transpose": 1, "MatMul": 1}, (2, 3, 4, 5), (2, 3, 6, 5)),
    "batch left": _of_two("transBatchA = 1, transA = 1", {"Transpose": 1, "MatMul": 1}, (5, 2, 3, 4), (2, 3, 5, 6)),
    "batch right": _of_two("transBatchB = 1, transB = 1", {"Transpose": 1, "MatMul": 1}, (2, 3, 4, 5), (6, 2, 3, 5)),
    "bias gelu": _same_shape("BiasGelu", "x, w", {**_ERF, "Add": 2}, w=vector(16)),
    "gelu": _same_shape("Gelu", "x", _ERF),
    "fast gelu": _same_shape("FastGelu", "x", _TANH),
    "fast gelu of a sum": _same_shape("FastGelu", "x, w", {**_TANH, "Add": 3}, w=vector(16)),
    "quick gelu": _same_shape("QuickGelu", "x", {"Mul": 2, "Sigmoid": 1}),
    "bias add": _same_shape("BiasAdd", "x, w, z", {"Add": 2}, runs=False, w=vector(16)),
    "bias split gelu": _same_shape(
        "BiasSplitGelu", "x, w", {**_ERF, "Add": 2, "Split": 1, "Mul": 3}, runs=False, w=vector(16)
    ),
    "skip norm": _same_shape(
        "SkipLayerNormalization", "x, z, g, b", {"Add": 1, "LayerNormalization": 1}, **_GAMMA_BETA
    ),
    "skip norm of one": _same_shape(
        "SkipLayerNormalization", "x, s, g", {"Add": 1, "LayerNormalization": 1}, g=vector(16), s=weight(8, 16)
    ),
    "skip norm, bias": _same_shape(
        "SkipLayerNormalization", "x, z, g, b, c", {"Add": 2, "LayerNormalization": 1}, **_GAMMA_BETA, c=vector(16, 4)
    ),
    "skip simple": _same_shape(
        "SkipSimplifiedLayerNormalization", "x, z, g", {"Add": 1, "SimplifiedLayerNormalization": 1}, g=vector(16)
    ),
    "skip, its sum": Fused(
        f"g ({_X}) => (float[n, 8, 16] y, float[n, 8, 16] s)"
        " { y, , , s = com.microsoft.SkipLayerNormalization<epsilon = 0.1>(x, x, g, b) }",
        {"Add": 1, "LayerNormalization": 1},
        _GAMMA_BETA,
        {"x": (2, 8, 16)},
    ),
    "embeddings": Fused(
        "g (int32[n, l] ids, int32[n, l] seg, int32[n, l] mask) => (float[n, l, 16] y, int32[n] m) {"
        " y, m = com.microsoft.EmbedLayerNormalization(ids, seg, words, places, parts, g, b, mask) }",
        {
            "Gather": 4,
            "Shape": 1,
            "Range": 1,
            "Unsqueeze": 1,
            "Add": 2,
            "LayerNormalization": 1,
            "Cast": 1,
            "ReduceSum": 1,
        },
        {**_TABLES, **_GAMMA_BETA},
        {"ids": _RNG.integers(0, 50, (2, 8)), "seg": _RNG.integers(0, 2, (2, 8)), "mask": _MASK},
    ),
    "embeddings at": Fused(
        "g (int32[n, l] ids, int32[n, l] at) => (float[n, l, 16] y, float[n, l, 16] s) {"
        ' y, , s = com.microsoft.EmbedLayerNormalization(ids, "", words, places, "", g, b, "", at) }',
        {"Gather": 2, "Add": 1, "Identity": 1, "LayerNormalization": 1},
        {"words": _TABLES["words"], "places": _TABLES["places"], **_GAMMA_BETA},
        {"ids": _RNG.integers(0, 50, (2, 8)), "at": _RNG.integers(0, 12, (2, 8))},
    ),
    "attention": _attention(""),
    "attention causal": _attention(", unidirectional = 1, scale = 0.3"),
    "attention sizes": _attention(", qkv_hidden_sizes = [8, 8, 32]"),
    "attention mask": _attention("", ", mask", ", int32[n, t] mask", mask=_MASK),
    "attention mask of pairs": _attention(
        "", ", mask", ", int32[n, s, t] mask", mask=(_RNG.random((2, 8, 8)) > 0.3).astype(np.int32)
    ),
    "attention past": _attention(
        ", unidirectional = 1", ', "", past', ", float[2, n, 4, p, 4] past", "y, present", past=(2, 2, 4, 5, 4)
    ),
    "attention scores": _attention("", ', "", "", extra', ", float[n, 4, 8, 8] extra", extra=(2, 4, 8, 8)),
}


def _built(one: Fused, opset: int) -> tuple[onnx.ModelProto, Feed]:
    text = one.text.replace('""', "")
    feed = {
        key: np.asarray(value, np.int32)
        if isinstance(value, np.ndarray)
        else np.random.default_rng(len(key)).normal(size=value).astype(np.float32)
        for key, value in one.feed.items()
    }
    return model(text, one.constants, opset=opset, imports=', "com.microsoft": 1'), feed


def _unfused(proto: onnx.ModelProto) -> tuple[Model, int]:
    after = load_model(proto)
    shape_inference.infer(after)
    return after, Unfuse().run(after).edits


@pytest.mark.parametrize("opset", [11, 13, 20])
@pytest.mark.parametrize("name", CASES)
def test_taken_apart(name: str, opset: int) -> None:
    proto, feed = _built(CASES[name], opset)
    after, edits = _unfused(proto)
    assert edits == 1
    if opset < 20:
        found = {op: n for op, n in ops(after).items() if op != "Constant"}
        wanted = dict(CASES[name].becomes)
        if opset < 14 and wanted.pop("HardSwish", 0):
            wanted |= {"HardSigmoid": 1, "Mul": 1}
        assert found == wanted
    if CASES[name].runs:
        for expected, got in zip(outputs(proto, feed), outputs(after.to_proto(), feed), strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_bias_add_and_split_gelu_by_their_definition() -> None:
    proto, feed = _built(CASES["bias add"], 17)
    expected = feed["x"] + CASES["bias add"].constants["w"] + feed["z"]
    np.testing.assert_allclose(outputs(_unfused(proto)[0].to_proto(), feed)[0], expected, rtol=1e-6, atol=1e-6)
    proto, feed = _built(CASES["bias split gelu"], 17)
    left, right = np.split(feed["x"] + CASES["bias split gelu"].constants["w"], 2, axis=-1)
    erf = session(model("g (float[n, 8, 8] x) => (float[n, 8, 8] y) { y = Erf(x) }").SerializeToString())
    gate = 0.5 * (1 + erf.run(None, {"x": right / np.sqrt(np.float32(2))})[0])
    found = outputs(_unfused(proto)[0].to_proto(), feed)[0]
    np.testing.assert_allclose(found, left * right * gate, rtol=1e-5, atol=1e-5)


def test_lengths_become_a_mask_where_they_are_known_to_be_lengths() -> None:
    one = _attention("", ", mask", ", int32[n] mask", mask=np.array([3, 8]))
    proto, feed = _built(one, 17)
    after, edits = _unfused(proto)
    assert (edits, ops(after)["Less"]) == (1, 1)
    np.testing.assert_allclose(outputs(after.to_proto(), feed)[0], outputs(proto, feed)[0], rtol=1e-5, atol=1e-5)
    unknown = _attention("", ", mask", ", int32[k] mask", mask=np.array([3, 8]))
    assert _unfused(_built(unknown, 17)[0])[1] == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('y = com.microsoft.FusedConv<activation = "Mish">(x, w)', "'Mish' has no standard form"),
        ("y = com.microsoft.Attention<num_heads = 2>(x, v, w)", "not constant"),
        ("y, m = com.microsoft.SkipLayerNormalization(x, x, w) z = Neg(m)", "its mean or its variance is read"),
        ("y = com.microsoft.FusedMatMul<transA = 1>(v, w)", "is not known"),
    ],
)
def test_what_stays_says_why(text: str, why: str) -> None:
    more = ", float z" if "z =" in text else ""
    proto = model(
        f"g (float[a, b, c] x, float v) => (float y{more}) {{ {text} }}",
        {"w": weight(4, 4)},
        imports=', "com.microsoft": 1',
    )
    for info in (*proto.graph.input[1:], *proto.graph.output):
        info.type.tensor_type.ClearField("shape")
    after = load_model(proto)
    change = Unfuse().run(after)
    assert change.edits == 0
    assert why in change.skips[0].reason
