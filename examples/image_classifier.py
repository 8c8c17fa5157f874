"""An image classifier in int8, calibrated on a folder of pictures: `python examples/image_classifier.py`.

Yours: the path of your model, a folder with some dozens of pictures, and how they become its input
(a preset such as "imagenet", or a YAML file as here). Labels judge the result.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

import onnxshot

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
MODEL = FIXTURES / "models" / "digits_resnet.onnx"
DIGITS = FIXTURES / "data" / "digits"


def right(model: Path) -> float:
    """Share of 600 digits, which no run has seen, that a model tells right."""
    data = np.load(DIGITS / "heldout.npz")
    pictures = (data["images"][:, None].astype(np.float32) / 255 - data["mean"]) / data["std"]
    session = onnxruntime.InferenceSession(model)
    scores = session.run(None, {"image": pictures.astype(np.float32)})[0]
    return float((scores.argmax(1) == data["labels"]).mean())


def main(out: Path) -> None:
    """Quantize, and print what it costs and brings."""
    made = out / "classifier.int8.onnx"
    result = onnxshot.quantize(MODEL, DIGITS / "calib", preset=str(DIGITS / "preset.yaml"), output=made)
    report = result.report
    print(f"size      {MODEL.stat().st_size / 1e6:.2f} -> {made.stat().st_size / 1e6:.2f} MB")
    print(f"SQNR      {report.sqnr_db:.1f} dB on held-out pictures, verdict: {report.verdict.level}")
    print(f"top-1     {100 * right(MODEL):.1f} -> {100 * right(made):.1f} %")
    print(f"int8      {100 * (report.int8_macs_share or 0):.0f} % of the work, {report.speedup or 1:.2f}x as fast")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    folder.mkdir(parents=True, exist_ok=True)
    main(folder)
