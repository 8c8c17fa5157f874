"""Arrays in memory, options by name, and rules for some layers."""

from pathlib import Path

import numpy as np

import onnxshot

feeds = [{"x": np.ones((1, 3, 8, 8), np.float32)} for _ in range(4)]
options: onnxshot.RecipeOptions = {"target": "openvino", "exclude": ["Softmax"], "shapes": {"x": [1, 3, 8, 8]}}
options["layers"] = {"head*": {"mode": "float"}, "conv1*": {"weight_type": "int8", "method": "mse"}}
onnxshot.quantize(Path("model.onnx"), feeds, **options, emit=("onnx", "openvino"))
onnxshot.quantize("model.onnx", feeds, output="model.xml", emit="openvino")
