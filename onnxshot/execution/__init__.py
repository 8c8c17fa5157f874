"""Run models over samples in ONNX Runtime, whole or layer by layer, and keep statistics of their tensors."""
