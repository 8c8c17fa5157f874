"""Build TensorRT engines: choose the module and the range of shapes, and supervise a builder in a worker process."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from onnxshot import system
from onnxshot.errors import TargetError, UsageError
from onnxshot.files.atomic_write import write_file
from onnxshot.graph import Model
from onnxshot.graph.load import first_line
from onnxshot.runtimes.base import Dims, EmitOptions, Ranges, Sizes

_WORKER = Path(__file__).with_name("tensorrt_worker.py")
_INSTALL = "pip install 'onnxshot[tensorrt]', or 'onnxshot[tensorrt-rtx]' for RTX GPUs"
_NEWER = "float8 is built for [[hardware=sm89]] and newer, int4 for sm80 and newer"
_LEAST_VERSION = 10  # explicit quantization in strongly typed networks
_LOOK_SECONDS = 0.1  # interval of memory checks
_RTX = "tensorrt_rtx"


def module() -> ModuleType:
    """Import tensorrt, else tensorrt_rtx. Raises TargetError, saying what to install, if neither can be imported."""
    reasons = []
    for name in ("tensorrt", _RTX):
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as e:
            if e.name != name:
                reasons.append(f"{name}: {first_line(e)}")
            continue
        except Exception as e:  # missing libraries raise OSError, RuntimeError or ImportError
            reasons.append(f"{name}: {first_line(e)}")
            continue
        version = str(getattr(found, "__version__", "0"))
        if name == _RTX or int(version.split(".")[0]) >= _LEAST_VERSION:
            return found
        reasons.append(f"{name} {version} is older than {_LEAST_VERSION}")
    raise TargetError(": ".join(("TensorRT is not installed", *filter(None, ["; ".join(reasons)]))), _INSTALL)


def profiles(inputs: Mapping[str, Dims | None], options: EmitOptions) -> dict[str, tuple[Sizes, Sizes, Sizes]]:
    """Smallest, usual and largest shape of each input with free dimensions.

    They come from `options.shapes`, else from `options.sampled`. If neither names an input, its free first dimension,
    the batch, is 1.

    Args:
        inputs: Dimensions of each input, by name.
        options: Shapes that were asked for or found in samples.

    Raises:
        UsageError: Shapes do not fit the input, or another dimension is free and no shapes are given.
    """
    unknown = [name for name in options.shapes if name not in inputs]
    if unknown:
        raise UsageError(f"the model has no input {unknown[0]!r}", f"inputs: {', '.join(inputs)}")
    found = {}
    for name, stated in inputs.items():
        if stated is None:
            raise UsageError(f"input {name!r} has no stated rank, which TensorRT needs")
        given = options.shapes.get(name, options.sampled.get(name))
        if given is not None:
            _check_sizes(name, stated, given)
            found[name] = given
        elif any(not isinstance(size, int) for size in stated):
            if any(not isinstance(size, int) for size in stated[1:]):
                shown = ", ".join(str(size or "?") for size in stated)
                raise UsageError(
                    f"input {name!r} has free sizes [{shown}]: an engine is built for a range of them",
                    f"give the least, usual and largest sizes of {name!r}, or samples that have them",
                )
            fixed = (1, *(size for size in stated[1:] if isinstance(size, int)))
            found[name] = (fixed, fixed, fixed)
    return {name: sizes for name, sizes in found.items() if any(not isinstance(d, int) for d in inputs[name] or ())}


def _check_sizes(name: str, stated: tuple[int | str | None, ...], given: tuple[Sizes, Sizes, Sizes]) -> None:
    if len(given) != 3 or any(len(sizes) != len(stated) for sizes in given):
        raise UsageError(f"input {name!r} has {len(stated)} sizes; given: {given}", "give least, usual and largest")
    for size, *range_ in zip(stated, *given, strict=True):
        if range_ != sorted(range_) or range_[0] < 1 or (isinstance(size, int) and set(range_) != {size}):
            raise UsageError(f"input {name!r}: sizes {range_} do not fit its {size or '?'}, from least to largest")


def build(model: Model, engine: Path, log: Path, ranges: Ranges, options: EmitOptions, *, sparse: bool) -> None:
    """Build the engine of a model by an atomic write, and keep the builder's log.

    The timing cache of `options` is read, and written atomically if the module measures kernels.

    Args:
        model: The model, which must have been loaded from a file.
        engine: File to write.
        log: File for the builder's log.
        ranges: As `profiles` returns them.
        options: Limits, hardware and timing cache.
        sparse: Let the builder use weights with 2:4 zeros.

    Raises:
        TargetError: The builder refuses the model, crashes, or exceeds the time or memory that `options` allow.
        UsageError: The timing cache cannot be read or written.
    """
    name = module().__name__
    assert model.path is not None
    with tempfile.TemporaryDirectory(prefix=f".{engine.stem[:40]}.", suffix=".part", dir=engine.parent) as made:
        work = Path(made)
        cache = work / "timing.cache" if options.timing_cache is not None and name != _RTX else None
        if cache is not None and options.timing_cache is not None and Path(options.timing_cache).exists():
            _copy(Path(options.timing_cache), cache)
        job = {
            "module": name,
            "source": str(model.path.resolve()),
            "engine": str(work / "engine"),
            "log": str(log.resolve()),
            "answer": str(work / "answer.json"),
            "profiles": ranges,
            "hardware": options.hardware,
            "sparse": sparse,
            "timing_cache": str(cache) if cache is not None else None,
        }
        code, stopped = _run(job, options)
        if stopped:
            raise TargetError(f"TensorRT was stopped: {stopped}", "allow it more, or a smaller model")
        if not (work / "answer.json").exists():
            raise TargetError(f"TensorRT's builder crashed ({_ended(code)}) {_last_step(log)}")
        answer = json.loads((work / "answer.json").read_text(encoding="utf-8"))
        if answer["error"] is not None:
            reason = answer["error"] or "; ".join(_errors(log)) or "it gives no reason"
            raise _refusal(reason, answer["node"] or _node_in(reason, model))
        if cache is not None and cache.exists() and options.timing_cache is not None:
            _publish(cache, Path(options.timing_cache))
        (work / "engine").replace(engine)


def _run(job: Mapping[str, object], options: EmitOptions) -> tuple[int, str]:
    """Run the worker. Returns its exit code, and why it was stopped, or an empty text."""
    # -P: do not import a folder or file named tensorrt from beside the script or the current folder.
    command = [sys.executable, "-P", str(_WORKER)]
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere) as process:
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()  # stdin stays open: a closed stdin tells the builder that nobody waits
            return _watch(process, options)
        finally:
            process.kill()  # no effect if it has ended


def _watch(process: subprocess.Popen[bytes], options: EmitOptions) -> tuple[int, str]:
    """Wait for the process. Its resident memory is checked, because a limit on address space stops any CUDA driver."""
    end = time.monotonic() + options.minutes * 60
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_LOOK_SECONDS), ""
        if time.monotonic() > end:
            return 0, f"it took longer than {options.minutes:g} minutes"
        if _resident_gb(process.pid) > options.memory_gb:
            return 0, f"it took more than {options.memory_gb:g} GB of memory"


def _resident_gb(pid: int) -> float:
    """Resident memory of a process in GB; 0 if the system does not report it."""
    return system.resident_bytes(pid) / (1 << 30)


def _ended(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"
    except ValueError:
        return f"signal {-code}"


def _node_in(text: str, model: Model) -> str:
    """The longest node name that a text contains; empty if there is none."""
    names = (node.label for _, node in model.walk())
    return max((n for n in names if re.search(rf"(?<![\w./-]){re.escape(n)}(?![\w/-])", text)), key=len, default="")


def _refusal(text: str, node: str) -> TargetError:
    where = f" at node {node!r}" if node else ""
    builds = "TensorRT builds on the GPU an engine is for; TensorRT-RTX, without any, for hardware such as sm89"
    hint = builds if "cuda" in text.lower() else _NEWER if "HW-specific datatypes" in text else ""
    return TargetError(f"TensorRT refuses the model{where}: {first_line(text)}", hint)


def _errors(log: Path) -> Iterator[str]:
    """Error messages in the log, without names of functions."""
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            severity, _, message = line.rstrip("\n").partition("|")
            if severity in ("ERROR", "INTERNAL_ERROR"):
                yield re.sub(r"^\S+: Error Code \d+: ", "", message)


def _last_step(log: Path) -> str:
    """Where the log ends, as a clause."""
    last = ""
    with contextlib.suppress(OSError), log.open(encoding="utf-8") as lines:
        for line in lines:
            last = line.partition("|")[2].strip() or last
    step = re.match(r"(?:Static check for p|P)arsing node: (.*) \[(\w+)\]", last)
    if step is not None:
        return f"at node {step[1]!r} ({step[2]})"
    return f"after: {first_line(last, 160)}" if last else "before it wrote a log"


def _copy(cache: Path, place: Path) -> None:
    try:
        shutil.copyfile(cache, place)
    except OSError as e:
        raise UsageError(f"{cache} cannot be read: {e.strerror}") from e


def _publish(made: Path, place: Path) -> None:
    """Put a file in its place atomically: first beside it, as the two may be on different disks."""
    try:
        write_file(place, lambda part: shutil.copyfile(made, part))
    except OSError as e:
        raise UsageError(f"cannot write {place}: {e.strerror}") from e
