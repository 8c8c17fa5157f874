"""Processor, GPUs, packages and extras of this machine. A missing part is reported, never an error."""

from __future__ import annotations

import contextlib
import importlib
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_FLAGS = (  # as Linux names them: x86, then ARM
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "amx_fp16",
    "asimddp", "i8mm", "asimdhp", "sve",
)  # fmt: skip
_PACKAGES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
_QUERY = ["--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
_SECONDS = 20  # time limit of nvidia-smi
_OF_DEVELOPERS = ("browser-test", "dev", "docs", "test")  # extras
_REQUIREMENT = re.compile(r"""^([A-Za-z0-9._-]+).*extra\s*==\s*["']([^"']+)["']""")


@dataclass(frozen=True, slots=True)
class Processor:
    """The CPU: its name, cores, and the instruction sets that matter to int8, float16 and bfloat16."""

    name: str
    cores: int
    flags: tuple[str, ...]

    @property
    def sums_exactly(self) -> bool:
        """True if it can accumulate uint8 x int8 products in 32 bits: VNNI, AMX, or the dot product of ARM."""
        return bool({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(self.flags))


@dataclass(frozen=True, slots=True)
class Package:
    """A runtime package: its version (empty if it cannot be imported), its devices, and why it cannot be imported."""

    name: str
    version: str
    devices: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Extra:
    """An extra of onnxshot, and its packages that are not installed."""

    name: str
    missing: tuple[str, ...]


def processor() -> Processor:
    """Read the CPU from /proc/cpuinfo; on other systems than Linux only its name."""
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    facts = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    known = set((facts.get("flags") or facts.get("Features") or "").split())
    cores = len(re.findall(r"^processor\s*:", text, re.MULTILINE))
    name = facts.get("model name") or platform.processor() or platform.machine()
    return Processor(name, cores, tuple(flag for flag in _FLAGS if flag in known))


def gpus() -> tuple[str, ...]:
    """List NVIDIA GPUs as nvidia-smi prints them: name, driver, memory, compute capability."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        printed = subprocess.run([tool, *_QUERY], capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
        return tuple(line.strip() for line in printed.splitlines() if line.strip())
    return ()


def packages() -> tuple[Package, ...]:
    """List the runtimes, installed or not."""
    return tuple(map(_package, _PACKAGES))


def _package(name: str) -> Package:
    try:
        module = importlib.import_module(name)
        devices: tuple[str, ...] = ()
        if name == "onnxruntime":
            devices = tuple(module.get_available_providers())
        elif name == "openvino":
            core = module.Core()
            devices = tuple(f"{d}: {core.get_property(d, 'FULL_DEVICE_NAME')}" for d in core.available_devices)
        return Package(name, str(getattr(module, "__version__", "unknown")), devices)
    except ImportError as e:
        return Package(name, "", problem="not installed" if isinstance(e, ModuleNotFoundError) else str(e))
    except Exception as e:  # a broken library may raise anything; the error is reported
        return Package(name, "", problem=f"{type(e).__name__}: {e}".splitlines()[0])


def extras() -> tuple[Extra, ...]:
    """List the extras in the metadata of onnxshot that its users need; none if it is not installed."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(metadata.PackageNotFoundError):
        for text in metadata.requires("onnxshot") or ():
            match = _REQUIREMENT.match(text)
            if match is None or match[1] == "onnxshot" or match[2] in _OF_DEVELOPERS:
                continue
            missing = found.setdefault(match[2], [])
            try:
                metadata.version(match[1])
            except metadata.PackageNotFoundError:
                missing.append(match[1])
    return tuple(Extra(name, tuple(missing)) for name, missing in sorted(found.items()))
