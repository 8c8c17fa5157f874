"""Structural mutants of real models: what onnxshot makes of each, held against what ONNX Runtime makes of it.

`python tests/helpers/fuzzing/run.py --count 600` runs them and prints a table; --folder takes models of one's own.
"""
