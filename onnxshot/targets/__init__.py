"""Targets: the rules of each runtime, as data. One file per target, and one entry each in TARGETS.

To add a target, write a `Target` in a new file and add it to TARGETS. To add a runtime that writes or runs artifacts,
implement `onnxshot.runtimes.base.Runtime` in onnxshot/runtimes/ and set `Target.runtime`.
"""

from onnxshot.errors import UsageError
from onnxshot.runtimes.base import Runtime
from onnxshot.targets.base import Target
from onnxshot.targets.openvino import OPENVINO
from onnxshot.targets.ort import ORT, ORT_AVX2
from onnxshot.targets.portable import PORTABLE
from onnxshot.targets.tensorrt import TENSORRT

TARGETS: dict[str, Target] = {t.name: t for t in (ORT, ORT_AVX2, OPENVINO, TENSORRT, PORTABLE)}
"""Name in `--target` -> target."""

RUNTIMES: dict[str, Runtime] = {t.runtime.format: t.runtime for t in TARGETS.values() if t.runtime is not None}
"""Format name in `--emit` -> the runtime that writes it, for all formats except .onnx."""


def target_named(name: str) -> Target:
    """The target of a name.

    Args:
        name: a key of TARGETS, for example "ort".

    Raises:
        UsageError: there is no such target; the hint lists all names.

    Example:
        >>> target_named("ort").activation.dtype.name
        'uint8'
    """
    if name not in TARGETS:
        raise UsageError(f"there is no target {name!r}", f"targets: {', '.join(TARGETS)}")
    return TARGETS[name]


def target_of(form: str) -> Target:
    """The first target whose runtime writes artifacts of a format.

    Args:
        form: a key of RUNTIMES, for example "openvino".

    Raises:
        UsageError: there is no such format; the hint lists all formats.
    """
    for target in TARGETS.values():
        if target.runtime is not None and target.runtime.format == form:
            return target
    raise UsageError(f"there is no format {form!r}", f"formats: {', '.join(('onnx', *RUNTIMES))}")
