from typing import Any

import numpy as np
import pytest
from handmade import HANDMADE
from handmade.core import feeds, model, vector, weight
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_checks import ops, reasons, rewritten, tensor

from onnxshot.graph import weights
from onnxshot.passes.fold_batchnorm import FoldBatchNorm


def norm(channels: int, dtype: Any = np.float32) -> dict[str, Any]:
    """Constants of a BatchNormalization."""
    return {
        "s": vector(channels, 1, 0.5, 2).astype(dtype),
        "b": vector(channels, 2).astype(dtype),
        "m": vector(channels, 3).astype(dtype),
        "v": vector(channels, 4, 0.1, 2).astype(dtype),
    }


BN = "y = BatchNormalization(h, s, b, m, v)"


@settings(max_examples=20)
@given(st.sampled_from([1, 2, 4]), st.booleans(), st.sampled_from(["Conv", "ConvTranspose"]))
def test_grouped_convolutions(groups: int, with_bias: bool, op: str) -> None:
    shape = (8, 4 // groups, 3, 3) if op == "Conv" else (4, 8 // groups, 3, 3)
    bias = ", c" if with_bias else ""
    text = f"""g (float[n, 4, 6, 6] x) => (float[n, 8, 6, 6] y) {{
        h = {op}<pads = [1, 1, 1, 1], group = {groups}>(x, w{bias}) {BN}
    }}"""
    constants = {"w": weight(*shape), **norm(8)} | ({"c": vector(8)} if with_bias else {})
    after, change = rewritten(model(text, constants), FoldBatchNorm(), *feeds(1, x=(2, 4, 6, 6)))
    assert change.edits == 1
    assert ops(after) == {op: 1}


@settings(max_examples=20)
@given(
    st.booleans(),
    st.sampled_from(["", "c", "scalar", "row", "column"]),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from([0.0, 2.0]),
)
def test_gemm(trans_b: bool, bias: str, alpha: float, beta: float) -> None:
    text = f"""g (float[3, 4] x) => (float[3, 8] y) {{
        h = Gemm<transB = {int(trans_b)}, alpha = {alpha}, beta = {beta}>(x, w{", " if bias else ""}{bias}) {BN}
    }}"""
    constants = {"w": weight(8, 4) if trans_b else weight(4, 8), **norm(8)}
    biases = {"c": vector(8), "scalar": np.array(2, np.float32), "row": weight(1, 8), "column": weight(3, 1)}
    constants |= {k: v for k, v in biases.items() if k == bias}
    after, change = rewritten(model(text, constants), FoldBatchNorm(), *feeds(1, x=(3, 4)))
    assert change.edits == 1
    assert ops(after) == {"Gemm": 1}


def test_matmul_becomes_gemm() -> None:
    text = f"g (float[n, 4] x) => (float[n, 8] y) {{ h = MatMul(x, w) {BN} }}"
    after, change = rewritten(model(text, {"w": weight(4, 8), **norm(8)}), FoldBatchNorm(), *feeds(1, x=(3, 4)))
    assert change.edits == 1
    assert ops(after) == {"Gemm": 1}


def test_matmul_of_three_dimensions_stays() -> None:
    """The channels of BatchNormalization are axis 1, the columns of the weight axis 2, both 8 here."""
    text = f"g (float[n, 8, 4] x) => (float[n, 8, 8] y) {{ h = MatMul(x, w) {BN} }}"
    proto = model(text, {"w": weight(4, 8), **norm(8)})
    after, change = rewritten(proto, FoldBatchNorm(), *feeds(1, x=(3, 8, 4)))
    assert (change.edits, reasons(change)) == (0, ["MatMul is not known to multiply two matrices"])
    assert ops(after)["MatMul"] == 1


@pytest.mark.parametrize("name", ["batchnorm_after_conv", "batchnorm_after_conv_transpose", "batchnorm_after_gemm"])
def test_handmade(name: str) -> None:
    case = HANDMADE[name]()
    after, change = rewritten(case.model, FoldBatchNorm(), *case.feeds[:2])
    assert change.edits == 1
    assert not ops(after)["BatchNormalization"]


def test_output_with_two_readers_stays() -> None:
    case = HANDMADE["batchnorm_after_conv_with_two_readers"]()
    _, change = rewritten(case.model, FoldBatchNorm(), *case.feeds[:1])
    assert change.edits == 0
    assert "read elsewhere too" in reasons(change)[0]


def test_shared_weight_is_not_corrupted() -> None:
    text = f"g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {{ h = Gemm(x, w) {BN} z = MatMul(x, w) }}"
    proto = model(text, {"w": weight(4, 4), **norm(4)})
    after, change = rewritten(proto, FoldBatchNorm(), *feeds(1, x=(3, 4)))
    assert (change.edits, reasons(change)) == (0, ["its weight 'w' is shared with 'z'"])
    np.testing.assert_array_equal(weights.read(tensor(after, "w")), weight(4, 4))


def test_shared_bias_gets_a_copy() -> None:
    text = f"g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {{ h = Gemm(x, w, c) {BN} z = Add(x, c) }}"
    proto = model(text, {"w": weight(4, 4), "c": vector(4), **norm(4)})
    after, change = rewritten(proto, FoldBatchNorm(), *feeds(1, x=(3, 4)))
    assert change.edits == 1
    np.testing.assert_array_equal(weights.read(tensor(after, "c")), vector(4))


def test_before_conv_stays() -> None:
    text = """g (float[n, 4, 5, 5] x) => (float[n, 8, 5, 5] y) {
        h = BatchNormalization(x, s, b, m, v) y = Conv<pads = [1, 1, 1, 1]>(h, w)
    }"""
    proto = model(text, {"w": weight(8, 4, 3, 3), **norm(4)})
    _, change = rewritten(proto, FoldBatchNorm(), *feeds(1, x=(1, 4, 5, 5)))
    assert (change.edits, reasons(change)) == (0, ["no Conv, ConvTranspose, Gemm or MatMul makes its input"])


def test_training_mode_stays() -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y) {
        h = MatMul(x, w) y, rm, rv = BatchNormalization<training_mode = 1>(h, s, b, m, v)
    }"""
    _, change = rewritten(model(text, {"w": weight(4, 4), **norm(4)}), FoldBatchNorm())
    assert (change.edits, reasons(change)) == (0, ["it is in training mode"])


def test_half_precision() -> None:
    text = f"g (float16[n, 4] x) => (float16[n, 8] y) {{ h = Gemm(x, w, c) {BN} }}"
    constants = {"w": weight(4, 8).astype(np.float16), "c": vector(8).astype(np.float16), **norm(8, np.float16)}
    after, change = rewritten(model(text, constants), FoldBatchNorm(), *feeds(1, np.float16, x=(3, 4)))
    assert change.edits == 1
    assert {weights.read(c).dtype.name for c in after.constants()} == {"float16"}


def test_what_does_not_fit_half_precision_stays() -> None:
    text = f"g (float16[n, 4] x) => (float16[n, 8] y) {{ h = MatMul(x, w) {BN} }}"
    constants = {"w": np.full((4, 8), 300, np.float16), **norm(8, np.float16)}
    constants["s"] = np.full(8, 1000, np.float16)
    after, change = rewritten(model(text, constants), FoldBatchNorm())
    assert (change.edits, reasons(change)) == (0, ["the result does not fit the weight's own type"])
    assert ops(after) == {"MatMul": 1, "BatchNormalization": 1}


def test_in_a_branch_with_captured_weights() -> None:
    text = f"""g (float[2, 4] x, bool c) => (float[2, 4] y) {{
        y = If (c) <
            then_branch = t () => (float[2, 4] p) {{ h = Gemm(x, w) {BN.replace("y =", "p =")} }},
            else_branch = e () => (float[2, 4] q) {{ q = MatMul(x, u) }}
        >
    }}"""
    proto = model(text, {"w": weight(4, 4), "u": weight(4, 4, seed=1), **norm(4)})
    (x,) = feeds(1, x=(2, 4))
    after, change = rewritten(proto, FoldBatchNorm(), *({**x, "c": np.array(c)} for c in (True, False)))
    assert change.edits == 1
    assert ops(after) == {"If": 1, "Gemm": 1, "MatMul": 1}
