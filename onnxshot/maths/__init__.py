"""Numerical methods of quantization and pruning on numpy arrays. Nothing here knows graphs, files or ONNX models."""
