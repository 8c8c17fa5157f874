"""A model of 2.5 GB, and the peak memory of a process that works on it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

LAYERS, SIZE = 48, 3600
WEIGHT = SIZE * SIZE * 4  # bytes of a layer
TOTAL = LAYERS * WEIGHT

_MEASURE = """
import os, runpy, sys
sys.argv = ["onnxshot", *sys.argv[1:]]
leave = os._exit

def measured(code):
    with open("/proc/self/status") as status:
        print([line.split()[1] for line in status if line.startswith("VmHWM")][0], file=sys.stderr, flush=True)
    leave(code)

os._exit = measured  # the command line ends with it
{code}
os._exit(0)
"""
COMMAND_LINE = 'runpy.run_module("onnxshot", run_name="__main__")'
"""Runs the command line on the arguments."""


def peak(code: str, *arguments: str | Path, folder: Path | None = None) -> int:
    """Highest resident bytes of a Python process that runs `code`; mapped files count."""
    command = [sys.executable, "-c", _MEASURE.format(code=code.strip()), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]) * 1024


def write_large(folder: Path) -> Path:
    """48 layers of MatMul and Relu; all weights are in one file beside the model."""
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    with (folder / "weights.bin").open("wb") as data:
        for layer in range(LAYERS):
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[SIZE, SIZE])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "weights.bin"), ("offset", data.tell()), ("length", WEIGHT)):
                tensor.external_data.add(key=key, value=str(value))
            (rng.standard_normal((SIZE, SIZE), np.float32) * np.float32((2 / SIZE) ** 0.5)).tofile(data)
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"h{layer}", f"w{layer}"], [f"m{layer}"]))
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"h{layer + 1}"]))
    value = [helper.make_tensor_value_info(f"h{i}", TensorProto.FLOAT, ["batch", SIZE]) for i in (0, LAYERS)]
    graph = helper.make_graph(nodes, "large", value[:1], value[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "large.onnx").write_bytes(proto.SerializeToString())
    return folder / "large.onnx"
