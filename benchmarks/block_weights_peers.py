"""Quantize weights to 4 or 8 bits in blocks with another tool, in the tool's own environment, which needs no onnxshot:

    python block_weights_peers.py TOOL MODEL OUT SAMPLES BITS BLOCK SYMMETRIC

SAMPLES: a folder of .npz files. SYMMETRIC: 0 or 1. With TOOL alone, it fails where the tool is not installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sample_reader import Reader, feeds


def of_onnxruntime(config: Callable[[Any, int, int, bool, str], Any]) -> Callable[..., None]:
    """Quantize with ONNX Runtime's MatMulNBitsQuantizer and one of its algorithms."""

    def made(model: str, out: str, samples: str, bits: int, block: int, symmetric: bool) -> None:
        import onnx
        from onnxruntime.quantization import matmul_nbits_quantizer as tool

        quantizer = tool.MatMulNBitsQuantizer(
            onnx.load(model), bits=bits, block_size=block, is_symmetric=symmetric, accuracy_level=4,
            algo_config=config(tool, bits, block, symmetric, samples),
        )  # fmt: skip
        quantizer.process()
        quantizer.model.save_model_to_file(out, use_external_data_format=True)

    return made


def default(tool: Any, bits: int, block: int, symmetric: bool, samples: str) -> Any:
    return tool.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, accuracy_level=4, bits=bits)


def hqq(tool: Any, bits: int, block: int, symmetric: bool, samples: str) -> Any:
    return tool.HQQWeightOnlyQuantConfig(block_size=block, bits=bits)


def k_quant(tool: Any, bits: int, block: int, symmetric: bool, samples: str) -> Any:
    return tool.KQuantWeightOnlyQuantConfig()


def gptq(tool: Any, bits: int, block: int, symmetric: bool, samples: str) -> Any:
    return tool.GPTQWeightOnlyQuantConfig(calibration_data_reader=Reader(samples), block_size=block)


def of_nncf(**how: bool) -> Callable[..., None]:
    """Compress with NNCF; `how`: steps that need samples."""

    def made(model: str, out: str, samples: str, bits: int, block: int, symmetric: bool) -> None:
        import nncf
        import onnx

        mode = getattr(nncf.CompressWeightsMode, f"INT{bits}_{'SYM' if symmetric else 'ASYM'}")
        options: dict[str, Any] = {"mode": mode}
        options["ignored_scope"] = nncf.IgnoredScope(types=["Conv"], validate=False)  # ONNX Runtime fails on these
        if bits == 4:
            options |= {"group_size": block, "ratio": 1.0, "all_layers": True}
        if how:
            given = list(feeds(samples))
            options |= {"dataset": nncf.Dataset(given), "subset_size": len(given), **how}
        made = nncf.compress_weights(onnx.load(model), **options)
        onnx.save(made, out, save_as_external_data=True, location=f"{Path(out).name}.data")

    return made


def of_modelopt(method: str) -> Callable[..., None]:
    """Quantize with NVIDIA's Model Optimizer, from ONNX alone: symmetric 4 bits."""

    def made(model: str, out: str, samples: str, bits: int, block: int, symmetric: bool) -> None:
        import onnx
        from modelopt.onnx.quantization.int4 import quantize

        reader = Reader(samples) if method.startswith("awq") else None
        result = quantize(
            model, calibration_method=method, calibration_data_reader=reader, block_size=block,
            use_external_data_format=True, calibration_eps=["cpu"],
        )  # fmt: skip
        onnx.save(result, out, save_as_external_data=True, location=f"{Path(out).name}.data")

    return made


def of_quark(algorithm: str) -> Callable[..., None]:
    """Quantize with AMD's Quark, from ONNX alone: its MatMulNBits scheme."""

    def made(model: str, out: str, samples: str, bits: int, block: int, symmetric: bool) -> None:
        from quark.onnx import ModelQuantizer
        from quark.onnx.quantization.config.config import Config
        from quark.onnx.quantization.config.custom_config import get_default_config

        config = get_default_config("MATMUL_NBITS")
        config.use_external_data_format = True
        config.extra_options["MatMulNBitsParams"] = {
            "GroupSize": block, "Symmetric": symmetric, "Bits": bits, "AccuracyLevel": 4, "Algorithm": algorithm,
        }  # fmt: skip
        ModelQuantizer(Config(global_quant_config=config)).quantize_model(model, out, Reader(samples))

    return made


def of_neural_compressor(algorithm: str) -> Callable[..., None]:
    """Quantize with Intel's Neural Compressor for ONNX."""

    def made(model: str, out: str, samples: str, bits: int, block: int, symmetric: bool) -> None:
        import onnx
        from onnx_neural_compressor.quantization import matmul_nbits_quantizer as tool

        configs = {
            "RTN": lambda: tool.RTNWeightOnlyQuantConfig(),
            "AWQ": lambda: tool.AWQWeightOnlyQuantConfig(Reader(samples)),
            "GPTQ": lambda: tool.GPTQWeightOnlyQuantConfig(Reader(samples), block_size=block),
        }
        quantizer = tool.MatMulNBitsQuantizer(
            model, n_bits=bits, block_size=block, is_symmetric=symmetric, accuracy_level=4,
            algo_config=configs[algorithm](),
        )  # fmt: skip
        quantizer.process()
        made = getattr(quantizer.model, "model", quantizer.model)
        onnx.save(made, out, save_as_external_data=True, location=f"{Path(out).name}.data")

    return made


TOOLS: dict[str, tuple[str, Callable[..., None]]] = {
    "onnxruntime": ("onnxruntime.quantization.matmul_nbits_quantizer", of_onnxruntime(default)),
    "onnxruntime HQQ": ("torch", of_onnxruntime(hqq)),
    "onnxruntime k-quant": ("onnxruntime.quantization.neural_compressor", of_onnxruntime(k_quant)),
    "onnxruntime GPTQ": ("onnxruntime.quantization.neural_compressor", of_onnxruntime(gptq)),
    "NNCF": ("nncf", of_nncf()),
    "NNCF AWQ, scale estimation": ("nncf", of_nncf(awq=True, scale_estimation=True)),
    "Neural Compressor": ("onnx_neural_compressor", of_neural_compressor("RTN")),
    "Neural Compressor AWQ": ("onnx_neural_compressor", of_neural_compressor("AWQ")),
    "Neural Compressor GPTQ": ("onnx_neural_compressor", of_neural_compressor("GPTQ")),
    "ModelOpt": ("modelopt.onnx.quantization.int4", of_modelopt("rtn_dq")),
    "ModelOpt AWQ": ("modelopt.onnx.quantization.int4", of_modelopt("awq_lite")),
    "Quark": ("quark.onnx", of_quark("DEFAULT")),
    "Quark GPTQ": ("quark.onnx", of_quark("GPTQ")),
}
"""Name of a tool and its algorithm -> the module that it needs, and the function that quantizes."""


def main() -> None:
    name, *rest = sys.argv[1:]
    module, quantize = TOOLS[name]
    if not rest:
        import importlib

        importlib.import_module(module)
        return
    model, out, samples, bits, block, symmetric = rest
    quantize(model, out, samples, int(bits), int(block), symmetric == "1")


if __name__ == "__main__":
    main()
