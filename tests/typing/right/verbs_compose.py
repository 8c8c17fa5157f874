"""The result of one verb is the model of the next."""

import onnxshot

small: onnxshot.ShrinkResult = onnxshot.shrink("model.onnx", "samples/", target_flops=0.7, multiple=16)
sparse = onnxshot.prune(small, "samples/", sparsity=0.5, scope="auto")
result = onnxshot.quantize(sparse, "samples/", effort="fast")
report = onnxshot.compare("model.onnx", result, "samples/")
before, after = onnxshot.bench(["model.onnx", result], "samples/", seconds=1)
alone = onnxshot.bench("model.onnx")[0].median_ms
faster: float = before.median_ms / after.median_ms
changed: dict[str, int] = onnxshot.diff(sparse.model_proto, result).changed
