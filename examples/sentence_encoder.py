"""A sentence encoder with int8 products, judged by neighbours: `python examples/sentence_encoder.py`.

Samples are dicts from the name of an input to an array, here of different lengths. What counts for search is whether
the nearest passage stays the nearest.
"""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import onnxshot

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
MODEL = FIXTURES / "models" / "licence_encoder.onnx"
LICENCES = FIXTURES / "data" / "licences"


def passages() -> list[dict[str, NDArray[np.int64]]]:
    """Passages that the model has not seen, as its inputs."""
    data = np.load(LICENCES / "heldout.npz")
    tokens = [data["ids"][start:stop].astype(np.int64)[None] for start, stop in pairwise(data["offsets"])]
    return [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in tokens]


def neighbours(model: Path) -> NDArray[np.int64]:
    """The nearest other passage of each, by the cosine of their vectors."""
    session = onnxruntime.InferenceSession(model)
    vectors = np.concatenate([session.run(None, passage)[0] for passage in passages()])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    return cosines.argmax(1)


def main(out: Path) -> None:
    """Quantize with scales at run time, which need no ranges, and print what it costs and brings."""
    made = out / "encoder.int8.onnx"
    result = onnxshot.quantize(MODEL, LICENCES / "calib", mode="dynamic", output=made)
    report = result.report
    same = (neighbours(MODEL) == neighbours(made)).mean()
    print(f"size        {MODEL.stat().st_size / 1e6:.2f} -> {made.stat().st_size / 1e6:.2f} MB")
    print(f"SQNR        {report.sqnr_db:.1f} dB on held-out passages, verdict: {report.verdict.level}")
    print(f"neighbours  {100 * same:.1f} % of 400 passages have the same nearest one")
    print(f"int8        {100 * (report.int8_macs_share or 0):.0f} % of the work, {report.speedup or 1:.2f}x as fast")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    folder.mkdir(parents=True, exist_ok=True)
    main(folder)
