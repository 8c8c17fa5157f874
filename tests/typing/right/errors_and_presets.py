"""Presets as values, statistics in a file, and what is raised."""

import onnxshot

preset = onnxshot.Preset(size=(224, 224), resize="crop", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
try:
    onnxshot.calibrate("model.onnx", "pictures/", preset=preset, output="model.npz")
    onnxshot.quantize("model.onnx", stats="model.npz")
except onnxshot.errors.CalibrationError as error:
    raise SystemExit(f"{error.message}: {error.hint}") from error
verdicts: dict[str, str] = onnxshot.doctor().verdicts
