"""What an input in 16 bits costs as two 8-bit products: `python benchmarks/two_products.py`.

The input is quantized to 8 bits, and so is what that leaves. Two products with the same int8 weight are added. Each
operator stands between float operators. Times are CPU time on one thread, in turns; the least of nine. `float` and the
columns beside it are speeds over float; dB is the SQNR of the output for random values.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from readme import head, table

ROUNDS, SECONDS = 9, 0.03
PRODUCTS = ((128, 384, 384), (128, 1536, 384), (128, 768, 768), (128, 3072, 768), (32, 3072, 768), (1, 3072, 768))
CONVS = ((64, 64, 1, 56), (256, 256, 1, 14), (64, 64, 3, 56), (256, 256, 3, 14))
Arrays = Mapping[str, NDArray[Any]]


def main() -> None:
    print(f"onnxruntime {onnxruntime.__version__}\n")
    head("operator", "float, ms", "8 bits", "dB", "16 bits", "dB")
    random = np.random.default_rng(0)
    for rows, ins, outs in PRODUCTS:
        x = random.standard_normal((rows, ins)).astype(np.float32)
        w = (random.standard_normal((ins, outs)) / np.sqrt(ins)).astype(np.float32)
        report(f"MatMul {rows} x {ins} x {outs}", x, products(w))
    for ins, outs, kernel, side in CONVS:
        x = random.standard_normal((1, ins, side, side)).astype(np.float32)
        w = random.standard_normal((outs, ins, kernel, kernel)).astype(np.float32) / np.float32(kernel * np.sqrt(ins))
        report(f"Conv {kernel}x{kernel}, {ins} to {outs}, {side} x {side}", x, convs(x, w))


def products(w: NDArray[np.float32]) -> list[onnxruntime.InferenceSession]:
    """MatMul in float, with an input of 8 bits, and with one of 16 bits; scales of inputs are computed at run time."""
    scale = (np.abs(w).max(0) / 127).astype(np.float32)
    constants = {"w": np.rint(w / scale).astype(np.int8), "ws": scale, "wz": np.zeros(len(scale), np.int8)}

    def part(x: str, out: str) -> list[NodeProto]:
        return [
            helper.make_node("DynamicQuantizeLinear", [x], [f"{out}q", f"{out}s", f"{out}z"]),
            helper.make_node("MatMulInteger", [f"{out}q", "w", f"{out}z", "wz"], [f"{out}i"]),
            helper.make_node("Cast", [f"{out}i"], [f"{out}f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{out}s", "ws"], [f"{out}m"]),
            helper.make_node("Mul", [f"{out}f", f"{out}m"], [out]),
        ]

    rest = [
        helper.make_node("DequantizeLinear", ["aq", "as", "az"], ["near"]),
        helper.make_node("Sub", ["in", "near"], ["rest"]),
    ]
    return [
        session([helper.make_node("MatMul", ["in", "w"], ["out"])], {"w": w}),
        session(part("in", "out"), constants),
        session([*part("in", "a"), *rest, *part("rest", "b"), helper.make_node("Add", ["a", "b"], ["out"])], constants),
    ]


def convs(x: NDArray[np.float32], w: NDArray[np.float32]) -> list[onnxruntime.InferenceSession]:
    """Conv in float, with an input of 8 bits, and with one of 16 bits. Each output has 8 bits: no kernel gives more."""
    attrs = {"pads": [w.shape[-1] // 2] * 4}
    plain = session([helper.make_node("Conv", ["in", "w"], ["out"], **attrs)], {"w": w})
    y = plain.run(None, {"x": x})[0]
    scale = (np.abs(w).max((1, 2, 3)) / 127).astype(np.float32)
    constants = {"w": np.rint(w / scale[:, None, None, None]).astype(np.int8), "ws": scale}
    constants |= {"wz": np.zeros(len(scale), np.int8)}
    step = np.float32((x.max() - x.min()) / 255)
    ranges = {"i": (x.min(), x.max()), "r": (-step / 2, step / 2), "o": (y.min(), y.max()), "p": (-y.max(), y.max())}
    ranges["p"] = tuple(v * 0.02 for v in ranges["p"])
    for name, (low, high) in ranges.items():
        constants[f"{name}s"] = np.float32((high - low) / 255)
        constants[f"{name}z"] = np.uint8(np.clip(np.rint(-low / constants[f"{name}s"]), 0, 255))

    def pair(name: str, scale: str, out: str) -> list[NodeProto]:
        given = [f"{scale}s", f"{scale}z"]
        return [
            helper.make_node("QuantizeLinear", [name, *given], [f"{out}q"]),
            helper.make_node("DequantizeLinear", [f"{out}q", *given], [out]),
        ]

    def conv(name: str, scale: str, out: str) -> list[NodeProto]:
        stored = helper.make_node("DequantizeLinear", ["w", "ws", "wz"], [f"{out}w"], axis=0)
        return [stored, helper.make_node("Conv", [name, f"{out}w"], [f"{out}c"], **attrs), *pair(f"{out}c", scale, out)]

    first = [*pair("in", "i", "near"), *conv("near", "o", "a")]
    rest = [helper.make_node("Sub", ["in", "near"], ["left"]), *pair("left", "r", "rest"), *conv("rest", "p", "b")]
    return [
        plain,
        session([*pair("in", "i", "near"), *conv("near", "o", "out")], constants),
        session([*first, *rest, helper.make_node("Add", ["a", "b"], ["out"])], constants),
    ]


def session(nodes: Sequence[NodeProto], constants: Arrays) -> onnxruntime.InferenceSession:
    """The nodes, from "in" to "out", between two float operators."""
    around = [helper.make_node("Mul", ["x", "one"], ["in"]), *nodes, helper.make_node("Mul", ["out", "one"], ["y"])]
    given = [numpy_helper.from_array(np.asarray(v), k) for k, v in {**constants, "one": np.float32(1.0001)}.items()]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph(around, "g", ports[:1], ports[1:], given)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def report(name: str, x: NDArray[np.float32], sessions: Sequence[onnxruntime.InferenceSession]) -> None:
    times = [float("inf")] * len(sessions)
    for _ in range(ROUNDS):
        for number, one in enumerate(sessions):
            start, runs = used(), 0
            while used() - start < SECONDS:
                one.run(None, {"x": x})
                runs += 1
            times[number] = min(times[number], (used() - start) / runs)
    exact, *others = (one.run(None, {"x": x})[0].astype(np.float64) for one in sessions)
    row = [name, f"{times[0] * 1e3:.2f}"]
    for seconds, made in zip(times[1:], others, strict=True):
        noise = np.square(made - exact).sum()
        row += [f"{times[0] / seconds:.2f}x", f"{10 * np.log10(np.square(exact).sum() / noise):.1f}"]
    table(*row)


def used() -> float:
    seen = resource.getrusage(resource.RUSAGE_SELF)
    return seen.ru_utime + seen.ru_stime


if __name__ == "__main__":
    main()
