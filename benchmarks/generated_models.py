"""Make transformers with random weights, of any size: `python benchmarks/generated_models.py decoder --output FOLDER`.

The folder gets model.onnx (weights in model.onnx.data where they take more than 1.8 GB, or with --external), calib/
with one .npz a sample, and eval.npz, whose arrays are named INPUT__NUMBER. The same seed gives the same bytes. Weights
are made and written one at a time.

    encoder   BERT: LayerNormalization behind the residual, Gelu by Erf; gives last_hidden_state and pooler_output,
              or logits of --classes
    decoder   LLaMA: RMSNorm, rotary embedding, grouped queries, SwiGLU, lm_head; gives logits, with --past the keys and
              values too. The operators are those that exporters write. In float16, norms and softmaxes are float32.

With bfloat16, which ONNX Runtime does not run on a CPU, weights are stored so, and a Cast to float32 stands behind
each.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from streamed_model import KINDS, write
from transformer_graphs import Decoder, Encoder, Size

INLINE = 1_800_000_000  # bytes; a protobuf holds less than 2 GiB

SIZES = {
    "encoder": {
        "tiny": Size(2, 64, 256, 4, 4, 512),
        "small": Size(4, 256, 1024, 8, 8, 2000),
        "medium": Size(8, 512, 2048, 8, 8, 30522),
        "base": Size(12, 768, 3072, 12, 12, 30522),
        "large": Size(24, 1024, 4096, 16, 16, 30522),
    },
    "decoder": {
        "tiny": Size(2, 64, 176, 4, 2, 512),
        "small": Size(4, 256, 704, 8, 4, 2000),
        "medium": Size(8, 512, 1408, 8, 4, 8000),
        "125m": Size(12, 768, 2048, 12, 4, 32000),
        "1.1b": Size(22, 2048, 5632, 32, 4, 32000),
        "7b": Size(32, 4096, 11008, 32, 32, 32000),
    },
}


def samples(
    kind: str, size: Size, count: int, past: bool, dtype: str, seed: int, longest: int = 128
) -> list[dict[str, Any]]:
    """Feeds of one sequence of 32 to `longest` tokens, as frequent as words are. With `past`, every other one goes on
    from keys and values of half its length."""
    rng = np.random.default_rng([seed, 7])
    shares = 1 / (np.arange(size.vocabulary) + 3.0)
    feeds = []
    for i in range(count):
        length = int(rng.integers(min(32, longest), longest + 1))
        ids = rng.choice(size.vocabulary, (1, length), p=shares / shares.sum()).astype(np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones((1, length), np.int64)}
        if kind == "encoder":
            feed["token_type_ids"] = np.zeros((1, length), np.int64)
        if past:
            before = length // 2 if i % 2 else 0
            feed["input_ids"] = ids[:, before:]
            shape = (1, size.kv_heads, before, size.hidden // size.heads)
            values = np.float16 if dtype == "float16" else np.float32
            for layer in range(size.layers):
                for part in ("key", "value"):
                    feed[f"past_key_values.{layer}.{part}"] = rng.standard_normal(shape, np.float32).astype(values)
        feeds.append(feed)
    return feeds


def generate(
    kind: str, size: Size, folder: Path, *, dtype: str = "float32", past: bool = False, classes: int = 0,
    external: bool | None = None, seed: int = 0,
) -> Path:  # fmt: skip
    """Write model.onnx into `folder` and give its path. `external` None: where the weights take more than 1.8 GB."""
    folder.mkdir(parents=True, exist_ok=True)
    made = (Encoder if kind == "encoder" else Decoder)(size, dtype, seed)
    inputs, outputs = made.build(classes) if isinstance(made, Encoder) else made.build(past)
    total = sum(weight.length for weight in made.graph.weights)
    path = folder / "model.onnx"
    write(made.graph, path, inputs, outputs, 17, total > INLINE if external is None else external)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted(SIZES))
    parser.add_argument(
        "--size", default="small", help="; ".join(f"{kind}: {', '.join(SIZES[kind])}" for kind in SIZES)
    )
    parser.add_argument("--dtype", choices=sorted(KINDS), default="float32")
    parser.add_argument("--past", action="store_true", help="keys and values of tokens before, as inputs and outputs")
    parser.add_argument("--classes", type=int, default=0, help="an encoder's: logits in place of hidden states")
    parser.add_argument("--external", action="store_true", help="weights in a file of their own, however small")
    parser.add_argument("--samples", type=int, default=32, help="in calib/; half as many more go into eval.npz")
    parser.add_argument("--longest", type=int, default=128, help="tokens of a sample, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    args = parser.parse_args()
    if args.size not in SIZES[args.kind]:
        parser.error(f"--size is one of {', '.join(SIZES[args.kind])}")
    size = SIZES[args.kind][args.size]
    past = args.past and args.kind == "decoder"
    options = {"dtype": args.dtype, "past": past, "classes": args.classes, "external": args.external or None}
    path = generate(args.kind, size, args.output, seed=args.seed, **options)
    (args.output / "calib").mkdir(exist_ok=True)
    feeds = samples(args.kind, size, args.samples + args.samples // 2, past, args.dtype, args.seed, args.longest)
    for i, feed in enumerate(feeds[: args.samples]):
        np.savez(args.output / "calib" / f"{i:04}.npz", **feed)
    judged = {f"{name}__{i}": v for i, feed in enumerate(feeds[args.samples :]) for name, v in feed.items()}
    np.savez(args.output / "eval.npz", **judged)
    print(f"{path}: {sum(p.stat().st_size for p in args.output.glob('model.onnx*')) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
