"""Where an int8 Conv is slower than a float one: `python benchmarks/thin_convs.py [1d 2d 3d groups depthwise]`.

One Conv with a Relu stands between a Q and a DQ, once in int8 and once kept in float. Times are those of its kernels in
ONNX Runtime's profile, one thread, lower quartile. `between`: float with the DQ, the Q and the changes of layout that
it brings between int8 ops, over int8. `first`: float with a Q behind it, over int8 with a Q in front, behind a float
op. Above 1 int8 is faster. The rules of onnxshot/planning/slow_convs.py come from here.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper
from readme import head, table

SECONDS = 0.2
PLAIN = ((2, 8), (3, 16), (3, 32), (3, 64), (4, 4), (8, 8), (4, 16), (8, 16), (12, 12), (16, 16), (32, 8), (32, 32))
PARTS = ("1d", "2d", "3d", "groups", "depthwise")


@dataclass(frozen=True)
class Size:
    """A Conv: channels, groups, values along one axis of the kernel, sizes of the picture."""

    ins: int
    outs: int
    kernel: int
    picture: tuple[int, ...]
    groups: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    print(f"onnxruntime {onnxruntime.__version__}\n")
    head("channels", "groups", "kernel", "picture", "int8, us", "between", "first")
    for part in parser.parse_args().parts or PARTS:
        for size in sizes(part):
            between, first, int8 = ratios(size)
            picture = "x".join(str(d) for d in size.picture)
            figures = (f"{int8:.0f}", f"{between:.2f}", f"{first:.2f}")
            table(f"{size.ins} to {size.outs}", size.groups, size.kernel, picture, *figures)


def sizes(part: str) -> Iterator[Size]:
    pictures = {"1d": [(512,)], "2d": [(64, 64), (14, 14)], "3d": [(8, 14, 14)]}
    if part in pictures:
        yield from (Size(i, o, k, p) for p in pictures[part] for k in (1, 3) for i, o in PLAIN)
    elif part == "groups":
        for count, groups in ((64, 32), (64, 16), (64, 8), (64, 4), (64, 2), (256, 64), (256, 32), (256, 8)):
            yield from (Size(count, count, k, (28, 28), groups) for k in (1, 3))
            yield Size(count, count, 3, (8, 14, 14), groups)
    else:
        for count in (8, 16, 24, 32, 64, 144):
            yield from (Size(count, count, k, (n, n), count) for k in (3, 5, 7) for n in (56, 14))
            yield from (Size(count, count, 3, picture, count) for picture in ((512,), (8, 14, 14)))


def ratios(size: Size) -> tuple[float, float, float]:
    """(between, first, microseconds of the int8 kernel)."""
    int8, flat = kernels(*conv(size, int8=True)), kernels(*conv(size, int8=False))
    product = sum(us for (_, op), us in int8.items() if op == "QLinearConv")
    if not product or any(op == "QLinearConv" for _, op in flat):
        raise SystemExit(f"{size}: ONNX Runtime has not run what was asked for")
    moves = sum(us for (_, op), us in int8.items() if op == "Transpose")
    convs = sum(us for (_, op), us in flat.items() if op not in ("QuantizeLinear", "DequantizeLinear"))
    q_in, q_out = (next(us for (name, _), us in flat.items() if name.startswith(n)) for n in ("q_in", "q_out"))
    dq = next(us for (name, _), us in flat.items() if name.startswith("dq_in"))
    return (convs + dq + q_out + moves) / product, (convs + q_out + moves / 2) / (product + q_in + moves / 2), product


def conv(size: Size, *, int8: bool) -> tuple[ModelProto, np.ndarray[Any, Any]]:
    """x -> Q -> DQ -> Conv -> Relu -> Q -> DQ, and an input."""
    rng, dims = np.random.default_rng(0), len(size.picture)
    w = rng.normal(size=(size.outs, size.ins // size.groups, *[size.kernel] * dims)).astype(np.float32)
    scale, w_scale = np.float32(6 / 255), np.full(size.outs, 0.03, np.float32)
    stored = {
        "scale": scale, "zero": np.uint8(128), "low": np.uint8(0), "w": w, "b": np.ones(size.outs, np.float32),
        # A DQ with a scale per channel is one that no float op behind it is quantized for.
        "scales": np.full(size.ins, scale), "zeros": np.full(size.ins, 128, np.uint8),
        "wq": np.clip(np.round(w / 0.03), -127, 127).astype(np.int8), "ws": w_scale,
        "bq": np.full(size.outs, 99, np.int32), "bs": scale * w_scale,
    }  # fmt: skip
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="q_in")]
    if int8:
        nodes += [
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
            helper.make_node("DequantizeLinear", ["wq", "ws"], ["wd"], axis=0),
            helper.make_node("DequantizeLinear", ["bq", "bs"], ["bd"], axis=0),
        ]
    else:
        nodes += [helper.make_node("DequantizeLinear", ["q", "scales", "zeros"], ["d"], axis=1, name="dq_in")]
    pads, names = [size.kernel // 2] * 2 * dims, ["d", "wd", "bd"] if int8 else ["d", "w", "b"]
    nodes += [
        helper.make_node("Conv", names, ["c"], group=size.groups, pads=pads),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "scale", "low"], ["p"], name="q_out"),
        helper.make_node("DequantizeLinear", ["p", "scale", "low"], ["y"]),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "conv", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size.ins, *size.picture])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in stored.items() if k in used],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, rng.normal(size=(1, size.ins, *size.picture)).astype(np.float32)


def kernels(model: ModelProto, x: np.ndarray[Any, Any]) -> dict[tuple[str, str], float]:
    """Microseconds of each kernel, by its name and operator."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level, options.enable_profiling = 1, 3, True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        end, rounds = time.perf_counter() + SECONDS, 0
        while rounds < 10 or time.perf_counter() < end:
            session.run(None, {"x": x})
            rounds += 1
        events = json.loads(Path(session.end_profiling()).read_bytes())
    taken = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]].append(event["dur"])
    return {key: float(np.quantile(times[1:], 0.25)) for key, times in taken.items()}


if __name__ == "__main__":
    main()
