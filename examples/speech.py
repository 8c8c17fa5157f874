"""A model that hears digits, calibrated on wave files: `python examples/speech.py`.

The samples are a folder of sounds; a preset says at which rate, and how long a sample is. Whisper and wav2vec2 have
presets of their own.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

import onnxshot

SPEECH = Path(__file__).resolve().parents[1] / "fixtures" / "speech"
MODEL = SPEECH / "model.onnx"


def right(model: Path) -> float:
    """Share of 100 spoken digits, by voices that no run has heard, that a model tells right."""
    data = np.load(SPEECH / "heldout.npz")
    waves = data["clips"].astype(np.float32) / 32768
    scores = onnxruntime.InferenceSession(model).run(None, {"wave": waves})[0]
    return float((scores.argmax(1) == data["labels"]).mean())


def main(out: Path) -> None:
    """Quantize, and print what it costs and brings."""
    made = out / "speech.int8.onnx"
    report = onnxshot.quantize(MODEL, SPEECH / "calib", preset=str(SPEECH / "preset.yaml"), output=made).report
    print(f"size    {MODEL.stat().st_size / 1e6:.2f} -> {made.stat().st_size / 1e6:.2f} MB")
    print(f"SQNR    {report.sqnr_db:.1f} dB on held-out sounds, verdict: {report.verdict.level}")
    print(f"digits  {100 * right(MODEL):.1f} -> {100 * right(made):.1f} % heard right")
    print(f"int8    {100 * (report.int8_macs_share or 0):.0f} % of the work, {report.speedup or 1:.2f}x as fast")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    folder.mkdir(parents=True, exist_ok=True)
    main(folder)
