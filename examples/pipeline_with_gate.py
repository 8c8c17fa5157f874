"""Prune, quantize, hold a gate, bundle and verify, or stop: `python examples/pipeline_with_gate.py`.

The recipe serves a family of models: a glob with `?` in front may match nothing. The gate is a score of your own and
the verdict of the report; where it fails, the script ends with exit code 3, as the commands do.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

import onnxshot

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
MODEL = FIXTURES / "models" / "digits_mobile.onnx"
DIGITS = FIXTURES / "data" / "digits"
RECIPE = """
stages:
  - prune: {sparsity: 0.3, exclude: ["?*stem*", "?Gemm"]}
  - quantize: {effort: fast, exclude: ["?*detect*"]}
"""
LEAST_DB, MOST_DROP = 18.0, 0.01


def right(model: Path) -> float:
    """Share of 600 digits, which no run has seen, that a model tells right."""
    data = np.load(DIGITS / "heldout.npz")
    pictures = (data["images"][:, None].astype(np.float32) / 255 - data["mean"]) / data["std"]
    scores = onnxruntime.InferenceSession(model).run(None, {"image": pictures.astype(np.float32)})[0]
    return float((scores.argmax(1) == data["labels"]).mean())


def main(out: Path) -> int:
    """Run the stages, print each, hold the gate, and write a verified bundle. Returns the exit code."""
    recipe, made = out / "recipe.yaml", out / "gated.int8.onnx"
    recipe.write_text(RECIPE)
    data, preset = DIGITS / "calib", str(DIGITS / "preset.yaml")
    result = onnxshot.compress(MODEL, data, preset=preset, recipe=recipe, output=made)
    for stage in result.report.stages:
        print(
            f"{stage.name:<10} {stage.bytes / 1e6:.2f} MB  {'' if stage.sqnr_db is None else f'{stage.sqnr_db:.1f} dB'}"
        )
    drop, sqnr = right(MODEL) - right(made), result.report.sqnr_db or 0.0
    print(f"gate       {sqnr:.1f} dB (at least {LEAST_DB:g}), top-1 falls by {100 * drop:.1f} points (at most 1)")
    if sqnr < LEAST_DB or drop > MOST_DROP or result.report.verdict.level == "bad":
        print(f"stopped    {'; '.join(result.report.verdict.reasons)}")
        return 3
    onnxshot.bundle(result, out / "bundle", data, preset=preset)
    checked = onnxshot.verify(out / "bundle")
    print(f"verified   {checked.files} files and {checked.samples} samples of {out / 'bundle'}")
    return 3 if checked.deviations else 0


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    folder.mkdir(parents=True, exist_ok=True)
    sys.exit(main(folder))
