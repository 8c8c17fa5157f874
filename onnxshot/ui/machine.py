"""What this machine cannot prove of a result, by target: told before a run begins."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass

from onnxshot.delivery.artifacts import ONNX
from onnxshot.diagnostics.machine import gpus, processor
from onnxshot.targets import TARGETS
from onnxshot.targets.base import Target
from onnxshot.targets.ort import ORT, ORT_AVX2

_MODULES = {"openvino": ("openvino",), "tensorrt": ("tensorrt", "tensorrt_rtx")}
_TITLES = {"openvino": "OpenVINO", "tensorrt": "TensorRT"}


@dataclass(frozen=True, slots=True)
class Unproven:
    """What cannot be proved here for a target.

    Attributes:
        text: one or two sentences; empty where everything can be.
        blocked: whether a run would fail, since the artifact cannot be written either.
    """

    text: str = ""
    blocked: bool = False


@functools.cache
def unproven() -> dict[str, Unproven]:
    """Target -> what cannot be proved. No runtime is imported: whether one works is seen in the run."""
    missing = {name: _missing(name) for name in _MODULES}
    return {name: _of(target, missing) for name, target in TARGETS.items()}


def _missing(runtime: str) -> str:
    """What is missing to run files in a runtime; empty if nothing is."""
    if not any(importlib.util.find_spec(module) for module in _MODULES[runtime]):
        return f"{_TITLES[runtime]} is not installed (pip install 'onnxshot[{runtime}]')"
    return "there is no NVIDIA GPU" if runtime == "tensorrt" and not gpus() else ""


def _of(target: Target, missing: dict[str, str]) -> Unproven:
    if target.name == ORT.name:
        cpu = processor()
        if cpu.flags and not cpu.sums_exactly:
            return Unproven(f"This CPU has no VNNI, so sums of {ORT.name} may overflow here: {ORT_AVX2.name} is safe.")
        return Unproven()
    if target.everywhere:
        absent = [reason for reason in missing.values() if reason]
        text = "The file is not tried in all runtimes"
        return Unproven(_sentence(absent, text)) if absent else Unproven()
    if target.runtime is None or not (reason := missing[target.runtime.format]):
        return Unproven()
    title = _TITLES[target.runtime.format]
    if target.emits != ONNX:
        return Unproven(f"The run would fail: on this machine {reason}. Install it and start onnxshot ui again.", True)
    text = f"The .onnx file is written and compared with the float model here. How fast {title} runs it is not measured"
    return Unproven(_sentence([reason], text))


def _sentence(reasons: list[str], consequence: str) -> str:
    return f"{consequence}: on this machine {', and '.join(reasons)}."
