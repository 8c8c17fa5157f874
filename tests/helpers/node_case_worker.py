"""Runs the onnx package's node test cases from a given one on, as given and transformed; a line of JSON per case.

Usage: node_case_worker.py TRANSFORM FIRST. Some cases bring the process down: the caller goes on behind them.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from load_and_save import TRANSFORMS, load_and_save
from onnx.backend.test.case import node

from onnxshot.errors import OnnxshotError
from onnxshot.maths.sqnr import sqnr_db

RTOL = 1e-6
HALF_RTOL = 2e-3  # two roundings: ORT computes float16 in float32 and rounds between nodes, so one less rounds less


def fed(value: Any) -> Any:
    """A value as onnxruntime takes it; types that numpy lacks come as TensorProto and go in as their bits."""
    if isinstance(value, onnx.TensorProto):
        array = onnx.numpy_helper.to_array(value)
        if array.dtype.kind != "V":
            return array
        bits = array.view(np.dtype(f"u{array.dtype.itemsize}"))
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, value.data_type)
    return np.asarray(value) if isinstance(value, np.generic) else value


def run(model: Path, inputs: list[Any]) -> tuple[list[tuple[str, str]], list[Any]]:
    """Names and types of the outputs, and their values."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Without fusions of its own: what differs is then what onnxshot did.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    feed = {info.name: fed(value) for info, value in zip(session.get_inputs(), inputs, strict=False)}
    contract = [(info.name, info.type) for info in (*session.get_inputs(), *session.get_outputs())]
    return contract, session.run(None, feed)


def loads(model: Path) -> bool:
    """Whether ONNX Runtime loads the model with all of its optimizations: its folding sees what ours does not."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def same(a: Any, b: Any) -> bool:
    """Equal up to RTOL; NaN equals NaN, types and shapes count."""
    if a is None or b is None:
        return a is b
    if isinstance(a, list | dict):
        pairs = zip(a, b, strict=False) if isinstance(a, list) else ((a[k], b.get(k)) for k in a)
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in pairs)
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind in "fc":
        rtol = HALF_RTOL if a.dtype == np.float16 else RTOL
        return bool(np.allclose(a, b, rtol=rtol, atol=0, equal_nan=True))
    return a.tobytes() == b.tobytes() if a.dtype != object else a.tolist() == b.tolist()


def outcome(model: onnx.ModelProto, inputs: list[Any], transform: str, folder: Path) -> tuple[str, str]:
    """One of 'not run' (ORT does not, or not twice the same), 'ok' and 'failed', and why."""
    given, made = folder / "given.onnx", folder / "made.onnx"
    onnx.save(model, str(given))
    try:
        contract, before = run(given, inputs)
        _, again = run(given, inputs)
    except Exception as e:
        return "not run", f"{type(e).__name__}: {e}"[:200]
    if not same(before, again):
        return "not run", "two runs differ"
    print(json.dumps(["transforming"]), flush=True)
    try:
        load_and_save(given, made, TRANSFORMS[transform])
    except OnnxshotError as e:
        return "refused" if transform == "weights" else "failed", str(e)
    try:
        onnx.checker.check_model(str(made))
        made_contract, after = run(made, inputs)
    except Exception as e:
        return "failed", f"{type(e).__name__}: {e}"[:400]
    if contract != made_contract:
        return "failed", f"inputs and outputs were {contract}, are {made_contract}"
    if loads(given) and not loads(made):
        return "failed", "it does not load with ONNX Runtime's optimizations"
    if same(before, after):
        return "ok", ""
    if "DequantizeLinear" in {n.op_type for n in onnx.load(made).graph.node} and transform == "weights":
        return ("ok", "quantized") if sqnr_db(before[0], after[0]) > 20 else ("failed", "quantized wrongly")
    return "failed", "outputs differ"


def main(transform: str, first: int) -> None:
    """Go through the cases in the order of their names."""
    for index, (name, model, inputs) in enumerate(cases()[first:], first):
        print(json.dumps(["begin", index, name]), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(["end", *outcome(model, inputs, transform, Path(folder))]), flush=True)


def cases() -> list[tuple[str, onnx.ModelProto, list[Any]]]:
    """Name, model and inputs of every case, in the order of their names."""
    with np.errstate(all="ignore"):
        found = sorted(node.collect_testcases(None), key=lambda c: str(c.name))
    return [(str(c.name), c.model, list(data[0])) for c in found if c.model for data in (c.data_sets or [])[:1]]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
