"""How to run: nothing in here changes what is computed."""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.calibrate import Progress


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run; none of it changes what is computed.

    Attributes:
        samples: most samples to read from the calibration data; None for all.
        verify: prove the written file against the float model.
        use_cache: keep and reuse statistics.
        threads: CPU threads of every inference.
        device: where calibration runs: cpu, cuda or openvino.
        seed: of random calibration data.
        keep_overridable: leave initializers that are listed as inputs as they are.
        requantize: take an already quantized model back to float first.
        bench_seconds: how long to time each of the two models.
        progress: called with what is being done, how far it is, and how far it goes.
    """

    samples: int | None = None
    verify: bool = True
    use_cache: bool = True
    threads: int = 2
    device: str = "cpu"
    seed: int = 0
    keep_overridable: bool = False
    requantize: bool = False
    bench_seconds: float = 1.0
    progress: Progress | None = None
