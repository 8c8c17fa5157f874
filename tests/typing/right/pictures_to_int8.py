"""Pictures of a folder, a preset, and the figures of the report."""

from pathlib import Path

import onnxshot

result = onnxshot.quantize("model.onnx", "pictures/", preset="imagenet", output="model.int8.onnx", effort="best")
decibels: float | None = result.report.sqnr_db
size: int = sum(artifact.bytes for artifact in result.report.outputs)
left = [skip.reason for skip in result.plan.skips]
result.save("copy.onnx").unlink()
onnxshot.compare("model.onnx", Path("model.int8.onnx"), Path("pictures"), preset=Path("preset.yaml"))
again: bool | None = onnxshot.replay("model.onnx", result, Path("again.onnx")).same
