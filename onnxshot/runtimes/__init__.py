"""Runtimes that run models and make artifacts: ONNX Runtime, OpenVINO and TensorRT.

`base` defines what each implements.
"""
