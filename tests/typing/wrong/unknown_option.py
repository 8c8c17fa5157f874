import onnxshot

onnxshot.quantize("model.onnx", "samples/", efort="best")  # wrong: call-arg
onnxshot.tune("model.onnx", "samples/", onnxshot.Goal(min_sqnr=30), granularity="channel")  # wrong: call-arg
