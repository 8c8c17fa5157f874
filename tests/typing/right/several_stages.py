"""Prune and quantize in one call, with a file for every stage."""

import onnxshot

result: onnxshot.CompressResult = onnxshot.compress(
    "model.onnx", "samples/", sparsity=0.5, pattern="2:4", layers={"conv1*": 0.25}, keep_stages="stages/", clip=False
)
names: list[str] = [row.name for row in result.report.stages]
folder = onnxshot.quantize_folder("whisper/", mode="weights", bits=8)
reports: dict[str, onnxshot.Report] = folder.reports
