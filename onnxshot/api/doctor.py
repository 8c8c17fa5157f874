"""`doctor`: measure which targets run on this machine, and say what to install for the others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import onnxshot
from onnxshot.api.quantize import quantize
from onnxshot.arguments import checked
from onnxshot.diagnostics.machine import Extra, Package, Processor, extras, gpus, packages, processor
from onnxshot.diagnostics.runtime_trials import Trial, convs, sums_saturate
from onnxshot.errors import OnnxshotError
from onnxshot.files.atomic_write import scratch
from onnxshot.recipes.vocabulary import Precision, TargetName
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact, rounded
from onnxshot.runtimes.ort_bench import NOISE
from onnxshot.settings import Settings
from onnxshot.targets import TARGETS, target_named
from onnxshot.targets.ort import ORT, ORT_AVX2
from onnxshot.wording import worded


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What this machine can run.

    Attributes:
        version: Version of onnxshot.
        processor: The CPU and its instruction sets.
        gpus: Names of the GPUs.
        packages: Installed packages that onnxshot uses.
        extras: Optional dependencies of onnxshot, and how to install those that are missing.
        saturates: Whether ONNX Runtime's sums of uint8 x int8 products saturate on this CPU; None if that could not be
            measured.
        trials: A small network quantized and run for every target, and in fp16 for `ort`.
        verdicts: Target -> one line that says whether it runs here and how fast.
    """

    version: str
    processor: Processor
    gpus: tuple[str, ...]
    packages: tuple[Package, ...]
    extras: tuple[Extra, ...]
    saturates: bool | None
    trials: tuple[Trial, ...]
    verdicts: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values under stable keys."""
        values: dict[str, Any] = rounded(asdict(self))
        return values


@checked
def doctor(*, threads: int = 2) -> Diagnosis:
    """Inspect the machine, and quantize and run a small network for every target; takes some seconds.

    A missing runtime raises nothing: the verdict of its target says so.

    Args:
        threads: Threads of every runtime.

    Returns:
        The processor, the packages, and one verdict per target.

    Example:
        >>> found = onnxshot.doctor()
        >>> found.verdicts["ort"]
    """
    trials = [try_target(target.name, threads=threads) for target in TARGETS.values()]
    half = try_target(ORT.name, "fp16", threads=threads)
    try:
        saturates: bool | None = sums_saturate()
    except onnxshot.errors.OnnxshotError:
        saturates = None
    verdicts = {trial.target: _verdict(trial, saturates) for trial in trials}
    verdicts[ORT.name] += f"; fp16: {_speed(half)}"
    return Diagnosis(
        onnxshot.__version__, processor(), gpus(), packages(), extras(), saturates, (*trials, half), verdicts
    )


def _verdict(trial: Trial, saturates: bool | None) -> str:
    """One line: whether the target runs, how fast, and how accurate its outputs are."""
    if trial.refused or trial.speedup is None:
        return f"not run here: {trial.refused}"
    share = "" if trial.share is None else f", {100 * trial.share:.0f} % of the work in int8"
    line = f"int8 {_speed(trial)}{share}"
    if trial.target == ORT.name and saturates:
        line += "; sums of uint8 x int8 products saturate on this CPU"
        return worded(f"{line}: use [[target={ORT_AVX2.name}]]")
    if trial.target == ORT_AVX2.name and saturates is False:
        return f"{line}; not needed here: sums are exact with 8-bit weights too"
    return line


def _speed(trial: Trial) -> str:
    """Speed and SQNR of a trial, or why it did not run."""
    if trial.speedup is None:
        return f"not run: {trial.refused}"
    faster = "faster" if trial.speedup > 1 + NOISE else "slower" if trial.speedup < 1 - NOISE else "no faster"
    db = "" if trial.sqnr_db is None else f", SQNR {trial.sqnr_db:.0f} dB"
    return f"runs at {trial.speedup:.2f}x of float ({faster}){db}"


def try_target(target: TargetName, precision: Precision = "int8", *, threads: int = 2, seconds: float = 0.3) -> Trial:
    """Quantize the network for a target and run it there. Errors are not raised but returned in the trial."""
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(size=(1, 32, 28, 28)).astype(np.float32)} for _ in range(8)]
    runtime = target_named(target).runtime
    settings = Settings(use_cache=False, threads=threads, bench_seconds=seconds, search_seconds=0.0)
    try:
        with scratch() as folder:
            made = quantize(
                convs(), feeds, output=folder / "net.onnx", target=target, precision=precision, effort="fast",
                settings=settings, emit=None if runtime is None else (runtime.format,),
            )  # fmt: skip
    except OnnxshotError as e:
        return Trial(target, precision, refused=str(e))
    except Exception as e:  # a broken runtime may raise anything
        return Trial(target, precision, refused=f"{type(e).__name__}: {e}".splitlines()[0])
    report, (artifact,) = made.report, made.report.outputs
    found: Report | Artifact = report if artifact.format == "onnx" else artifact
    refused = "" if found.latency else "; ".join(found.notes)
    share, speedup = found.int8_macs_share, found.latency.get("speedup")
    return Trial(target, precision, refused, share, speedup, found.sqnr_db)
