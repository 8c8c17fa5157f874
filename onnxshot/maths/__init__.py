"""Numerical methods of quantization and pruning on numpy arrays. Nothing here knows graphs, files or ONNX models.

Each file is one method and names its paper where there is one. Start with `quant_scheme` (scale and zero point),
`gptq`, `optimal_brain_surgeon` or `int4_packing`.
"""
