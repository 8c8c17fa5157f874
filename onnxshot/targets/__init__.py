"""Where a model goes: one file per target, one line each in TARGETS."""

from onnxshot.errors import TargetError, UsageError
from onnxshot.runtimes.base import Runtime
from onnxshot.targets.base import Target
from onnxshot.targets.openvino import OPENVINO
from onnxshot.targets.ort import ORT, ORT_AVX2
from onnxshot.targets.portable import PORTABLE
from onnxshot.targets.tensorrt import TENSORRT

TARGETS: dict[str, Target] = {t.name: t for t in (ORT, ORT_AVX2, OPENVINO, TENSORRT, PORTABLE)}


RUNTIMES: dict[str, Runtime] = {t.runtime.format: t.runtime for t in TARGETS.values() if t.runtime is not None}
"""What makes artifacts of other formats than .onnx, by the name of the format."""


def target_named(name: str) -> Target:
    """The target of that name. Raises UsageError, naming those there are."""
    if name not in TARGETS:
        raise UsageError(f"there is no target {name!r}", f"targets: {', '.join(TARGETS)}")
    return TARGETS[name]


def target_of(form: str) -> Target:
    """The target whose runtime has artifacts of this format. Raises TargetError, naming the formats there are."""
    for target in TARGETS.values():
        if target.runtime is not None and target.runtime.format == form:
            return target
    raise TargetError(f"there is no format {form!r}", f"formats: {', '.join(('onnx', *RUNTIMES))}")
