"""Graphs of BERT-like encoders and LLaMA-like decoders, of the operators that exporters write, with random weights.

Every product keeps the variance of its input near one, and the layers together add four times the variance of the
embedding. Some channels are larger, as in trained models. lm_head prefers one next token for each token, so that the
most probable token stands out.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from streamed_model import KINDS, Graph

POSITIONS = 512  # of an encoder
LOUD, LOUDNESS = 300, 6.0  # one channel of so many is so much larger


@dataclass(frozen=True)
class Size:
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int


class Transformer:
    """What both kinds share: weights by seed and name, linear layers, heads."""

    def __init__(self, size: Size, kind: str, seed: int):
        self.size, self.seed = size, seed
        self.stored = kind
        self.kind = "float32" if kind == "bfloat16" else kind
        self.float = KINDS[self.kind][1]
        self.graph = Graph()
        self.add, self.ints = self.graph.add, self.graph.constant

    def normal(self, name: str, *shape: int, scale: float = 1.0) -> Any:
        rng = np.random.Generator(np.random.SFC64([self.seed, zlib.crc32(name.encode())]))
        values = rng.standard_normal(shape, np.float32)
        values *= np.float32(scale)
        return values

    def weight(self, name: str, *shape: int, scale: float = 1.0, mean: float = 0.0, loud: bool = False) -> str:
        def make() -> Any:
            values = self.normal(name, *shape, scale=scale)
            if mean:
                values += np.float32(mean)
            if loud:
                rng = np.random.default_rng([self.seed, zlib.crc32(name.encode()), 1])
                values[rng.choice(shape[-1], -(-shape[-1] // LOUD), replace=False)] *= LOUDNESS
            return values

        return self.made(name, shape, make)

    def made(self, name: str, shape: tuple[int, ...], make: Any) -> str:
        given = self.graph.weight(name, self.stored, shape, make)
        return (
            given if self.stored == self.kind else self.add("Cast", given, to=TensorProto.FLOAT, name=f"/{name}/Cast")
        )

    def number(self, value: float) -> str:
        return self.graph.constant(value, self.float)

    def single(self, value: float) -> str:
        return self.graph.constant(value, np.float32)

    def linear(self, x: str, at: str, inputs: int, outputs: int, gain: float = 1.0, bias: bool = False) -> str:
        """x times a matrix of [inputs, outputs], which exporters transpose and name by a number."""
        matrix = self.weight(f"onnx::MatMul{at.replace('/', '.')}", inputs, outputs, scale=gain * inputs**-0.5)
        y = self.add("MatMul", x, matrix, name=f"{at}/MatMul")
        if not bias:
            return y
        return self.add("Add", self.weight(f"{at[1:].replace('/', '.')}.bias", outputs, scale=0.1), y, name=f"{at}/Add")

    def dims(self, x: str, at: str) -> tuple[str, str]:
        """Batch and length of x as vectors of one number, as exporters compute them."""
        shape = self.add("Shape", x, name=f"{at}/Shape")
        return tuple(  # type: ignore[return-value]
            self.add(
                "Unsqueeze", self.add("Gather", shape, self.ints(i), name=f"{at}/Gather_{i}", axis=0), self.ints([0])
            )
            for i in (0, 1)
        )

    def heads(self, x: str, dims: tuple[str, str], heads: int, at: str) -> str:
        """[batch, length, hidden] to [batch, heads, length, hidden / heads]."""
        wide = self.ints([self.size.hidden // self.size.heads])
        shape = self.add("Concat", *dims, self.ints([heads]), wide, axis=0, name=f"{at}/Concat")
        x = self.add("Reshape", x, shape, name=f"{at}/Reshape")
        return self.add("Transpose", x, perm=[0, 2, 1, 3], name=f"{at}/Transpose")

    def attended(self, q: str, k: str, v: str, mask: str, dims: tuple[str, str], at: str) -> str:
        """Softmax attention over [batch, heads, length, width], as [batch, length, hidden]; the mask is added."""
        width = self.size.hidden // self.size.heads
        k = self.add("Transpose", k, perm=[0, 1, 3, 2], name=f"{at}/Transpose_k")
        scores = self.add("MatMul", q, k, name=f"{at}/MatMul")
        scores = self.add("Mul", scores, self.number(width**-0.5), name=f"{at}/Mul")
        scores = self.add("Add", scores, mask, name=f"{at}/Add")
        half = self.kind == "float16"
        if half:
            scores = self.add("Cast", scores, to=TensorProto.FLOAT, name=f"{at}/Cast")
        shares = self.add("Softmax", scores, axis=-1, name=f"{at}/Softmax")
        if half:
            shares = self.add("Cast", shares, to=TensorProto.FLOAT16, name=f"{at}/Cast_1")
        mixed = self.add("MatMul", shares, v, name=f"{at}/MatMul_1")
        mixed = self.add("Transpose", mixed, perm=[0, 2, 1, 3], name=f"{at}/Transpose_out")
        shape = self.add("Concat", *dims, self.ints([self.size.hidden]), axis=0, name=f"{at}/Concat_out")
        return self.add("Reshape", mixed, shape, name=f"{at}/Reshape_out")

    def forbidden(self) -> str:
        return self.number(float(np.finfo(self.float).min) / 2)  # two of them are still finite

    def values(self, name: str, *shape: str | int) -> Any:
        return helper.make_tensor_value_info(name, KINDS[self.kind][0], shape)


class Encoder(Transformer):
    def build(self, classes: int) -> tuple[list[Any], list[Any]]:
        size, add, d = self.size, self.add, self.size.hidden
        at = "/bert/embeddings"
        batch, length = self.dims("input_ids", at)
        positions = add(
            "Slice", self.ints([list(range(POSITIONS))]), self.ints([0]), length, self.ints([1]), name=f"{at}/Slice"
        )
        words = self.weight("bert.embeddings.word_embeddings.weight", size.vocabulary, d)
        places = self.weight("bert.embeddings.position_embeddings.weight", POSITIONS, d, scale=0.3)
        types = self.weight("bert.embeddings.token_type_embeddings.weight", 2, d, scale=0.1)
        x = add("Gather", words, "input_ids", name=f"{at}/word_embeddings/Gather")
        x = add(
            "Add",
            x,
            add("Gather", types, "token_type_ids", name=f"{at}/token_type_embeddings/Gather"),
            name=f"{at}/Add",
        )
        x = add("Add", x, add("Gather", places, positions, name=f"{at}/position_embeddings/Gather"), name=f"{at}/Add_1")
        x = self.norm(x, f"{at}/LayerNorm")
        mask = add("Cast", add("Unsqueeze", "attention_mask", self.ints([1, 2])), to=KINDS[self.kind][0])
        mask = add("Mul", add("Sub", self.number(1), mask), self.forbidden(), name="/bert/Mul")
        for i in range(size.layers):
            x = self.layer(x, mask, (batch, length), f"/bert/encoder/layer.{i}")
        first = add("Gather", x, self.ints(0), axis=1, name="/bert/pooler/Gather")
        pooled = self.linear(first, "/bert/pooler/dense", d, d, bias=True)
        if classes:
            pooled = add("Tanh", pooled, name="/bert/pooler/Tanh")
            add("Identity", self.linear(pooled, "/classifier", d, classes, gain=4.0, bias=True), out=["logits"])
            outputs = [self.values("logits", "batch", classes)]
        else:
            add("Tanh", pooled, name="/bert/pooler/Tanh", out=["pooler_output"])
            add("Identity", x, out=["last_hidden_state"])
            outputs = [self.values("last_hidden_state", "batch", "length", d), self.values("pooler_output", "batch", d)]
        return [token_ids(name) for name in ("input_ids", "attention_mask", "token_type_ids")], outputs

    def norm(self, x: str, at: str) -> str:
        name = at[1:].replace("/", ".")
        weight = self.weight(f"{name}.weight", self.size.hidden, scale=0.2, mean=1.0, loud=True)
        bias = self.weight(f"{name}.bias", self.size.hidden, scale=0.1)
        return self.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=1e-12, name=f"{at}/LayerNormalization")

    def layer(self, x: str, mask: str, dims: tuple[str, str], at: str) -> str:
        add, d, inner, heads = self.add, self.size.hidden, self.size.inner, self.size.heads
        here = f"{at}/attention/self"
        gains = {"query": 1.5, "key": 1.5, "value": 1.0}
        q, k, v = (
            self.heads(self.linear(x, f"{here}/{part}", d, d, gain, True), dims, heads, f"{here}/{part}")
            for part, gain in gains.items()
        )
        y = self.linear(self.attended(q, k, v, mask, dims, here), f"{at}/attention/output/dense", d, d, bias=True)
        x = self.norm(add("Add", y, x, name=f"{at}/attention/output/Add"), f"{at}/attention/output/LayerNorm")
        here = f"{at}/intermediate"
        y = self.linear(x, f"{here}/dense", d, inner, bias=True)
        erf = add("Erf", add("Div", y, self.number(2**0.5), name=f"{here}/act/Div"), name=f"{here}/act/Erf")
        y = add("Mul", y, add("Add", erf, self.number(1), name=f"{here}/act/Add"), name=f"{here}/act/Mul")
        y = add("Mul", y, self.number(0.5), name=f"{here}/act/Mul_1")
        y = self.linear(y, f"{at}/output/dense", inner, d, bias=True)
        return self.norm(add("Add", y, x, name=f"{at}/output/Add"), f"{at}/output/LayerNorm")


class Decoder(Transformer):
    def build(self, past: bool) -> tuple[list[Any], list[Any]]:
        size, add, d = self.size, self.add, self.size.hidden
        width = d // size.heads
        inputs, outputs = [token_ids("input_ids"), token_ids("attention_mask", "total" if past else "length")], []
        x = add(
            "Gather",
            self.weight("model.embed_tokens.weight", size.vocabulary, d),
            "input_ids",
            name="/model/embed_tokens/Gather",
        )
        dims = self.dims("input_ids", "/model")
        place = add("Sub", add("CumSum", "attention_mask", self.ints(1)), self.ints(1), name="/model/positions/Sub")
        place = add("Max", place, self.ints(0))  # where the mask begins with zeros
        if past:  # the places of the new tokens are the last ones
            start = add("Neg", dims[1], name="/model/positions/Neg")
            place = add("Slice", place, start, self.ints([2**62]), self.ints([1]), name="/model/positions/Slice")
        rotary = self.rotary(place, width)
        mask = self.causal(dims)
        for i in range(size.layers):
            keys = [f"past_key_values.{i}.{part}" for part in ("key", "value")] if past else []
            x = self.layer(x, mask, rotary, dims, keys, i)
            for name in keys:
                inputs.append(self.values(name, "batch", size.kv_heads, "past", width))
                outputs.append(
                    self.values(name.replace("past_key_values", "present"), "batch", size.kv_heads, "total", width)
                )
        x = self.norm(x, "/model/norm")
        head = self.made("onnx::MatMul.lm_head", (d, size.vocabulary), self.lm_head)
        add("MatMul", x, head, name="/lm_head/MatMul", out=["logits"])
        return inputs, [self.values("logits", "batch", "length", size.vocabulary), *outputs]

    def lm_head(self) -> Any:
        """A logit has a deviation of 2.5; that of the token that follows lies 5 such deviations higher."""
        d, vocabulary = self.size.hidden, self.size.vocabulary
        shared = min(5 / (d / 5) ** 0.5, 0.9)
        head = self.normal("lm_head", d, vocabulary, scale=2.5 * d**-0.5 * (1 - shared**2) ** 0.5)
        words = self.normal("model.embed_tokens.weight", vocabulary, d, scale=2.5 * d**-0.5 * shared)
        head[:, 1:] += words[:-1].T
        head[:, 0] += words[-1]
        return head

    def norm(self, x: str, at: str) -> str:
        add, half = self.add, self.kind == "float16"
        if half:
            x = add("Cast", x, to=TensorProto.FLOAT, name=f"{at}/Cast")
        square = add("Pow", x, self.single(2), name=f"{at}/Pow")
        mean = add("ReduceMean", square, axes=[-1], keepdims=1, name=f"{at}/ReduceMean")
        root = add("Sqrt", add("Add", mean, self.single(1e-5), name=f"{at}/Add"), name=f"{at}/Sqrt")
        x = add("Mul", x, add("Div", self.single(1), root, name=f"{at}/Div"), name=f"{at}/Mul")
        if half:
            x = add("Cast", x, to=TensorProto.FLOAT16, name=f"{at}/Cast_1")
        name = f"{at[1:].replace('/', '.')}.weight"
        return add("Mul", self.weight(name, self.size.hidden, scale=0.2, mean=1.0, loud=True), x, name=f"{at}/Mul_1")

    def rotary(self, place: str, width: int) -> tuple[str, str]:
        """Cosine and sine of every place, as [batch, 1, length, width]."""
        add, at = self.add, "/model/rotary_emb"
        turns = self.graph.constant([[10000.0 ** (-i / width) for i in range(0, width, 2)]], np.float32)
        place = add("Cast", add("Unsqueeze", place, self.ints([2])), to=TensorProto.FLOAT, name=f"{at}/Cast")
        angle = add("MatMul", place, turns, name=f"{at}/MatMul")
        angle = add("Concat", angle, angle, axis=-1, name=f"{at}/Concat")
        found = []
        for op in ("Cos", "Sin"):
            y = add(op, angle, name=f"{at}/{op}")
            if self.kind == "float16":
                y = add("Cast", y, to=TensorProto.FLOAT16, name=f"{at}/{op}/Cast")
            found.append(add("Unsqueeze", y, self.ints([1]), name=f"{at}/{op}/Unsqueeze"))
        return found[0], found[1]

    def turned(self, x: str, rotary: tuple[str, str], at: str) -> str:
        half, end = self.ints([self.size.hidden // self.size.heads // 2]), self.ints([2**62])
        low = self.add("Slice", x, self.ints([0]), half, self.ints([3]), name=f"{at}/Slice")
        high = self.add("Slice", x, half, end, self.ints([3]), name=f"{at}/Slice_1")
        other = self.add("Concat", self.add("Neg", high, name=f"{at}/Neg"), low, axis=-1, name=f"{at}/Concat")
        x = self.add("Mul", x, rotary[0], name=f"{at}/Mul")
        return self.add("Add", x, self.add("Mul", other, rotary[1], name=f"{at}/Mul_1"), name=f"{at}/Add")

    def causal(self, dims: tuple[str, str]) -> str:
        """[batch, 1, length, total]: what is added to scores, zero where a token may look."""
        add, at = self.add, "/model/mask"
        total = add("Gather", add("Shape", "attention_mask"), self.ints(1), axis=0, name=f"{at}/Gather")
        length = add("Squeeze", dims[1], self.ints([0]), name=f"{at}/Squeeze")
        keys = add("Range", self.ints(0), total, self.ints(1), name=f"{at}/Range")
        queries = add("Range", add("Sub", total, length), total, self.ints(1), name=f"{at}/Range_1")
        seen = add(
            "LessOrEqual",
            add("Unsqueeze", keys, self.ints([0])),
            add("Unsqueeze", queries, self.ints([1])),
            name=f"{at}/LessOrEqual",
        )
        real = add(
            "Cast", add("Unsqueeze", "attention_mask", self.ints([1, 2])), to=TensorProto.BOOL, name=f"{at}/Cast"
        )
        allowed = add("And", seen, real, name=f"{at}/And")
        return add("Where", allowed, self.number(0), self.forbidden(), name=f"{at}/Where")

    def repeated(self, x: str, at: str) -> str:
        """Each head of keys or values once for every query head that shares it."""
        size, width = self.size, self.size.hidden // self.size.heads
        group = size.heads // size.kv_heads
        if group == 1:
            return x
        wide = self.add("Unsqueeze", x, self.ints([2]), name=f"{at}/Unsqueeze")
        wide = self.add("Expand", wide, self.ints([1, 1, group, 1, 1]), name=f"{at}/Expand")
        return self.add("Reshape", wide, self.ints([0, size.heads, -1, width]), name=f"{at}/Reshape")

    def layer(self, x: str, mask: str, rotary: Any, dims: tuple[str, str], past: list[str], number: int) -> str:
        size, add, d = self.size, self.add, self.size.hidden
        at = f"/model/layers.{number}"
        here, kept = f"{at}/self_attn", d * size.kv_heads // size.heads
        normed = self.norm(x, f"{at}/input_layernorm")
        parts = {
            "q_proj": (d, size.heads, 1.5),
            "k_proj": (kept, size.kv_heads, 1.5),
            "v_proj": (kept, size.kv_heads, 1.0),
        }
        q, k, v = (
            self.heads(self.linear(normed, f"{here}/{part}", d, outputs, gain), dims, heads, f"{here}/{part}")
            for part, (outputs, heads, gain) in parts.items()
        )
        q, k = self.turned(q, rotary, f"{here}/q_rotary"), self.turned(k, rotary, f"{here}/k_rotary")
        if past:
            outs = [name.replace("past_key_values", "present") for name in past]
            k = add("Concat", past[0], k, axis=2, name=f"{here}/Concat_key", out=[outs[0]])
            v = add("Concat", past[1], v, axis=2, name=f"{here}/Concat_value", out=[outs[1]])
        k, v = self.repeated(k, f"{here}/k_repeat"), self.repeated(v, f"{here}/v_repeat")
        gain = (4 / (2 * size.layers)) ** 0.5  # of what a block adds to the residual
        y = self.linear(self.attended(q, k, v, mask, dims, here), f"{here}/o_proj", d, d, gain * 2)  # means are smaller
        x = add("Add", x, y, name=f"{at}/Add")
        here, normed = f"{at}/mlp", self.norm(x, f"{at}/post_attention_layernorm")
        gate = self.linear(normed, f"{here}/gate_proj", d, size.inner)
        gate = add("Mul", gate, add("Sigmoid", gate, name=f"{here}/act_fn/Sigmoid"), name=f"{here}/act_fn/Mul")
        y = add("Mul", gate, self.linear(normed, f"{here}/up_proj", d, size.inner), name=f"{here}/Mul")
        y = self.linear(y, f"{here}/down_proj", size.inner, d, gain / 0.6)  # the root of what Silu leaves
        return add("Add", x, y, name=f"{at}/Add_1")


def token_ids(name: str, length: str = "length") -> Any:
    return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length])
