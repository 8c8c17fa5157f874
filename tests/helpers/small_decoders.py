"""A small decoder with random weights, whose hidden states are correlated as those of real ones are."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

WIDTH, TOKENS, WORDS = 64, 24, 96


def random_weight(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """A weight [.., K, N] whose outputs are about as large as its inputs."""
    return (rng.standard_normal(shape) / np.sqrt(shape[-2])).astype(np.float32)


def correlated(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Values whose last axis is correlated, as hidden states are."""
    mixing = np.random.default_rng(9).standard_normal((8, shape[-1]))
    low = rng.standard_normal((*shape[:-1], 8)) @ mixing
    return (low + 0.3 * rng.standard_normal(shape)).astype(np.float32)


def small_decoder(*, tied: bool = False) -> ModelProto:
    """Ids -> embeddings -> q, k, v and attention -> Gemm -> scores; the output product may share the table."""
    rng = np.random.default_rng(0)
    table = correlated(rng, WORDS, WIDTH)
    held = {
        "table": table,
        "wq": random_weight(rng, WIDTH, WIDTH),
        "wk": random_weight(rng, WIDTH, WIDTH),
        "wv": random_weight(rng, WIDTH, WIDTH),
        "bq": np.zeros(WIDTH, np.float32),
        "wo": random_weight(rng, WIDTH, WIDTH).T.copy(), "bo": rng.standard_normal(WIDTH).astype(np.float32),
        "scores": np.ascontiguousarray(table.T) / 8 if not tied else np.ascontiguousarray(table.T),
        "flat": np.array([-1, WIDTH], np.int64), "deep": np.array([1, -1, WIDTH], np.int64),
    }  # fmt: skip
    make = helper.make_node
    nodes = [
        make("Gather", ["table", "input_ids"], ["x"], "embed"),
        make("MatMul", ["x", "wq"], ["q0"], "q"), make("Add", ["q0", "bq"], ["q1"], "q_bias"),
        make("MatMul", ["x", "wk"], ["k1"], "k"), make("MatMul", ["x", "wv"], ["v1"], "v"),
        make("Transpose", ["k1"], ["kt"], "kt", perm=[0, 2, 1]),
        make("MatMul", ["q1", "kt"], ["a0"], "a"), make("Softmax", ["a0"], ["a1"], "soft", axis=-1),
        make("MatMul", ["a1", "v1"], ["c0"], "context"), make("Add", ["c0", "x"], ["c"], "residual"),
        make("Reshape", ["c", "flat"], ["c2"], "flatten"),
        make("Gemm", ["c2", "wo", "bo"], ["o2"], "o", transB=1), make("Relu", ["o2"], ["o3"], "relu"),
        make("Reshape", ["o3", "deep"], ["o"], "unflatten"),
        make("MatMul", ["o", "scores"], ["logits"], "head"),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "n"])]
    graph = helper.make_graph(
        nodes, "decoder", inputs, [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in held.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def token_feeds(count: int, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Samples of random tokens."""
    rng = np.random.default_rng(seed)
    return [{"input_ids": rng.integers(0, WORDS, (1, TOKENS))} for _ in range(count)]
