import onnxshot

onnxshot.prune("model.onnx", sparsity=0.5, scope="layers")  # wrong: arg-type
onnxshot.shrink("model.onnx", target_flops=0.7, multiple=4)  # wrong: arg-type
onnxshot.compress("model.onnx", "samples/", mode="int8")  # wrong: arg-type
