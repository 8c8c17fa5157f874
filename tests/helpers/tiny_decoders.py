"""Small language models with random weights, as ONNX and in numpy: a decoder with and without a cache, an encoder."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

VOCABULARY, WIDTH = 23, 8

Floats = NDArray[np.float64]

_HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
_ATTENTION = """
    h = Gather(table, input_ids)
    q0 = MatMul(h, wq)
    k0 = MatMul(h, wk)
    v0 = MatMul(h, wv)
    q = Unsqueeze(q0, one)
    k = Unsqueeze(k0, one)
    v = Unsqueeze(v0, one)
"""
_OUT = """
    turned = Transpose<perm = [0, 1, 3, 2]>(keys)
    raw = MatMul(q, turned)
    blocked = Add(raw, hidden)
    share = Softmax(blocked)
    mixed0 = MatMul(share, values)
    mixed = Squeeze(mixed0, one)
    added = Add(h, mixed)
    logits = MatMul(added, head)
"""
_CAUSAL = """
    qs = Shape<start = 2, end = 3>(q)
    ks = Shape<start = 2, end = 3>(keys)
    size = Concat<axis = 0>(qs, ks)
    before = Sub(ks, qs)
    corner = Add(before, one)
    corner0 = Squeeze(corner)
    full = ConstantOfShape<value = float[1] {-10000.0}>(size)
    triangle = Trilu<upper = 1>(full, corner0)
"""
_MASKED = """
    maskf = Cast<to = 1>(attention_mask)
    seen = Sub(unit, maskf)
    padding0 = Mul(seen, low)
    padding = Unsqueeze(padding0, twice)
    hidden = Add(triangle, padding)
"""


def weights(seed: int = 0, noise: float = 0.0) -> dict[str, NDArray[np.float32]]:
    """Weights of the models; `noise` is added to them, as quantization does."""
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    shapes = {"table": (VOCABULARY, WIDTH), "head": (WIDTH, VOCABULARY)}
    shapes |= dict.fromkeys(("wq", "wk", "wv"), (WIDTH, WIDTH))
    return {
        name: (rng.normal(0, 0.8, shape) + noise * other.normal(0, 1, shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def decoder(noise: float = 0.0, *, cache: bool = False, mask: bool = False, logits: str = "logits") -> bytes:
    """A decoder with one layer of attention.

    Args:
        noise: As in `weights`.
        cache: With past.key and past.value [batch, 1, past, width], and what follows them as present.*.
        mask: With attention_mask [batch, past and positions].
        logits: Name of the output.
    """
    ports = ["int64[B,S] input_ids", *(["int64[B,T] attention_mask"] if mask else [])]
    ports += [f"float[B,1,P,{WIDTH}] past.{x}" for x in ("key", "value")] if cache else []
    ends = [f"float[B,S,{VOCABULARY}] logits"]
    ends += [f"float[B,1,T,{WIDTH}] present.{x}" for x in ("key", "value")] if cache else []
    kept = "keys = Concat<axis = 2>(past.key, k)\nvalues = Concat<axis = 2>(past.value, v)\n"
    kept += "present.key = Identity(keys)\npresent.value = Identity(values)\n"
    body = _ATTENTION + (kept if cache else "keys = Identity(k)\nvalues = Identity(v)\n") + _CAUSAL
    body += (_MASKED if mask else "hidden = Identity(triangle)\n") + _OUT
    return _model(ports, ends, body.replace("logits =", f"{logits} ="), noise, logits)


def encoder(noise: float = 0.0) -> bytes:
    """A model that sees all tokens at once, and scores the words of each position."""
    body = _ATTENTION + "keys = Identity(k)\nvalues = Identity(v)\nhidden = Identity(nothing)\n" + _OUT
    return _model(["int64[B,S] input_ids"], [f"float[B,S,{VOCABULARY}] logits"], body, noise, "logits")


def _model(ports: list[str], ends: list[str], body: str, noise: float, logits: str) -> bytes:
    text = f"g ({', '.join(ports)}) => ({', '.join(ends)}) {{ {body} }}"
    for name in ("past.key", "past.value", "present.key", "present.value"):  # the parser takes no dots
        text = text.replace(name, name.replace(".", "__"))
    proto = parser.parse_model(_HEAD + text.replace("] logits", f"] {logits}"))
    constants: dict[str, Any] = {
        **weights(noise=noise), "one": np.array([1]), "twice": np.array([1, 2]), "unit": np.float32(1.0),
        "low": np.float32(-10000.0), "nothing": np.float32(0.0),
    }  # fmt: skip
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in used)
    for node in proto.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
        node.output[:] = [name.replace("__", ".") for name in node.output]
    for port in (*proto.graph.input, *proto.graph.output):
        port.name = port.name.replace("__", ".")
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def logits_of(ids: NDArray[np.int64], seen: NDArray[np.int64] | None = None, noise: float = 0.0) -> Floats:
    """The decoder in numpy: logits [batch, positions, vocabulary] of whole texts."""
    w = {name: value.astype(np.float64) for name, value in weights(noise=noise).items()}
    h = w["table"][ids]
    raw = (h @ w["wq"]) @ np.moveaxis(h @ w["wk"], 1, 2)
    raw = np.where(np.triu(np.ones(raw.shape[1:], bool), 1), -1e4, 0.0) + raw
    if seen is not None:
        raw = raw + np.where(seen == 0, -1e4, 0.0)[:, None]
    share = np.exp(raw - raw.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return (h + share @ (h @ w["wv"])) @ w["head"]


def logs_of(scores: Floats) -> Floats:
    """Logarithms of the softmax."""
    apart = scores - scores.max(-1, keepdims=True)
    return apart - np.log(np.exp(apart).sum(-1, keepdims=True))


def texts(count: int = 3, length: int = 12) -> list[NDArray[np.int64]]:
    """Random token ids, [1, length] each."""
    rng = np.random.default_rng(7)
    return [rng.integers(0, VOCABULARY, (1, length)) for _ in range(count)]


def written(count: int = 8, length: int = 12) -> list[NDArray[np.int64]]:
    """Texts that the decoder itself writes, so that it predicts them better than chance; [1, length] each."""
    rng = np.random.default_rng(11)
    ids = rng.integers(0, VOCABULARY, (count, 1))
    for _ in range(length - 1):
        share = np.exp(logs_of(logits_of(ids)[:, -1]))
        drawn = [rng.choice(VOCABULARY, p=row / row.sum()) for row in share]
        ids = np.concatenate([ids, np.array(drawn)[:, None]], 1)
    return list(ids[:, None])


def no_past(batch: int = 1) -> dict[str, NDArray[np.float32]]:
    """Pasts of length 0."""
    return {f"past.{x}": np.zeros((batch, 1, 0, WIDTH), np.float32) for x in ("key", "value")}
