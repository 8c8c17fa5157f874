"""A tokenizer of whole words, and tiny language models whose results are known, for tests of samples of text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORDS = list("abcdefghijklmnopqrstuvwxyz")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
BERT = [*SPECIAL, *WORDS]
"""Ids of an encoder's tokenizer: 'a' is 4."""
PLAIN = ["<unk>", "<eos>", *WORDS]
"""Ids of a decoder's tokenizer: 'a' is 2."""


def write_tokenizer(folder: Path, words: list[str] = BERT, **config: object) -> Path:
    """Write a tokenizer.json that splits at blanks; with [CLS], it puts [CLS] and [SEP] around a text or a pair."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    unknown = words[1 if "[CLS]" in words else 0]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if "[CLS]" in words:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "tokenizer.json"


def ids_of(text: str, words: list[str] = BERT) -> list[int]:
    """The ids of words, without special tokens: the reference that does not use the library."""
    return [words.index(word) for word in text.split()]


def _table(rows: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def _saved(
    path: Path, nodes: list[onnx.NodeProto], inputs: list, outputs: list, weights: dict[str, np.ndarray]
) -> Path:
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in weights.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def info(name: str, kind: int, *dims: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def encoder(
    path: Path, rows: int = len(BERT), length: int | str = "length", hidden: str = "last_hidden_state",
    types: bool = True, width: int = 8,
) -> Path:  # fmt: skip
    """rows of a table by input_ids and token_type_ids, times the mask, times a matrix: [1, length, width]."""
    node = helper.make_node
    inputs = [info(name, TensorProto.INT64, "batch", length) for name in ("input_ids", "attention_mask")]
    nodes = [
        node("Gather", ["table", "input_ids"], ["rows"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last"], ["column"]),
        node("Mul", ["rows", "column"], ["kept"]),
    ]
    weights = {"table": _table(rows, width, 1), "matrix": _table(width, width, 2), "last": np.array([-1], np.int64)}
    if types:
        inputs.append(info("token_type_ids", TensorProto.INT64, "batch", length))
        nodes.append(node("Gather", ["segments", "token_type_ids"], ["segment"]))
        nodes.append(node("Add", ["kept", "segment"], ["sum"]))
        weights["segments"] = _table(2, width, 3)
    nodes.append(node("MatMul", ["sum" if types else "kept", "matrix"], [hidden]))
    return _saved(path, nodes, inputs, [info(hidden, TensorProto.FLOAT, "batch", length, width)], weights)


def decoder(
    path: Path, rows: int = len(PLAIN), *, kind: int = TensorProto.FLOAT, now: int | str = "now",
    past: int | str = "past", names: tuple[str, str] = ("past_key_values.{}.{}", "present.{}.{}"),
    scalars: bool = False, cross: str = "", branch: bool = False, width: int = 4,
) -> Path:  # fmt: skip
    """A decoder of one head whose state is every row it has seen: logits = (row + sum of all rows) @ matrix.

    Its mask and positions are in the logits too. cross: name of an input [1, length, width] that is added to the sum.
    """
    node, is_float = helper.make_node, kind == TensorProto.FLOAT
    past_name, present_name = names
    inputs = [
        info("input_ids", TensorProto.INT64, "batch", now), info("attention_mask", TensorProto.INT64, "batch", "total"),
        info("position_ids", TensorProto.INT64, "batch", now),
    ]  # fmt: skip
    nodes = [
        node("Gather", ["table", "input_ids"], ["row"]),
        node("Cast", ["position_ids"], ["position"], to=kind),
        node("Unsqueeze", ["position", "last"], ["place"]),
        node("Add", ["row", "place"], ["placed"]),
        node("Unsqueeze", ["placed", "one"], ["new"]),
        node("Cast", ["attention_mask"], ["mask"], to=kind),
        node("ReduceSum", ["mask"], ["count"], keepdims=1),
    ]
    outputs = [info("logits", kind, "batch", now, rows)]
    for part in ("key", "value"):
        name, present = past_name.format(0, part), present_name.format(0, part)
        inputs.append(info(name, kind, "batch", 1, past, width))
        nodes.append(node("Concat", [name, "new"], [present], axis=2))
        outputs.append(info(present, kind, "batch", 1, "all", width))
    nodes += [
        node("ReduceSum", [present_name.format(0, "key"), "two"], ["seen4"], keepdims=1),
        node("Squeeze", ["seen4", "one"], ["seen"]),
        node("Add", ["placed", "seen"], ["state0"]),
    ]
    state = "state0"
    if cross:
        inputs.append(info(cross, kind, "batch", "source", width))
        nodes += [node("ReduceSum", [cross, "one"], ["read"], keepdims=1), node("Add", [state, "read"], ["state1"])]
        inputs.append(info("encoder_attention_mask", TensorProto.INT64, "batch", "source"))
        nodes += [
            node("Cast", ["encoder_attention_mask"], ["source_mask"], to=kind),
            node("ReduceSum", ["source_mask"], ["source_count"], keepdims=1),
            node("Add", ["state1", "source_count"], ["state2"]),
        ]
        state = "state2"
    if scalars:
        inputs += [info("num_logits_to_keep", TensorProto.INT64), info("cache_position", TensorProto.INT64, now)]
        nodes += [
            node("Cast", ["num_logits_to_keep"], ["keep"], to=kind), node("Add", [state, "keep"], ["state3"]),
            node("Cast", ["cache_position"], ["cached"], to=kind),
            node("Unsqueeze", ["cached", "zero_and_last"], ["cached3"]),
            node("Add", ["state3", "cached3"], ["state4"]),
        ]  # fmt: skip
        state = "state4"
    if branch:
        inputs.append(info("use_cache_branch", TensorProto.BOOL, 1))
        nodes += [node("Cast", ["use_cache_branch"], ["used"], to=kind), node("Add", [state, "used"], ["state5"])]
        state = "state5"
    nodes += [node("Add", [state, "count"], ["state"]), node("MatMul", ["state", "matrix"], ["logits"])]
    dtype = np.float32 if is_float else np.float16
    weights = {
        "table": _table(rows, width, 4).astype(dtype), "matrix": _table(width, rows, 5).astype(dtype),
        "last": np.array([-1], np.int64), "one": np.array([1], np.int64), "two": np.array([2], np.int64),
        "zero_and_last": np.array([0, 2], np.int64),
    }  # fmt: skip
    used = {name for n in nodes for name in n.input}
    return _saved(path, nodes, inputs, outputs, {k: v for k, v in weights.items() if k in used})
