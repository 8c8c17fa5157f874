"""`compress`: prune, then quantize, in one run; every stage is held against the model that was given, and timed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot.calibrating import HOLDOUT, open_calib
from onnxshot.calibration.preprocess import Preset
from onnxshot.calibration.readers import split
from onnxshot.errors import ModelError, UsageError
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.graph.save import draft, refuse_sources, write
from onnxshot.pipeline import quantize
from onnxshot.pruning import PruneReport, prune
from onnxshot.recipe import Recipe
from onnxshot.report import Report, rounded, save_json
from onnxshot.settings import Settings
from onnxshot.targets.ort_bench import bench
from onnxshot.verify import compare
from onnxshot.zeros import lost_zeros

_TIMED_ON = 8  # samples


@dataclass(frozen=True, slots=True)
class Stage:
    """One model of the run, the given one first.

    Attributes:
        name: input, pruned or quantized.
        path: the file that was kept; empty where none was.
        bytes: its size.
        sqnr_db: of its outputs against those of the input, on samples nothing was learned from; None of the input.
        agreement: share 0..1 of equal top-1 classes; None where no output looks like class scores.
        latency_ms, speedup: of one run in ONNX Runtime, in turns with the input.
    """

    name: str
    path: str
    bytes: int
    sqnr_db: float | None
    agreement: float | None
    latency_ms: float
    speedup: float


@dataclass(slots=True)
class CompressReport:
    """The stages, and what each step reported of itself: quantization is held against the pruned model there."""

    input: str
    stages: list[Stage] = field(default_factory=list)
    prune: PruneReport | None = None
    quantize: Report | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        steps = {"prune": self.prune, "quantize": self.quantize}
        values: dict[str, Any] = rounded(
            {
                "input": self.input,
                "stages": [asdict(stage) for stage in self.stages],
                "seconds": self.seconds,
            }
        )
        return values | {name: report.to_dict() for name, report in steps.items() if report is not None}

    def save(self, path: str | Path) -> None:
        """Write the JSON, aside first. Raises UsageError where that cannot be done."""
        save_json(self.to_dict(), path)


@dataclass(slots=True)
class CompressResult:
    """A compressed model and the proof."""

    model: Model
    report: CompressReport

    def save(self, path: str | Path) -> Path:
        """Write the model to `path` (and `path`.data where it is over 1 GiB), aside first; the path."""
        with draft(self.model, Path(path)) as written:
            return written.publish()


def compress(
    model: str | Path | ModelProto,
    calib: Any,
    *,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    scope: str | None = None,
    layers: Mapping[str, float] | None = None,
    spare: Sequence[str] = (),
    output: str | Path | None = None,
    keep_stages: str | Path | None = None,
    preset: str | Preset | None = None,
    recipe: Recipe | None = None,
    settings: Settings | None = None,
    **options: Any,
) -> CompressResult:
    """Prune a model, then quantize what is left; every zero of the first step is a zero of the result.

    Args:
        model: path of an .onnx file, or a ModelProto.
        calib: samples, as `quantize` takes them; the last quarter of them judges both stages.
        sparsity: share of the weights that become zero, as `prune` takes it.
        pattern: of the zeros, as `prune` takes it.
        scope: how zeros are shared out, as `prune` takes it.
        layers: glob -> sparsity, as `prune` takes it.
        spare: globs of what is not pruned.
        output: where to write; None keeps the result in memory.
        keep_stages: a folder for the file of every stage.
        preset: preprocessing of pictures.
        recipe: how to quantize; `options` override its fields.
        settings: how to run it.
        **options: fields of the recipe, by name.

    Raises:
        ModelError, CalibrationError, UsageError, TargetError: each says what was found and what to do.
    """
    started = time.perf_counter()
    settings = settings or Settings()
    if calib is None:
        raise UsageError("there are no samples", "give --calib DATA: both stages learn from it")
    loaded = load_model(model)
    if output is not None:
        refuse_sources(loaded, Path(output))
    name = str(model) if isinstance(model, str | Path) else "(ModelProto)"
    report = CompressReport(name)
    with tempfile.TemporaryDirectory(prefix="onnxshot-") as made:
        folder = Path(keep_stages) if keep_stages is not None else Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        pruned = prune(
            model, calib, sparsity=sparsity, pattern=pattern, scope=scope, layers=layers, exclude=spare, preset=preset,
            settings=settings, output=folder / "pruned.onnx",
        )  # fmt: skip
        result = quantize(
            folder / "pruned.onnx", calib, preset=preset, recipe=recipe, settings=settings,
            output=folder / "quantized.onnx", **options,
        )  # fmt: skip
        lost = lost_zeros(pruned.model, result.model)
        if lost:
            raise ModelError(f"quantization lost zeros of {len(lost)} weights, such as {lost[0]!r}", "report this")
        report.prune, report.quantize = pruned.report, result.report
        source = Path(model) if isinstance(model, str | Path) else Path(made) / "input.onnx"
        if isinstance(model, ModelProto):
            write(loaded, source)
        paths = {"input": source, "pruned": folder / "pruned.onnx", "quantized": folder / "quantized.onnx"}
        with open_calib(calib, loaded, preset, settings) as data:
            judges = data.subset(split(len(data), HOLDOUT)[1] or range(len(data)))
            feeds = [judges[i].feed for i in range(min(len(judges), _TIMED_ON))]
            times = bench(list(paths.values()), feeds, threads=settings.threads, seconds=settings.bench_seconds)
            for (stage, path), timed in zip(paths.items(), times, strict=True):
                found = None if path is source else compare(source, path, judges, threads=settings.threads)
                report.stages.append(
                    Stage(
                        stage, str(path) if keep_stages is not None or path is source else "", path.stat().st_size,
                        found.sqnr_db if found is not None else None, found.agreement if found is not None else None,
                        timed.median_ms, timed.ratio,
                    )
                )  # fmt: skip
    if output is not None:
        result.save(output)
    report.seconds = time.perf_counter() - started
    return CompressResult(result.model, report)
