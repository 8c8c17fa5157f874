"""Pictures of a folder, a preset, and the figures of the report."""

import onnxshot

result = onnxshot.quantize("model.onnx", "pictures/", preset="imagenet", output="model.int8.onnx", effort="best")
decibels: float | None = result.report.sqnr_db
size: int = sum(artifact.bytes for artifact in result.report.outputs)
left = [skip.reason for skip in result.plan.skips]
result.save("copy.onnx").unlink()
