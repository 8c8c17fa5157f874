"""Settings: how a run is executed, in contrast to the recipe, which says what is made."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar, get_args

from onnxshot import logs, memory
from onnxshot.arguments import check_fields, named_fields
from onnxshot.errors import UsageError
from onnxshot.files.conflicts import Files
from onnxshot.files.messages import shown
from onnxshot.progress import Progress, telling

_Asked = ParamSpec("_Asked")
_Result = TypeVar("_Result")

Device = Literal["cpu", "cuda", "openvino"]
DEVICES: tuple[Device, ...] = get_args(Device)
"""Devices that calibration can run on."""

MOST_THREADS = 1024
"""Most threads of a run: each takes memory, and ONNX Runtime creates all of them at once."""

AUTO_LIMIT = 1024
"""Most samples that samples='auto' considers; calibration usually settles long before."""


@named_fields
@dataclass(frozen=True, slots=True)
class Settings:
    """How a run is executed.

    Only `samples`, `seed` (for random data), `device`, `keep_overridable`, `requantize` and `search_seconds` can change
    the result; what a search has found is in the recipe of the result.

    Attributes:
        samples: how many samples to calibrate on. 'auto' considers at most AUTO_LIMIT samples, evenly spaced over the
            data, and stops when the ranges have settled; 'all' or a number uses that many.
        verify: whether to compare the written file with the float model.
        use_cache: whether to store calibration statistics in the cache, and to reuse them.
        threads: CPU threads of every inference.
        device: where calibration runs: 'cpu', 'cuda' or 'openvino'.
        memory: the memory that the run may take: bytes, or text such as '4G'. Larger models run in parts that fit, with
            the same result. Default: a quarter of what is free, 8 GB at most. See docs/memory.md.
        seed: of random calibration data.
        keep_overridable: whether initializers that are also listed as inputs are left unchanged.
        requantize: whether an input that is already quantized is converted back to float first.
        bench_seconds: how long each of the two models is timed, in seconds.
        search_seconds: how long `quantize` may go on where a result is below the floor of accuracy or not faster than
            the input: no trial begins after it. None: as long as the run has taken, at least 30 seconds. 0: it never
            does.
        accept: whether a result below the floor, or one that misses a goal, is accepted: it is told, and no fault.
        shared: a folder of statistics that other processes have computed for this run. They are used in place of the
            same calibration pass, with or without the cache.
        files: other files that the caller has read, or will write after the run. They are checked for conflicts with
            the run's own files before the work starts.
        progress: called with the name of the step, the number of items done, and the number of all items; see
            `onnxshot.progress`.

    Raises:
        UsageError: there is no such field, or a value has the wrong type or is out of range.

    Example:
        >>> Settings(samples=200, threads=8).limit
        200
    """

    samples: int | Literal["auto", "all"] = "auto"
    verify: bool = True
    use_cache: bool = True
    threads: int = 2
    device: Device = "cpu"
    memory: int | str | None = None
    seed: int = 0
    keep_overridable: bool = False
    requantize: bool = False
    bench_seconds: float = 0.5
    search_seconds: float | None = None
    accept: bool = False
    shared: str | Path | None = None
    files: Files = field(default_factory=Files)
    progress: Progress | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        known = self.samples in ("auto", "all") if isinstance(self.samples, str) else self.samples > 0
        if not known:
            raise UsageError(f"samples is {self.samples!r}", "a number above 0, 'auto', or 'all'")
        if self.device not in DEVICES:
            raise UsageError(f"device is {shown(self.device)}", f"devices: {', '.join(DEVICES)}")
        if not 1 <= self.threads <= MOST_THREADS:
            raise UsageError(f"threads is {shown(self.threads)}", f"a number from 1 to {MOST_THREADS}")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed is {shown(self.seed)}", "a whole number, 0 or above, of at most 63 bits")
        for name in ("bench_seconds", "search_seconds"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 <= seconds < math.inf:
                raise UsageError(f"{name} is {seconds:g}", "a number of seconds, 0 or above")
        memory.parsed(self.memory)

    @property
    def limit(self) -> int | None:
        """Most samples to consider; None for all."""
        return {"auto": AUTO_LIMIT, "all": None}[self.samples] if isinstance(self.samples, str) else self.samples

    @property
    def memory_bytes(self) -> int | None:
        """The memory budget in bytes; None for the default."""
        return memory.parsed(self.memory)


def budgeted(call: Callable[_Asked, _Result]) -> Callable[_Asked, _Result]:
    """Decorator: run a verb within the memory budget of its `settings`, or of its argument `memory`.

    Without either, the budget of the verb that calls it holds, else the default. What the verb does is told to the
    callback of its settings.
    """
    signature = inspect.signature(call)

    @functools.wraps(call)
    def called(*args: _Asked.args, **kwargs: _Asked.kwargs) -> _Result:
        given = signature.bind_partial(*args, **kwargs).arguments
        settings = given.get("settings")
        with contextlib.ExitStack() as block:
            if isinstance(settings, Settings):
                block.enter_context(memory.limited(settings.memory_bytes))
                block.enter_context(telling(settings.progress))
            else:
                block.enter_context(memory.limited(memory.parsed(given.get("memory"))))
            block.enter_context(logs.run(call.__name__))
            result = call(*args, **kwargs)
        logs.tell(result)
        return result

    return called
