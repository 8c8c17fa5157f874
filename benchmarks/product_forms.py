"""Which form of a weight is faster at how many rows: `python benchmarks/product_forms.py --python VERSION=PATH ...`.

Chains of MatMuls by 50 to 110 MB of random floats are written in each form: MatMulNBits, DequantizeLinear with blocks,
and int8 with scales at run time. Each version of ONNX Runtime, in an environment of its own, tells the CPU time of one
thread, float over form, in turns. Above 1 the form is faster; a dash: the version does not load it.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from readme import head, table
from runtimes import VERSIONS, given, made

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 1500)
SIZES = {
    "512x512": (512, 512, 48),
    "576x1536": (576, 1536, 16),
    "2048x2048": (2048, 2048, 4),
    "576x49152": (576, 49152, 1),
}
FORMS = (
    "float", "int8", "operator 4 32", "operator 4 32 zeros", "operator 4 64", "operator 4 128", "operator 4 128 zeros",
    "operator 8 128", "operator 8 32", "dequantized 4 32", "dequantized 4 128 zeros", "dequantized 8 128",
)  # fmt: skip
LIMIT_SECONDS = 1800.0
WORKER = Path(__file__).resolve().with_name("product_forms_worker.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="+", default=[], metavar="PATH", help="interpreters, or VERSION=INTERPRETER")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="make environments there with venv and pip")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--forms", nargs="+", choices=FORMS[1:], default=list(FORMS[1:]))
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--seconds", type=float, default=0.1, help="how long each form is timed at each number of rows")
    args = parser.parse_args()
    pythons = [given(text) for text in args.python]
    pythons += [made(args.make, version) for version in VERSIONS] if args.make else []
    if not pythons:
        parser.error("no environments: give --python or --make")
    head("K x N", "ONNX Runtime", "form", *(f"{rows}" for rows in args.rows))
    for size in args.sizes:
        inputs, outputs, count = SIZES[size]
        with tempfile.TemporaryDirectory() as folder:
            for form in ("float", *args.forms):
                onnx.save(chain(form, inputs, outputs, count), str(Path(folder, f"{form}.onnx")))
            for version, python in pythons:
                job = {
                    "folder": folder,
                    "forms": args.forms,
                    "rows": args.rows,
                    "inputs": inputs,
                    "seconds": args.seconds,
                }
                Path(folder, "job.json").write_text(json.dumps(job))
                command = [str(python), str(WORKER), str(Path(folder, "job.json"))]
                done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=True)
                for form, found in json.loads(done.stdout.splitlines()[-1]).items():
                    cells = [f"{found[str(rows)]:.2f}" if found else "–" for rows in args.rows]
                    table(size, version or "newest", form, *cells)


def chain(form: str, inputs: int, outputs: int, count: int) -> onnx.ModelProto:
    """MatMuls one behind the other, by matrices of inputs x outputs and outputs x inputs in turn."""
    rng = np.random.default_rng(0)
    nodes: list[NodeProto] = []
    stored: list[TensorProto] = []
    sizes = [(inputs, outputs) if i % 2 == 0 else (outputs, inputs) for i in range(count)]
    for i, (k, n) in enumerate(sizes):
        w = rng.standard_normal((k, n), np.float32) / np.float32(math.sqrt(k))
        nodes += product(form, f"x{i}", f"x{i + 1}", w, stored)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x0", f"x{count}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def product(form: str, x: str, y: str, w: np.ndarray, stored: list[TensorProto]) -> list[NodeProto]:
    """The nodes of y = x @ w in a form; what they read is added to `stored`."""
    k, n = w.shape

    def keep(name: str, array: np.ndarray, kind: int | None = None, dims: tuple[int, ...] = ()) -> str:
        tensor = numpy_helper.from_array(array, f"{y}_{name}") if kind is None else None
        stored.append(tensor or helper.make_tensor(f"{y}_{name}", kind, dims, array.tobytes(), raw=True))
        return f"{y}_{name}"

    if form == "float":
        return [helper.make_node("MatMul", [x, keep("w", w)], [y])]
    if form == "int8":
        scale = np.abs(w).max(0) / 127
        made = [keep("w", np.rint(w / scale).astype(np.int8)), keep("z", np.zeros((), np.int8)), keep("s", scale)]
        return [
            helper.make_node("DynamicQuantizeLinear", [x], [f"{y}_xq", f"{y}_xs", f"{y}_xz"]),
            helper.make_node("MatMulInteger", [f"{y}_xq", made[0], f"{y}_xz", made[1]], [f"{y}_i"]),
            helper.make_node("Cast", [f"{y}_i"], [f"{y}_f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{y}_xs", made[2]], [f"{y}_r"]),
            helper.make_node("Mul", [f"{y}_f", f"{y}_r"], [y]),
        ]
    kind, bits, size = form.split()[0], int(form.split()[1]), int(form.split()[2])
    zeros, top, count = form.endswith("zeros"), 2**bits - 1, -(-k // size)
    padded = np.zeros((n, count * size), np.float32)
    padded[:, :k] = w.T
    blocks = padded.reshape(n, count, size)
    low, high = np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0)
    scale = (high - low) / top if zeros else np.abs(blocks).max(2) / (top // 2)
    scale = np.maximum(scale, 1e-12).astype(np.float32)
    zero = np.rint(-low / scale) if zeros else np.full(scale.shape, top // 2 + 1.0)
    codes = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, top).astype(np.uint8)
    zero = zero.astype(np.uint8)
    if kind == "operator":
        read = [
            x,
            keep("w", packed(codes, bits)),
            keep("s", scale),
            *([keep("z", packed(zero, bits))] if zeros else []),
        ]
        attrs = {"K": k, "N": n, "bits": bits, "block_size": size, "accuracy_level": 4}
        return [helper.make_node("MatMulNBits", read, [y], domain="com.microsoft", **attrs)]
    by_inputs = np.ascontiguousarray(codes.reshape(n, -1)[:, :k].T)
    signed = 0 if zeros else (top // 2 + 1)
    types = {(4, True): TensorProto.UINT4, (4, False): TensorProto.INT4, (8, True): TensorProto.UINT8}
    stored_as = types.get((bits, zeros), TensorProto.INT8)
    values = (by_inputs - signed).astype(np.uint8) & (15 if bits == 4 else 255)
    read = [keep("w", packed(values.reshape(1, -1), bits), stored_as, (k, n)), keep("s", np.ascontiguousarray(scale.T))]
    if zeros:
        read.append(keep("z", packed(np.ascontiguousarray(zero.T).reshape(1, -1), bits), stored_as, (count, n)))
    return [
        helper.make_node("DequantizeLinear", read, [f"{y}_d"], axis=0, block_size=size),
        helper.make_node("MatMul", [x, f"{y}_d"], [y]),
    ]


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 codes, two to a byte along the last axis where they have 4 bits."""
    if bits == 8:
        return codes
    even = codes if codes.shape[-1] % 2 == 0 else np.concatenate([codes, np.zeros_like(codes[..., :1])], -1)
    return even[..., 0::2] | (even[..., 1::2] << 4)


if __name__ == "__main__":
    main()
