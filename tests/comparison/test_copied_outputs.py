"""The part of an output that copies an input is not compared."""


import numpy as np
import pytest
from compared_models import cache, db, run, samples
from handmade.core import model, weight
from onnx import helper

from onnxshot.calibration.readers import Sample
from onnxshot.comparison.copied_outputs import copied_outputs
from onnxshot.execution.candidate_race import measure_candidates
from onnxshot.verification.compare_models import compare


@pytest.mark.parametrize("join", ["Concat <axis = 2> (moved, new)", "ScatterElements <axis = 2> (moved, where, new)"])
def test_only_the_computed_part_is_compared(join: str) -> None:
    """49 of 50 steps of a cache are copies: they turned 3 dB into 20."""
    past = 10 * np.random.default_rng(5).normal(size=(1, 2, 50, 4)).astype(np.float32)
    given = samples(3, 1, 4, past=past)
    reference, other = cache(join), cache(join, noise=0.1)
    new = [[run(m, s.feed)["y"] for s in given] for m in (reference, other)]
    result = compare(reference.SerializeToString(), other.SerializeToString(), given)
    rows = {row.name: row for row in result.outputs}
    assert set(rows) == {"present", "y"} and result.copied == ("present",)
    assert rows["present"].sqnr_db == pytest.approx(db(*np.asarray(new)), abs=0.01)
    assert result.sqnr_db == pytest.approx(db(*np.asarray(new)), abs=0.01)
    (found,) = measure_candidates(reference.SerializeToString(), [other.SerializeToString()], given, threads=1)
    assert found.total.db == pytest.approx(result.sqnr_db, abs=0.01)


INSIDE = {
    "Attention": ("Attention(q, k, v, , pk, pv)", (1, 2, 1, 4), 4, {"opset": 23}),
    "MultiHeadAttention": (
        "com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, , , , pk, pv)", (1, 1, 8), 8,
        {"imports": ', "com.microsoft": 1'},
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", INSIDE)
def test_the_past_of_a_fused_attention_is_not_compared(op: str) -> None:
    """Only the last of 51 key steps is computed. The values are inputs; new values are not copies of the past."""
    body, shape, width, how = INSIDE[op]
    given = {name: ", ".join(map(str, shape)) for name in "qxv"}
    ports = ", ".join(f"float[{dims}] {name}" for name, dims in given.items())
    text = f"""g ({ports}, float[1, 2, p, 4] pk, float[1, 2, p, 4] pv) =>
        (float[a, b, c] y, float[1, 2, t, 4] keys, float[1, 2, t, 4] values) {{
        k = MatMul(x, w)  z, keys, values = {body}  y = Reshape(z, flat) }}"""
    w, flat = weight(width, width), np.int64([1, 1, -1])
    reference = model(text, {"w": w, "flat": flat}, ir=10, **how).SerializeToString()
    other = model(text, {"w": 1.1 * w, "flat": flat}, ir=10, **how).SerializeToString()
    rng = np.random.default_rng(0)
    feed = {name: rng.normal(size=shape).astype(np.float32) for name in "qxv"}
    feed |= {name: 10 * rng.normal(size=(1, 2, 50, 4)).astype(np.float32) for name in ("pk", "pv")}
    result = compare(reference, other, [Sample("a", feed)])
    assert result.copied == ("keys", "values")
    assert next(row for row in result.outputs if row.name == "keys").sqnr_db == pytest.approx(20, abs=0.01)


def test_a_rounded_past_is_not_a_copy() -> None:
    """A candidate that quantizes the past is compared on all of it."""
    join = "Concat <axis = 2> (moved, new)"
    reference = cache(join)
    other = cache(join, moved="DequantizeLinear(q, scale)")
    node = helper.make_node("QuantizeLinear", ["past", "scale"], ["q"])
    other.graph.node.insert(0, node)
    past = np.random.default_rng(5).uniform(0, 12, size=(1, 2, 50, 4)).astype(np.float32)
    given = samples(1, 1, 4, past=past)
    wanted, got = (run(m, given[0].feed)["present"] for m in (reference, other))
    rows = {r.name: r for r in compare(reference.SerializeToString(), other.SerializeToString(), given).outputs}
    assert rows["present"].sqnr_db == pytest.approx(db(wanted, got), abs=0.05)


def test_an_output_that_only_copies_is_not_compared() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] same, float[n, 4] y) { same = Identity(x) y = MatMul(x, w) }"
    w = weight(4, 4)
    reference, other = model(text, {"w": w}), model(text, {"w": 1.1 * w})
    result = compare(reference.SerializeToString(), other.SerializeToString(), samples(2, 3, 4))
    assert [row.name for row in result.outputs] == ["y"]
    assert result.sqnr_db == pytest.approx(20, abs=0.01)
    only = model("g (float[n, 4] x) => (float[4, n] y) { y = Transpose(x) }")
    assert compare(only.SerializeToString(), only.SerializeToString(), samples(1, 3, 4)).sqnr_db == 200.0


def test_an_addition_to_an_input_is_computed() -> None:
    text = """g (float[4] x) => (float[4] y) { y = ScatterElements <reduction = "add"> (x, i, u) }"""
    constants = {"i": np.int64([1]), "u": np.float32([2])}
    assert copied_outputs(model(text, constants, opset=18)) == ()
