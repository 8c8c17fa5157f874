"""Quantize with another tool, in the tool's own environment, which needs no onnxshot; prints the tool's version:

    python fresh_models_peer.py METHOD MODEL CALIB OUT

CALIB: a folder of .npz files, all of which are given to the tool. Options are those that the tool's own pages advise
for CPUs: Q/DQ pairs, weights per channel.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from sample_reader import Reader


def raised(model: str, folder: str) -> str:
    """The model in opset 17 where it is below 13, in which weights cannot be quantized per channel."""
    import onnx
    from onnx import version_converter

    proto = onnx.load(model)
    if any(used.domain in ("", "ai.onnx") and used.version < 13 for used in proto.opset_import):
        try:
            proto = version_converter.convert_version(proto, 17)
            model = str(Path(folder) / "raised.onnx")
            onnx.save(proto, model)
        except Exception as error:  # it raises bare exceptions; the tool then gets the model as it is
            print(f"version_converter: {error}", file=sys.stderr)
    return model


def processed(model: str, folder: str) -> str:
    """The model after ONNX Runtime's own preparation, or as it is where that fails."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out = str(Path(folder) / "prepared.onnx")
    for skip in (False, True):
        try:
            quant_pre_process(model, out, skip_symbolic_shape=skip)
            return out
        except Exception as error:  # it raises bare exceptions
            print(f"quant_pre_process: {error}", file=sys.stderr)
    return model


def static(method: str) -> Callable[[str, str, str], str]:
    def made(model: str, calib: str, out: str) -> str:
        from onnxruntime import quantization as tool

        tool.CalibrationDataReader.register(Reader)
        chosen = getattr(tool.CalibrationMethod, method)
        with tempfile.TemporaryDirectory() as folder:
            tool.quantize_static(
                processed(model, folder), out, Reader(calib), quant_format=tool.QuantFormat.QDQ,
                per_channel=True, calibrate_method=chosen,
            )  # fmt: skip
        return f"onnxruntime {version('onnxruntime')}"

    return made


def dynamic(model: str, calib: str, out: str) -> str:
    from onnxruntime import quantization as tool

    with tempfile.TemporaryDirectory() as folder:
        tool.quantize_dynamic(processed(model, folder), out, per_channel=True)
    return f"onnxruntime {version('onnxruntime')}"


def of_nncf(model: str, calib: str, out: str) -> str:
    import nncf
    import onnx

    given = Reader(calib)
    made = nncf.quantize(onnx.load(model), nncf.Dataset(given.every), subset_size=len(given))
    onnx.save(made, out)
    return f"nncf {version('nncf')}"


def of_neural_compressor(model: str, calib: str, out: str) -> str:
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import QuantFormat, config, quantize

    class Given(Reader, data_reader.CalibrationDataReader):  # type: ignore[misc]
        pass

    chosen = config.StaticQuantConfig(calibration_data_reader=Given(calib), quant_format=QuantFormat.QDQ)
    quantize(model, out, chosen)
    return f"onnx-neural-compressor {version('onnx-neural-compressor')}"


def of_quark(model: str, calib: str, out: str) -> str:
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, get_default_config

    chosen = Config(global_quant_config=get_default_config("S8S8_AAWS"))
    ModelQuantizer(chosen).quantize_model(model, out, Reader(calib))
    return f"amd-quark {version('amd-quark')}"


METHODS: dict[str, Callable[[str, str, str], str]] = {
    "static-minmax": static("MinMax"),
    "static-percentile": static("Percentile"),
    "static-entropy": static("Entropy"),
    "dynamic": dynamic,
    "nncf": of_nncf,
    "neural-compressor": of_neural_compressor,
    "quark": of_quark,
}

if __name__ == "__main__":
    method, model, calib, out = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        print(METHODS[method](raised(model, folder), calib, out))
