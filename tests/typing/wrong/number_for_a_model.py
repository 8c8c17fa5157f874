from pathlib import Path

import onnxshot

onnxshot.quantize("model.onnx", 5)  # wrong: arg-type
onnxshot.quantize(5, "samples/")  # wrong: arg-type
onnxshot.bench([object()])  # wrong: list-item
onnxshot.bench(object())  # wrong: arg-type
onnxshot.quantize("model.onnx", "samples/", preset=5)  # wrong: arg-type
with Path("model.onnx").open() as text:
    onnxshot.inspect(text)  # wrong: arg-type
