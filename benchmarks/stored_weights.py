"""What weights of float ops in 8 bits cost at run time, by form: `python benchmarks/stored_weights.py [--python PATH]`.

Kernels are made here, with random weights, and timed in turns against float32 weights on one thread: int8 -> Cast ->
Mul, and int8 -> DequantizeLinear. --python runs it with another environment's onnxruntime, which needs no onnx. Beside
it, LSTMs in int8 with a scale per direction and per row.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_ROUNDS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", default=[], help="a Python with another onnxruntime")
    parser.add_argument("--time", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.time is not None:
        _time(given.time)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.pickle"
        path.write_bytes(pickle.dumps(list(_kernels())))
        for python in [sys.executable, *given.python]:
            subprocess.run([python, __file__, "--time", str(path)], check=True)


def _time(path: Path) -> None:
    """Time what `main` has made; here nothing but numpy and onnxruntime is needed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    print(f"\nonnxruntime {onnxruntime.__version__}, times of float32 weights over times of each form\n")
    for name, feed, forms in pickle.loads(path.read_bytes()):
        runs: dict[str, Callable[[], Any]] = {}
        for form, model in forms.items():
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            runs[form] = lambda session=session, feed=feed: session.run(None, feed)
        spent: dict[str, list[float]] = {form: [] for form in runs}
        for _ in range(_ROUNDS):
            for form, run in runs.items():
                start = time.thread_time()
                run()
                spent[form].append(time.thread_time() - start)
        first, *others = (statistics.median(times) for times in spent.values())
        ratios = ", ".join(f"{form} {first / own:.2f}x" for form, own in zip(list(runs)[1:], others, strict=True))
        print(f"{name:36} {ratios}")


# ---------------------------------------------------------------------- kernels


def _kernels() -> Iterator[tuple[str, dict[str, Array], dict[str, bytes]]]:
    """(name, feed, serialized model by form); the first form has float32 weights."""
    rng = np.random.default_rng(0)
    for channels, size in ((128, 12), (256, 28)):
        w = rng.normal(size=(channels, channels // 2, 2, 2)).astype(np.float32)
        feed = {"x": rng.normal(size=(1, channels, size, size)).astype(np.float32)}
        forms = _forms("ConvTranspose", feed, [w], (1,), strides=[2, 2])
        yield f"ConvTranspose {channels}, {size} x {size}", feed, forms
    for op, gates in (("GRU", 3), ("LSTM", 4), ("RNN", 1)):
        for steps in (5, 50):
            w, r = (rng.normal(size=(1, gates * 256, n)).astype(np.float32) * 0.05 for n in (128, 256))
            feed = {"x": rng.normal(size=(steps, 1, 128)).astype(np.float32)}
            yield f"{op} of 256, {steps} steps", feed, _forms(op, feed, [w, r], (0, 1), hidden_size=256)
    for steps, inputs, units in ((100, 128, 256), (50, 300, 512)):
        w, r = (rng.normal(size=(1, 4 * units, n)).astype(np.float32) * 0.05 for n in (inputs, units))
        feed = {"x": rng.normal(size=(steps, 1, inputs)).astype(np.float32)}
        yield f"int8 LSTM of {units}, {steps} steps", feed, _dynamic(feed, [w, r], units)


def _int8(w: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    summed = tuple(axis for axis in range(w.ndim) if axis not in axes)
    scale = (np.abs(w).max(axis=summed, keepdims=True) / 127).astype(np.float32)
    return np.clip(np.rint(w / scale), -127, 127).astype(np.int8), scale


def _forms(
    op: str, feed: dict[str, Array], given: list[Array], axes: tuple[int, ...], **attrs: Any
) -> dict[str, bytes]:
    from onnx import helper

    names = [f"w{i}" for i in range(len(given))]
    last = helper.make_node(op, ["x", *names], ["y"], **attrs)
    folded, every_run, constants = [], [], {}
    for name, w in zip(names, given, strict=True):
        q, scale = _int8(w, axes)
        constants |= {f"{name}q": q, f"{name}s": scale, f"{name}v": scale.reshape(-1)}
        folded += [
            helper.make_node("Cast", [f"{name}q"], [f"{name}c"], to=1),
            helper.make_node("Mul", [f"{name}c", f"{name}s"], [name]),
        ]
        every_run.append(helper.make_node("DequantizeLinear", [f"{name}q", f"{name}v"], [name], axis=1))
    return {
        "float32": _model([last], feed, dict(zip(names, given, strict=True))),
        "Cast and Mul": _model([*folded, last], feed, constants),
        "DequantizeLinear": _model([*every_run, last], feed, constants),
    }


def _dynamic(feed: dict[str, Array], given: list[Array], units: int) -> dict[str, bytes]:
    from onnx import helper

    attrs = {"hidden_size": units}
    made = {"float32": _model([helper.make_node("LSTM", ["x", "w", "r"], ["y"], **attrs)], feed,
                              dict(zip(("w", "r"), given, strict=True)))}  # fmt: skip
    for form, axes in (("per direction", (0,)), ("per row", (0, 2))):
        constants: dict[str, Array] = {}
        for name, w in zip(("w", "r"), given, strict=True):
            q, scale = _int8(np.ascontiguousarray(w.transpose(0, 2, 1)), axes)
            scale = scale[:, 0] if len(axes) == 2 else scale[:, 0, 0]
            constants |= {name: q, f"{name}s": scale, f"{name}z": np.zeros(scale.shape, np.int8)}
        inputs = ["x", "w", "r", *[""] * 5, "ws", "wz", "rs", "rz"]
        node = helper.make_node("DynamicQuantizeLSTM", inputs, ["y"], domain="com.microsoft", **attrs)
        made[form] = _model([node], feed, constants)
    return made


def _model(nodes: list[Any], feed: dict[str, Array], constants: dict[str, Array]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "kernel",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name, x in feed.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items() if name in read],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
