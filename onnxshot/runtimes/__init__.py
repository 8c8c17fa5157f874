"""Runtimes that run models and make artifacts: ONNX Runtime, OpenVINO and TensorRT.

`base` defines what each implements. A runtime knows no recipes and no plans. Which target uses which runtime is said in
targets/.
"""
