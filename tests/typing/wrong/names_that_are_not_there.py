import onnxshot

onnxshot.quantise("model.onnx")  # wrong: attr-defined
result: onnxshot.PruneResult = onnxshot.quantize("model.onnx")  # wrong: assignment
goal = onnxshot.Goal(min_sqnr="30")  # wrong: arg-type
