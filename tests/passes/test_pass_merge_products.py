import numpy as np
import onnx
import pytest
from fixture_data import session
from handmade.core import weight
from pass_checks import outputs
from planned_models import planned, small

from onnxshot.graph import edit, weights
from onnxshot.passes.merge_products import MergeProducts
from onnxshot.passes.quantize_dynamic import QuantizeDynamically
from onnxshot.planning.plan import DYNAMIC

ATTENTION = """
    q = MatMul(x, wq) qb = Add(q, bq)
    k = MatMul(x, wk) kb = Add(bk, k)
    v = MatMul(x, wv) vb = Add(v, bv)
    s = Sub(qb, kb) y = Concat<axis = 1>(s, vb)
"""
WEIGHTS = {"wq": weight(64, 64), "wk": weight(64, 64, seed=1), "wv": weight(64, 80, seed=2)}
BIASES = {"bq": weight(64), "bk": weight(64, seed=1), "bv": weight(80, seed=2)}


def attention(body: str = ATTENTION, **more: np.ndarray):
    return small(f"g (float[n, 64] x) => (float[n, 144] y) {{ {body} }}", WEIGHTS | BIASES | more, x=(8, 64))


def test_three_products_and_their_biases_become_one() -> None:
    case = attention()
    ready, plan = planned(case)
    step = MergeProducts(plan)
    assert step.run(ready).edits == 1
    found = [n.op for n in ready.graph.nodes]
    assert (found.count("MatMul"), found.count("Add"), found.count("Split")) == (1, 1, 1)
    (product,) = [n for n in ready.graph.nodes if n.op == "MatMul"]
    assert step.plan.labels(DYNAMIC) == {product.label}
    expected = np.concatenate([WEIGHTS["wq"], WEIGHTS["wk"], WEIGHTS["wv"]], axis=1)
    np.testing.assert_array_equal(weights.read(product.inputs[1]), expected)
    for mine, theirs in zip(outputs(ready.to_proto(), case.feeds[0]), outputs(case.model, case.feeds[0]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_quantized_values_are_those_of_the_parts() -> None:
    """One scale per output channel: merging changes no bit of the int8 product."""
    case = attention()
    found = []
    for merged in (False, True):
        ready, plan = planned(case)
        if merged:
            step = MergeProducts(plan)
            step.run(ready)
            plan = step.plan
        QuantizeDynamically(plan).run(ready)
        edit.remove_unused(ready)
        proto = ready.to_proto()
        onnx.checker.check_model(proto, full_check=True)
        assert [n.op_type for n in proto.graph.node].count("MatMulInteger") == (1 if merged else 3)
        found.append(session(proto.SerializeToString()).run(None, case.feeds[0])[0])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_products_without_a_common_bias_are_merged_bare() -> None:
    case = attention(ATTENTION.replace("Add(bk, k)", "Relu(k)"))
    ready, plan = planned(case)
    assert MergeProducts(plan).run(ready).edits == 1
    assert [n.op for n in ready.graph.nodes].count("Add") == 2
    for mine, theirs in zip(outputs(ready.to_proto(), case.feeds[0]), outputs(case.model, case.feeds[0]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (ATTENTION, {"per_channel": False}),  # one scale for all would change the values
        (ATTENTION.replace("(x, wk)", "(x2, wk)").replace("q = ", "x2 = Neg(x) q = ").replace("(x, wv)", "(s0, wv)")
         .replace("v = M", "s0 = Abs(x) v = M"), {}),  # different inputs
    ],
)  # fmt: skip
def test_other_products_stay(body: str, options: dict[str, bool]) -> None:
    ready, plan = planned(attention(body), **options)
    assert len(plan.labels(DYNAMIC)) == 3
    assert MergeProducts(plan).run(ready).edits == 0
