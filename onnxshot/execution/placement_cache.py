"""What earlier runs decided by time on this machine, so that the same input makes the same file again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from onnxshot import __version__
from onnxshot.errors import OnnxshotError
from onnxshot.files import cache_folder
from onnxshot.files.atomic_write import write_file
from onnxshot.files.regular_files import read_regular
from onnxshot.runtimes.ort_session import runtime

MOST_ENTRIES = 512
"""Most decisions that are kept; the least recently used ones are removed."""
_MOST_BYTES = 1 << 20  # of one of them
_HOME = "placed"
_NAME = re.compile(r"[0-9a-f]{64}\.json")
_CPUINFO = Path("/proc/cpuinfo")
_TELLING = ("model name", "flags", "Features", "cache size", "CPU part")


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided of one plan.

    Attributes:
        floats: labels of the nodes that go back to float.
        in_float: microseconds of the kernels of the float model.
        in_int8: microseconds of the kernels of the model as planned.
        gain: how many times as fast the result was as the model as planned; 1 where nothing changed.
        saved: label of a quantized node -> microseconds that int8 saves there.
    """

    floats: tuple[str, ...] = ()
    in_float: float = 0.0
    in_int8: float = 0.0
    gain: float = 1.0
    saved: Mapping[str, float] = field(default_factory=dict)

    def percent(self, labels: Collection[str]) -> float:
        """About how many percent of its time the model as planned takes more with these nodes in float."""
        return 100 * sum(self.saved.get(label, 0.0) for label in labels) / self.in_int8 if self.in_int8 else 0.0


def key(*parts: str) -> str:
    """The key of a decision: SHA-256 (hex) of these parts, of this machine, and of the versions that run on it."""
    every = (*parts, __version__, runtime().__version__, machine())
    return hashlib.sha256("\0".join(every).encode("utf-8", "surrogatepass")).hexdigest()


def machine() -> str:
    """The kind of CPU, with its instructions where the system tells them."""
    found = dict[str, str]()
    with contextlib.suppress(OSError):
        for line in _CPUINFO.read_text("utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in _TELLING:
                found.setdefault(name.strip(), value.strip())
    return json.dumps([platform.system(), platform.machine(), platform.processor(), found])


def load(name: str, quantized: Collection[str]) -> Decision | None:
    """The decision of this key; None if there is none, or if the file is not one about these nodes."""
    try:
        path = _place() / f"{name}.json"
        values = json.loads(read_regular(path, "placement", most=_MOST_BYTES))
        floats = tuple(values["floats"])
        in_float, in_int8, gain = (float(values[name]) for name in ("in_float", "in_int8", "gain"))
        saved = {str(label): float(micro) for label, micro in values["saved"].items()}
        path.touch()
    except (OnnxshotError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    known = all(isinstance(label, str) for label in floats) and set(floats) <= set(quantized)
    return Decision(floats, in_float, in_int8, gain, saved) if known else None


def store(name: str, decision: Decision) -> None:
    """Keep a decision. A cache that cannot be written is no error."""
    with contextlib.suppress(OnnxshotError, OSError):
        text = json.dumps(asdict(decision))
        if len(text) <= _MOST_BYTES:
            write_file(_place() / f"{name}.json", lambda path: path.write_text(text, "utf-8"), lasting=False)
        for path in _entries()[:-MOST_ENTRIES]:
            path.unlink(missing_ok=True)


def clear() -> int:
    """Forget all decisions. Returns the number of bytes freed."""
    return sum(map(cache_folder.remove, _entries()))


def _place() -> Path:
    return cache_folder.folder() / _HOME


def _entries() -> list[Path]:
    return cache_folder.entries(_place(), _NAME) if cache_folder.is_there() else []
