"""How to run, not what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from onnxshot.arguments import check_fields
from onnxshot.errors import TargetError, UsageError
from onnxshot.files.conflicts import Files
from onnxshot.files.messages import shown

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many samples are done, and how many there are."""

DEVICES = ("cpu", "cuda", "openvino")
"""Where calibration may run."""

MOST_THREADS = 1024
"""Most threads that a run may be given: each takes memory, and ONNX Runtime makes them all at once."""

AUTO_LIMIT = 1024
"""Samples that are looked at where nobody says how many: calibration settles long before."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run; `samples`, and `seed` for random data, alone change what is computed.

    Attributes:
        samples: 'auto' looks at AUTO_LIMIT samples at most, evenly spaced over the data, and calibrates on as many of
            them as it takes until the ranges have settled; 'all' or a number takes that many.
        verify: prove the written file against the float model.
        use_cache: keep and reuse statistics.
        threads: CPU threads of every inference.
        device: where calibration runs: cpu, cuda or openvino.
        seed: of random calibration data.
        keep_overridable: leave initializers that are listed as inputs as they are.
        requantize: take an already quantized model back to float first.
        bench_seconds: how long to time each of the two models.
        shared: a folder of statistics that other processes have gathered for this run; one of the very pass that it
            would make stands for that pass, with or without a cache.
        files: what the caller has read besides, and will write once the run is over: held against the run's own before
            the work.
        progress: called with what is being done, how far it is, and how far it goes.
    """

    samples: int | str = "auto"
    verify: bool = True
    use_cache: bool = True
    threads: int = 2
    device: str = "cpu"
    seed: int = 0
    keep_overridable: bool = False
    requantize: bool = False
    bench_seconds: float = 0.5
    shared: str | None = None
    files: Files = field(default_factory=Files)
    progress: Progress | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        known = self.samples in ("auto", "all") if isinstance(self.samples, str) else self.samples > 0
        if not known:
            raise UsageError(f"samples is {self.samples!r}", "a number above 0, 'auto', or 'all'")
        if self.device not in DEVICES:
            raise TargetError(f"ONNX Runtime has no device {shown(self.device)}", f"devices: {', '.join(DEVICES)}")
        if not 1 <= self.threads <= MOST_THREADS:
            raise UsageError(f"{shown(self.threads)} threads were asked for", f"from 1 to {MOST_THREADS}")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"the seed is {shown(self.seed)}", "a whole number, 0 or above, of at most 63 bits")

    @property
    def limit(self) -> int | None:
        """Most samples to look at; None for all."""
        return {"auto": AUTO_LIMIT, "all": None}[self.samples] if isinstance(self.samples, str) else self.samples
