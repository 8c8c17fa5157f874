import onnxshot

report = onnxshot.compare("model.onnx", "model.int8.onnx", "samples/")
assert report.sqnr_db > 30  # wrong: operator
print(report.sqnr)  # wrong: attr-defined
