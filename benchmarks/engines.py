"""What TensorRT makes of a model: `python engines.py MODEL CALIB PRESET [--effort E] [--sizes 1x8,1x64,1x128]`.

Prints the build of the int8 model against that of the float model. --sizes: least, usual and largest sizes of every
input that has free ones besides the batch. Not called tensorrt.py: `import tensorrt` would find it.
"""

import argparse
import tempfile
import time
import zlib
from pathlib import Path

from onnxshot import Settings, quantize
from onnxshot.graph.load import load_model
from onnxshot.runtimes.base import EmitOptions
from onnxshot.targets import TARGETS


def built(source, options):
    """Seconds, the engine's bytes, and what its layers were compiled to."""
    start = time.perf_counter()
    made = TARGETS["tensorrt"].runtime.emit(source, source.parent, source.stem, options)
    return time.perf_counter() - start, (source.parent / made.files[0]).read_bytes(), made.executed


def main():
    parser = argparse.ArgumentParser()
    for name in ("model", "calib", "preset"):
        parser.add_argument(name)
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--sizes")
    parser.add_argument("--hardware", default="", help="sm80,sm89: compute capabilities, of TensorRT-RTX")
    given = parser.parse_args()
    inputs = load_model(given.model).graph.inputs
    sizes = tuple(tuple(map(int, part.split("x"))) for part in (given.sizes or "").split(",") if part)
    shapes = {tensor.name: sizes for tensor in inputs} if sizes else {}
    options = EmitOptions(shapes=shapes, hardware=tuple(filter(None, given.hardware.split(","))))
    with tempfile.TemporaryDirectory() as folder:
        int8 = Path(folder) / "int8.onnx"
        quantize(
            given.model, given.calib, preset=given.preset, target="tensorrt", effort=given.effort, output=int8,
            settings=Settings(verify=False),
        )  # fmt: skip
        seconds, engine, told = built(int8, options)
        plain = Path(folder) / "float.onnx"
        plain.symlink_to(Path(given.model).resolve())
        float_seconds, float_engine, _ = built(plain, options)
        stored = int8.stat().st_size
    print(f"int8: built in {seconds:.1f} s, {100 * told.share:.1f} % of the multiply-accumulates in int8")
    print(f"float: built in {float_seconds:.1f} s")
    print(f"engine: {len(engine) / 1e6:.2f} MB, float {len(float_engine) / 1e6:.2f} MB: "
          f"{len(engine) / len(float_engine):.2f}x; model {stored / 1e6:.2f} MB")  # fmt: skip
    packed, float_packed = (len(zlib.compress(e, 6)) for e in (engine, float_engine))
    print(f"packed: {packed / 1e6:.2f} MB, float {float_packed / 1e6:.2f} MB: {packed / float_packed:.2f}x")
    for op, macs in told.float_by_op.items():
        print(f"float: {op} {100 * macs / told.total_macs:.1f} %")
    for name in told.float_between:
        print(f"not fused: {name}")


main()
