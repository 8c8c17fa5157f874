"""Only class scores have a top-1 agreement."""

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from onnxshot.calibration.readers import Sample
from onnxshot.comparison.class_scores import Scores
from onnxshot.verification.compare_models import compare

RNG = np.random.default_rng(3)
OWN = np.random.default_rng(5)


def model(text: str, **constants: NDArray[np.generic]) -> bytes:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\ng {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return bytes(proto.SerializeToString())


def normal(*shape: int) -> NDArray[np.float32]:
    return RNG.normal(0, 1, shape).astype(np.float32)


STEADY = np.float32(np.sin(np.linspace(0, 3, 64)))[None]
CELL = {"w": normal(1, 64, 6), "r": normal(1, 64, 16)}

SCORES = {
    "logits": ("(float[N,6] x) => (float[N,5] y) { y = MatMul(x, m) }", {"m": normal(6, 5)}),
    "tokens": ("(float[N,6] x) => (float[1,N,9] y) { z = MatMul(x, m) y = Unsqueeze(z, k) }",
               {"m": normal(6, 9), "k": np.int64([0])}),
    "CTC": ("(float[N,6] x) => (float[N,1,6] y) { z = Unsqueeze(x, k) y = LogSoftmax<axis=-1>(z) }",
            {"k": np.int64([1])}),
    "a picture's classes": ("(float[N,6] x) => (float[6] y) { z = ReduceSum<keepdims=0>(x, k) y = Softmax(z) }",
                            {"k": np.int64([0])}),
}  # fmt: skip
NONE = {
    "state": ("(float[N,6] x) => (float[1,1,16] y) { z = Unsqueeze(x, k) q, y = LSTM<hidden_size=16>(z, w, r) }",
              {"k": np.int64([1]), **CELL}),
    "flat state": ("(float[N,6] x) => (float[N,16] y) "
                   "{ z = Unsqueeze(x, k) q = LSTM<hidden_size=16>(z, w, r) y = Squeeze(q, j) }",
                   {"k": np.int64([1]), "j": np.int64([1, 2]), **CELL}),
    "curve": ("(float[N,6] x) => (float[N,64] y) { a = ReduceSum(x, k) y = Mul(a, s) }",
              {"k": np.int64([1]), "s": STEADY}),
    "boxes over anchors": ("(float[N,6] x) => (float[1,N,12] y) { z = Concat<axis=1>(x, x) y = Unsqueeze(z, k) }",
                           {"k": np.int64([0])}),
    "embedding of length 1": ("(float[N,6] x) => (float[N,24] y) "
                              "{ z = MatMul(x, m) n = ReduceL2<axes=[1]>(z) q = Reciprocal(n) y = Mul(z, q) }",
                              {"m": OWN.normal(0, 1, (6, 24)).astype(np.float32)}),
    "divided embedding": ("(float[N,6] x) => (float[N,9] y) { z = MatMul(x, m) n = ReduceSum(x, k) y = Div(z, n) }",
                          {"m": OWN.normal(0, 1, (6, 9)).astype(np.float32), "k": np.int64([1])}),
    "coordinates": ("(float[N,6] x) => (float[N,10] y) { z = MatMul(x, m) y = Add(z, b) }",
                    {"m": OWN.normal(0, 0.1, (6, 10)).astype(np.float32),
                     "b": OWN.normal(0, 1, 10).astype(np.float32)}),
    "length": ("(float[N,6] x) => (float[6,N] y) { y = Transpose<perm=[1,0]>(x) }", {}),
}  # fmt: skip


def samples() -> list[Sample]:
    return [Sample(f"#{i}", {"x": normal(2 + i % 3, 6)}) for i in range(6)]


@pytest.mark.parametrize("name", SCORES)
def test_class_scores_have_an_agreement(name: str) -> None:
    text, constants = SCORES[name]
    own = model(text, **constants)
    assert compare(own, own, samples()).agreement == 1.0


@pytest.mark.parametrize("name", NONE)
def test_other_outputs_have_no_agreement(name: str) -> None:
    text, constants = NONE[name]
    own = model(text, **constants)
    assert compare(own, own, samples()).agreement is None


def test_points_beside_a_softmax_have_no_agreement_and_logits_have_one() -> None:
    text = """(float[N,6] x) => (float[N,3] scores, float[N,4] box, float[N,3] logits)
        { logits = MatMul(x, m) scores = Softmax(logits) box = MatMul(x, n) }"""
    own = model(text, m=normal(6, 3), n=normal(6, 4))
    found = {row.name: row.agreement for row in compare(own, own, samples()).outputs}
    assert found == {"scores": 1.0, "box": None, "logits": 1.0}


def test_a_few_rows_are_no_profile() -> None:
    text, constants = NONE["coordinates"]
    own = model(text, **constants)
    assert compare(own, own, samples()[:2]).agreement == 1.0


def test_a_state_that_is_fed_back_has_no_agreement() -> None:
    text = "(float[N,6] x, float[N,5] s) => (float[N,5] t) { z = MatMul(x, m) t = Add(z, s) }"
    own = model(text, m=normal(6, 5))
    feeds = [Sample(f"#{i}", {"x": normal(2, 6), "s": normal(2, 5)}) for i in range(3)]
    assert compare(own, own, feeds).agreement is None


def test_tied_rows_do_not_count() -> None:
    one = model("(float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    other = model("(float[N,3] x) => (float[N,3] y) { y = Add(x, b) }", b=np.float32([0, 0.01, 0]))
    tie = np.float32([[5, 5, 0], [5, 4.9999, 0], [5, 1, 0], [1, 5, 0]])
    assert compare(one, other, [Sample("#0", {"x": tie})]).agreement == 1.0
    near = np.float32([[5, 4.995, 0], [5, 1, 0]])
    assert compare(one, other, [Sample("#0", {"x": near})]).agreement == 0.5


def test_points_of_a_few_values_each_are_told_from_scores_by_what_repeats() -> None:
    def agreement(rows: NDArray[np.float64]) -> float | None:
        scores = Scores("Conv")
        for row in rows:
            scores.add(row[None], row[None])
        return scores.agreement

    moved = np.tile(OWN.normal(0, 0.5, (8, 3)), 13)  # 13 points; all x of a row move together
    shape = OWN.normal(0, 1, 39) + np.tile([0.0, 0.0, -1.0], 13)
    assert agreement(shape + moved + OWN.normal(0, 0.2, (8, 39))) is None
    assert agreement(shape + OWN.normal(0, 0.5, (8, 39))) == 1.0
    near = np.exp(-0.5 * ((np.arange(360) - OWN.uniform(50, 300, 8)[:, None]) / 3) ** 2)  # bins of a pitch
    assert agreement(near + OWN.normal(0, 0.01, (8, 360))) == 1.0
