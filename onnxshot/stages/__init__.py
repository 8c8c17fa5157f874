"""The stages of a quantization."""
