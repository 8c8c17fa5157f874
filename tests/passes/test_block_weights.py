from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from handmade import HANDMADE, Case
from handmade.core import feeds, model, weight
from planned_models import initializers, nodes_of, quantized, run, sqnr

import onnxshot
from onnxshot.errors import TargetError, UsageError
from onnxshot.maths.int4_packing import unpack_bits
from onnxshot.recipes.recipe import Recipe

LEAST_DB = {4: 11, 8: 33}  # of three products in a row


def stands_for(made: onnx.ModelProto, node: onnx.NodeProto) -> np.ndarray:
    """The matrix [K, N] that a MatMulNBits multiplies by, by the words of its documentation."""
    attrs = {a.name: a.i for a in node.attribute}
    values = initializers(made)
    packed, scales = values[node.input[1]], values[node.input[2]]
    codes = unpack_bits(packed, attrs["bits"]).astype(np.float32)
    middle = np.full(scales.shape, 1 << (attrs["bits"] - 1), np.float32)
    if len(node.input) > 3 and node.input[3]:
        middle = unpack_bits(values[node.input[3]], attrs["bits"])[:, : scales.shape[1]].astype(np.float32)
    real = (codes - middle[:, :, None]) * scales[:, :, None]
    return real.reshape(attrs["N"], -1)[:, : attrs["K"]].T


def product(inputs: int = 96, outputs: int = 40) -> Case:
    text = f"g (float[B, T, {inputs}] x) => (float[B, T, {outputs}] y) {{ y = MatMul(x, w) }}"
    return Case(model(text, {"w": weight(inputs, outputs)}), feeds(3, x=(2, 5, inputs)))


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 32), (4, 128), (8, 32), (8, 128)])
@pytest.mark.parametrize("inputs", [96, 100])
def test_a_product_is_by_integers_in_blocks(bits: int, block: int, inputs: int, asymmetric: bool) -> None:
    case = product(inputs)
    _, made = quantized(case, mode="weights", bits=bits, block=block, asymmetric=asymmetric)
    onnx.checker.check_model(made)
    (node,) = made.graph.node
    assert (node.op_type, node.domain) == ("MatMulNBits", "com.microsoft")
    attrs = {a.name: a.i for a in node.attribute}
    assert attrs == {"K": inputs, "N": 40, "bits": bits, "block_size": block, "accuracy_level": 4}
    assert (len(node.input) == 4) == asymmetric
    real, given = stands_for(made, node), initializers(case.model)["w"]
    assert np.abs(real - given).max() < 2 * np.abs(given).max() / (1 << (bits - 1))
    for feed in case.feeds:
        wanted, got = feed["x"] @ real, run(made, feed)[0]
        assert 10 * np.log10((wanted**2).sum() / ((got - wanted) ** 2).sum()) > 35, "int8 activations alone"
    assert sqnr(case, made) > LEAST_DB[bits]


@pytest.mark.parametrize(
    "name",
    [
        "gemm_trans_b_0", "gemm_trans_b_1", "gemm_trans_a", "matmul_batched_weight", "matmul_weight_on_the_left",
        "if_captures_weights", "shared_by_matmul_and_gemm",
    ],
)  # fmt: skip
@pytest.mark.parametrize("bits", [4, 8])
def test_other_products(name: str, bits: int) -> None:
    case = HANDMADE[name]()
    _, made = quantized(case, mode="weights", bits=bits, block=16)
    floats = [v for v in initializers(made).values() if v.dtype == np.float32 and v.ndim > 1]
    assert max((v.size for v in floats), default=0) < 128, "only scales are floats"
    assert sqnr(case, made) > LEAST_DB[bits]


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [96, 100])
def test_a_table_gives_the_rows_that_its_integers_stand_for(columns: int, bits: int, asymmetric: bool) -> None:
    text = f"g (int64[2, T] ids) => (float[2, T, {columns}] y) {{ y = Gather(table, ids) }}"
    rng = np.random.default_rng(3)
    table = weight(500, columns)
    case = Case(model(text, {"table": table}), [{"ids": rng.integers(-500, 500, (2, 4))}])
    _, made = quantized(case, mode="weights", bits=bits, block=32, asymmetric=asymmetric)
    assert all(not node.domain for node in made.graph.node), "standard operators, which every version has"
    (got,) = run(made, case.feeds[0])
    whole = run(made, {"ids": np.arange(500).reshape(2, 250)})[0].reshape(500, columns)
    np.testing.assert_array_equal(got, whole[case.feeds[0]["ids"]])
    step = np.abs(table).max() / (7 if bits == 4 else 127)
    assert np.abs(whole - table).max() < step


