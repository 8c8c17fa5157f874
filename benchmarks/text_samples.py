"""An encoder calibrated on sentences, beside the arrays of their ids.

`python benchmarks/text_samples.py FOLDER TOKENIZER`
FOLDER has model.onnx, calib/ with one .npz of `input_ids` a sample, and eval.npz: ids and offsets of sentences, and
labels. TOKENIZER is the folder of the model's tokenizer.json. The ids of calib/ are decoded into a file of sentences.
`--other FILE` names texts of another kind. A Markdown table: one row for each kind of samples, with the SQNR of the
first output over eval.npz, top-1, and the share of samples with the float model's choice.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
from readme import head, table
from tokenizers import Tokenizer

import onnxshot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--other", type=Path, help="texts of another kind")
    args = parser.parse_args()
    model = args.folder / "model.onnx"
    stored = np.load(args.folder / "eval.npz")
    expected = logits(model, stored)
    head("samples", "number", "SQNR dB", "top-1 %", "as float %", "SHA-256 of the file")
    table("float", "", "", f"{figure(expected, expected, stored['labels'])[1]:.2f}", "", "")
    with tempfile.TemporaryDirectory() as made:
        sentences = Path(made) / "sentences.txt"
        sentences.write_text("\n".join(decoded(args.folder / "calib", args.tokenizer)) + "\n", encoding="utf-8")
        given = {"arrays": args.folder / "calib", "sentences": sentences, "other texts": args.other}
        for name, calib in given.items():
            if calib is None:
                continue
            out = Path(made) / f"{name}.onnx"
            preset = onnxshot.TextPreset(args.tokenizer) if name != "arrays" else None
            settings = onnxshot.Settings(samples=len(list((args.folder / "calib").iterdir())), use_cache=False)
            onnxshot.quantize(model, calib, output=out, preset=preset, settings=settings)
            sqnr, top, agreed = figure(expected, logits(out, stored), stored["labels"])
            digest = hashlib.sha256(out.read_bytes()).hexdigest()
            table(name, str(settings.samples), f"{sqnr:.1f}", f"{top:.2f}", f"{agreed:.2f}", digest[:12])


def decoded(folder: Path, tokenizer: Path) -> list[str]:
    """The sentences of the samples, in order. Exits where one does not become the same ids again."""
    known = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    known.no_truncation()
    known.no_padding()
    found = []
    for path in sorted(folder.glob("*.npz")):
        ids = np.load(path)["input_ids"][0].tolist()
        found.append(known.decode(ids))
        if known.encode(found[-1]).ids != ids:
            raise SystemExit(f"{path}: the text of its ids has other ids")
    return found


def logits(model: Path, stored: np.lib.npyio.NpzFile) -> np.ndarray:
    """The first output of every evaluation sample."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = []
    for start, end in zip(stored["offsets"][:-1], stored["offsets"][1:], strict=True):
        ids = stored["ids"][start:end][None]
        found.append(session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0])
    return np.array(found, np.float64)


def figure(expected: np.ndarray, found: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """SQNR in dB, top-1 in percent, and the share of equal choices in percent."""
    noise = max(float(((found - expected) ** 2).sum()), 1e-30)
    choices = found.argmax(-1)
    agreed = 100 * float((choices == expected.argmax(-1)).mean())
    return 10 * np.log10(float((expected**2).sum()) / noise), 100 * float((choices == labels).mean()), agreed


if __name__ == "__main__":
    main()
