"""Rounding of weights in blocks with data: against rounding without data, run in ONNX Runtime with both weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from small_decoders import WIDTH, WORDS, correlated, random_weight, small_decoder, token_feeds

from onnxshot import memory
from onnxshot.graph.ir import Constant
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.affine import INT4, UINT4, PerBlock, QuantScheme, quantize
from onnxshot.maths.block_codes import BlockCodes
from onnxshot.maths.block_scales import fit_blocks
from onnxshot.planning.plan import FLOAT, WEIGHTS, NodePlan, Plan, WeightPlan
from onnxshot.recovery.block_reconstruction import BlockRounding, rounded_weights
from onnxshot.recovery.block_rows import Division
from onnxshot.settings import Settings


def _plan(model: ModelProto, *, size: int = 16, symmetric: bool = False, without: tuple[str, ...] = ()) -> Plan:
    held = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    nodes, weights = [], {}
    for node in model.graph.node:
        slot = 0 if node.op_type == "Gather" else 1
        shape = held.get(node.input[slot]) if node.op_type in ("MatMul", "Gemm", "Gather") else None
        chosen = shape is not None and len(shape) >= 2 and node.name not in without
        nodes.append(NodePlan(node.name, node.op_type, WEIGHTS if chosen else FLOAT, has_weight=chosen))
        if chosen:
            axis = len(shape) - 2 if node.op_type == "MatMul" else 1
            scheme = QuantScheme(INT4 if symmetric else UINT4, symmetric, PerBlock(axis, size))
            weights[node.name] = WeightPlan(slot, scheme, "mse", in_blocks=True)
    return Plan("ort", "weights", tuple(nodes), weights=weights)


def _plain(weight: np.ndarray, *, turned: bool, symmetric: bool = False, size: int = 16) -> np.ndarray:
    """The weight rounded without data, as floats in the same layout."""
    table = np.ascontiguousarray(weight.T if turned else weight)
    params = fit_blocks(table, QuantScheme(UINT4, symmetric, PerBlock(1, size)))
    floats = BlockCodes.of(quantize(table, params), params).floats()
    return floats.T if turned else floats


def _run(model: ModelProto, values: dict[str, np.ndarray], feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Outputs of the float graph with other initializers."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            found = values[tensor.name].astype(np.float32).reshape(tuple(tensor.dims))
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(found), tensor.name))
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0].reshape(-1) for feed in feeds])


def _db(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


def _floats(found: BlockRounding, turned: tuple[str, ...] = ("wq", "wk", "wv", "scores")) -> dict[str, np.ndarray]:
    floats = {name: codes.floats() for name, codes in found.weights.items()}
    return {name: values.T if name in turned else values for name, values in floats.items()}


def _rounded(model: ModelProto, plan: Plan, feeds: list[dict[str, np.ndarray]], **options: object) -> BlockRounding:
    return rounded_weights(LeanModel.of(model), plan, feeds, Settings(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("symmetric", [False, True])
def test_outputs_are_closer_than_without_data(symmetric: bool) -> None:
    model = small_decoder()
    plan = _plan(model, symmetric=symmetric)
    found = _rounded(model, plan, token_feeds(40))
    assert set(found.weights) == {"table", "wq", "wk", "wv", "wo", "scores"}
    assert set(found.biases) == {"q_bias", "o"}
    assert [layer.node for layer in found.layers] == ["q", "k", "v", "o", "head"]
    held_out = token_feeds(16, seed=2)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    turned = {"table": False, "wq": True, "wk": True, "wv": True, "wo": False, "scores": True}
    plain = {name: _plain(held[name], turned=way, symmetric=symmetric) for name, way in turned.items()}
    wanted = _run(model, {}, held_out)
    learned = _floats(found) | {"bq": found.biases["q_bias"], "bo": found.biases["o"]}
    before, after = _db(wanted, _run(model, plain, held_out)), _db(wanted, _run(model, learned, held_out))
    assert after > before + 1.0


def test_the_report_says_what_was_measured_for_each_product() -> None:
    found = _rounded(small_decoder(), _plan(small_decoder()), token_feeds(40))
    known = [layer.choice for layer in found.layers]
    assert all(choice.db >= choice.plain_db for choice in known)
    assert found.said().startswith(f"weights of {sum(c.shrinkage is not None for c in known)} of 5 products")
    assert f"{np.median([c.db for c in known]):.1f} dB" in found.said()


def test_the_same_samples_give_the_same_integers_with_any_threads() -> None:
    model = small_decoder()
    one = rounded_weights(LeanModel.of(model), _plan(model), token_feeds(20), Settings(threads=1))
    two = rounded_weights(LeanModel.of(model), _plan(model), token_feeds(20), Settings(threads=2))
    for name, codes in one.weights.items():
        assert np.array_equal(codes.packed, two.weights[name].packed)
        assert np.array_equal(codes.params.scale, two.weights[name].params.scale)


def test_a_table_and_the_product_that_shares_it_get_the_same_integers() -> None:
    model = small_decoder(tied=True)
    found = _rounded(model, _plan(model), token_feeds(20), ties={"scores": "table"})
    assert found.weights["scores"] is found.weights["table"]
    assert found.weights["table"].codes().shape == (WORDS, WIDTH)


def test_tied_weights_of_different_schemes_are_left_to_the_writer() -> None:
    model = small_decoder(tied=True)
    plan = _plan(model)
    scheme = QuantScheme(UINT4, False, PerBlock(0, 32))
    plan = replace(plan, weights={**plan.weights, "head": replace(plan.weights["head"], scheme=scheme)})
    found = _rounded(model, plan, token_feeds(20), ties={"scores": "table"})
    assert "table" not in found.weights
    assert "scores" not in found.weights
    assert "wq" in found.weights


def test_nodes_that_the_plan_leaves_in_float_keep_their_weights() -> None:
    model = small_decoder()
    found = _rounded(model, _plan(model, without=("k", "embed")), token_feeds(12))
    assert set(found.weights) == {"wq", "wv", "wo", "scores"}


def test_products_in_subgraphs_are_left_to_the_writer() -> None:
    model = small_decoder()
    head = next(node for node in model.graph.node if node.name == "head")
    model.graph.node.remove(head)
    branches = [
        helper.make_graph(
            [made], made.name, [], [helper.make_tensor_value_info(made.output[0], TensorProto.FLOAT, None)]
        )
        for made in (
            helper.make_node("MatMul", ["o", "scores"], ["then"], "inner"),
            helper.make_node("MatMul", ["c", "scores"], ["else"], "other"),
        )
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["logits"], "if", then_branch=branches[0], else_branch=branches[1])
    )
    plan = _plan(model)
    scheme = QuantScheme(UINT4, False, PerBlock(0, 16))
    inner = NodePlan("inner", "MatMul", WEIGHTS, has_weight=True)
    plan = replace(
        plan,
        nodes=(*plan.nodes, inner),
        weights={**plan.weights, "inner": WeightPlan(1, scheme, "mse", in_blocks=True)},
    )
    found = _rounded(model, plan, token_feeds(12))
    assert set(found.weights) == {"table", "wq", "wk", "wv", "wo"}


def test_without_samples_nothing_is_rounded() -> None:
    found = _rounded(small_decoder(), _plan(small_decoder()), [])
    assert not found.weights
    assert found.said() == ""


def test_one_sample_is_learned_from_and_decides_with_its_last_rows() -> None:
    found = _rounded(small_decoder(), _plan(small_decoder()), token_feeds(1))
    assert all(layer.choice.known for layer in found.layers)


def test_inputs_that_exceed_the_budget_are_rounded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_decoder()
    monkeypatch.setattr(memory, "budget", lambda: 96 * 48 * 48)  # moments of 48 inputs
    found = _rounded(model, _plan(model), token_feeds(20))
    assert {layer.parts for layer in found.layers} == {2}
    assert "in parts" in found.said()
    assert found.weights["wq"].codes().shape == (WIDTH, WIDTH)


def test_experts_learn_from_their_own_rows() -> None:
    rng = np.random.default_rng(3)
    weight = random_weight(rng, 3, WIDTH, 32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "experts")], "experts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, "n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, "n", 32])], [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    feeds = [{"x": correlated(np.random.default_rng(i), 3, 40, WIDTH)} for i in range(20)]
    found = _rounded(model, _plan(model), feeds)
    codes = found.weights["w"]
    assert codes.codes().shape == (3 * 32, WIDTH)
    learned = codes.floats().reshape(3, 32, WIDTH).transpose(0, 2, 1)
    plain = np.stack([_plain(one, turned=True) for one in weight])
    held_out = [{"x": correlated(np.random.default_rng(100 + i), 3, 40, WIDTH)} for i in range(8)]
    wanted = _run(model, {}, held_out)
    assert _db(wanted, _run(model, {"w": learned}, held_out)) > _db(wanted, _run(model, {"w": plain}, held_out)) + 1.0


def test_rows_of_padding_do_not_count() -> None:
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0]])
    feeds = [{"input_ids": np.zeros((2, 4), np.int64), "attention_mask": mask}] * 8
    division = Division.of(feeds, 1000)
    assert division.rows(0, (2, 4), checks=False).tolist() == [0, 1, 2, 4]
    assert division.rows(0, (8,), checks=False).tolist() == [0, 1, 2, 4]
    assert division.rows(0, (2,), checks=False).tolist() == [0, 1]
    assert division.rows(0, (2, 4), checks=True).tolist() == []
    assert division.rows(3, (2, 4), checks=True).tolist() == [0, 1, 2, 4]


def test_a_mask_of_pasts_and_tokens_masks_the_tokens() -> None:
    feeds = [{"input_ids": np.zeros((1, 2), np.int64), "attention_mask": np.array([[0, 1, 1, 1, 0]])}] * 8
    assert Division.of(feeds, 1000).rows(0, (1, 2), checks=False).tolist() == [0]


def test_codes_of_an_odd_number_of_inputs_come_back() -> None:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((5, 37)).astype(np.float32)
    params = fit_blocks(weight, QuantScheme(UINT4, False, PerBlock(1, 16)))
    codes = quantize(weight, params)
    found = BlockCodes.of(codes, params)
    assert np.array_equal(found.codes(), codes.astype(np.uint8))
    assert found.packed.shape == (5, 19)
    assert np.array_equal(found.rows(slice(1, 3)).codes(), codes[1:3].astype(np.uint8))


def test_a_walk_reads_constants_that_are_computed() -> None:
    from onnxshot.execution.layer_walk import Walk
    from onnxshot.graph.weights import ComputedValues

    model = small_decoder()
    walk = Walk(model, token_feeds(2), 1)
    doubled = 2 * numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "table"))
    before = Walk(model, token_feeds(2), 1).values("x")[0]
    walk.set("table", Constant("table", ComputedValues(doubled.shape, doubled.dtype, lambda: doubled)))
    assert np.allclose(walk.values("x")[0], 2 * before)
    assert np.array_equal(walk.constant("table"), doubled)