def test_a_tied_table_is_stored_once() -> None:
    text = """g (int64[2, T] ids) => (float[2, T, 500] scores) {
        x = Gather(table, ids)
        turned = Transpose<perm = [1, 0]>(table)
        scores = MatMul(x, turned)
    }"""
    rng = np.random.default_rng(3)
    case = Case(model(text, {"table": weight(500, 96)}), [{"ids": rng.integers(0, 500, (2, 4))}])
    _, made = quantized(case, mode="weights", bits=4, asymmetric=True)
    assert Counter(n.op_type for n in made.graph.node)["MatMulNBits"] == 1
    large = [v for v in initializers(made).values() if v.nbytes > 4000]
    assert sorted(v.shape for v in large) == [(500, 3), (500, 3, 16)]
    assert sqnr(case, made) > 12


def test_unknown_ranks_of_ids() -> None:
    text = (
        "g (int64[2, T] given, int64[n] shape) => (float[] y) { ids = Reshape(given, shape) y = Gather(table, ids) }"
    )
    feed = {"given": np.arange(8).reshape(2, 4), "shape": np.array([2, 2, 2])}
    case = Case(model(text, {"table": weight(500, 96)}), [feed])
    _, made = quantized(case, mode="weights", bits=8)
    assert run(made, feed)[0].shape == (2, 2, 2, 96)
    assert sqnr(case, made) > 35


@pytest.mark.parametrize("options", [{"bits": 4, "mode": "static"}, {"bits": 3}, {"bits": 4, "weight_type": "int4"},
                                     {"bits": 4, "block": "row"}, {"bits": 4, "asymmetric": 3}], ids=str)  # fmt: skip
def test_wrong_words(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Recipe(**{"mode": "weights", **options})


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"block": 48}, UsageError),
        ({"block": 8}, UsageError),
        ({"block": 1024}, UsageError),
        ({"target": "tensorrt", "asymmetric": True}, TargetError),
    ],
    ids=str,
)
def test_refused(options: dict[str, object], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        quantized(product(), **{"mode": "weights", "bits": 4, **options})


def test_operators_of_one_runtime_are_used_on_request_alone() -> None:
    for options in ({}, {"bits": 8, "portable_ops": True}, {"bits": 8, "format": "qdq"}):
        _, made = quantized(product(), mode="weights", **options)
        assert {n.domain for n in made.graph.node} == {""}


@pytest.mark.parametrize("options", [{"format": "qdq"}, {"block": "channel"}, {"target": "portable"}], ids=str)
def test_integers_of_4096_bytes_are_found_in_the_file_again(options: dict[str, object], tmp_path: Path) -> None:
    """Constants of up to 4096 bytes stand in the graph; 8192 values of 4 bits take so many in the file alone."""
    case = product(128, 64)
    onnx.save(case.model, tmp_path / "m.onnx")
    given = {"mode": "weights", "bits": 4, **options}
    result = onnxshot.quantize(tmp_path / "m.onnx", case.feeds, output=tmp_path / "q.onnx", **given)
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 11


def test_scales_of_16_bits_are_right_without_graph_optimizations() -> None:
    case = HANDMADE["half_precision_model"]()
    _, made = quantized(case, mode="weights", bits=4, block=16)
    assert nodes_of(made, "MatMulNBits")
    for feed in case.feeds[:2]:
        for plain, optimized in zip(run(made, feed, optimize=False), run(made, feed), strict=True):
            np.testing.assert_allclose(plain, optimized, rtol=0.05, atol=0.05 * np.abs(optimized).max())


def test_a_table_that_two_gathers_and_two_products_read_is_stored_once() -> None:
    text = """g (int64[2, T] ids, int64[2, T] others) => (float[2, T, 500] y, float[2, T, 500] z) {
        a = Gather(table, ids)
        b = Gather(table, others)
        turned = Transpose<perm = [1, 0]>(table)
        y = MatMul(a, turned)
        z = MatMul(b, turned)
    }"""
    ids = np.arange(8).reshape(2, 4)
    case = Case(model(text, {"table": weight(500, 96)}), [{"ids": ids, "others": ids + 9}])
    _, made = quantized(case, mode="weights", bits=4)
    assert Counter(n.op_type for n in made.graph.node)["MatMulNBits"] == 2
    assert [v.shape for v in initializers(made).values() if v.nbytes > 7000] == [(500, 3, 16)]


def test_a_weight_that_is_read_in_float_too_stays_float() -> None:
    text = "g (float[96, 96] x) => (float[96, 96] y) { a = MatMul(x, w) y = Add(a, w) }"
    case = Case(model(text, {"w": weight(96, 96)}), feeds(2, x=(96, 96)))
    result, made = quantized(case, mode="weights", bits=4)
    assert not nodes_of(made, "MatMulNBits")
    assert any("would be stored twice" in skip.reason for skip in result.plan.skips)


def test_a_note_counts_weights_that_no_kernel_multiplies_by() -> None:
    result, _ = quantized(HANDMADE["matmul_weight_on_the_left"](), mode="weights", bits=4, block=16)
    assert any("floats from when the file is loaded" in note for note in result.report.notes)
