"""A recipe as a value, taken over by another call."""

from dataclasses import replace

import onnxshot

recipe = onnxshot.Recipe(mode="weights", bits=4, block=32, exclude=("lm_head",))
print(onnxshot.inspect("model.onnx", recipe=recipe).to_text())
for block in (32, 64):
    onnxshot.quantize("model.onnx", recipe=replace(recipe, block=block), weight_method="mse")
