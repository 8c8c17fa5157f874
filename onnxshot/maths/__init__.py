"""Quantization arithmetic on numpy arrays: no graph, no file, no ONNX."""
