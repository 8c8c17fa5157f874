"""Make the artifacts of other runtimes than ONNX Runtime from an .onnx file, and verify them in their own runtime.

The artifacts are made in a temporary folder; `write_results` moves them to their places.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from onnxshot.calibration.readers import Dataset
from onnxshot.errors import ModelError, TargetError, UsageError
from onnxshot.files.atomic_write import aside, scratch
from onnxshot.files.links import follow_link
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.save import Draft
from onnxshot.logs import stage
from onnxshot.precision16.bfloat16_emulation import computes_bfloat16
from onnxshot.recipes.vocabulary import TargetName
from onnxshot.report.values import Artifact
from onnxshot.runtimes.base import Dims, EmitOptions, Emitted, Loaded, Runtime
from onnxshot.runtimes.ort_bench import CLEAR, NOISE, bench_loaded
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.runtimes.size_ranges import ranges_of
from onnxshot.settings import Settings
from onnxshot.targets import RUNTIMES, target_of
from onnxshot.targets.base import Target
from onnxshot.verification.compare_models import compare_loaded
from onnxshot.verification.reference import Reference
from onnxshot.wording import worded

ONNX: Final = "onnx"
_BENCH_FEEDS = 8


@dataclass(frozen=True, slots=True)
class Judged:
    """What an artifact is compared with.

    Attributes:
        reference: the float model that was given.
        samples: held-out samples.
    """

    reference: Path | LeanModel
    samples: Dataset


def formats_of(asked: Sequence[str] | None, output: Path | None, target: Target) -> tuple[str, ...]:
    """The formats to write: those asked for, else the one of the output's suffix, else the target's own.

    Raises:
        TargetError: the runtime of a format is not installed.
        UsageError: a format is unknown.
    """
    by_suffix = {runtime.suffix: name for name, runtime in RUNTIMES.items()} | {".onnx": ONNX}
    named = by_suffix.get(follow_link(output).suffix.lower()) if output is not None else None
    formats = tuple(dict.fromkeys(asked or (named or target.emits,)))
    for name in formats:
        if name != ONNX:
            runtime_of(name).check()
    return formats


def runtime_of(name: str) -> Runtime:
    """The runtime of a format. Raises UsageError, which lists the formats, for an unknown one."""
    if name not in RUNTIMES:
        raise UsageError(f"there is no format {name!r}", f"formats: {', '.join((ONNX, *RUNTIMES))}")
    return RUNTIMES[name]


def target_of_artifact(asked: Sequence[str] | None, output: Path | None) -> TargetName | None:
    """The target of a run that names no target and makes a single artifact: the one of its format; else None."""
    by_suffix = {runtime.suffix: name for name, runtime in RUNTIMES.items()}
    named = by_suffix.get(follow_link(output).suffix.lower()) if output is not None else None
    formats = set(asked or filter(None, (named,)))
    return target_of(formats.pop()).name if len(formats) == 1 and formats <= set(RUNTIMES) else None


def with_sample_sizes(
    options: EmitOptions, formats: Sequence[str], inputs: Mapping[str, Dims | None], data: Dataset | None
) -> EmitOptions:
    """Add the sizes of samples to the options, for formats that are compiled for a range of input sizes.

    Args:
        options: of the artifacts.
        formats: to write.
        inputs: dimensions of the inputs of the model, by name.
        data: samples; None where there are none.

    Raises:
        UsageError: a format needs sizes, and they are unknown.
    """
    ranged = [RUNTIMES[name] for name in formats if name in RUNTIMES and RUNTIMES[name].ranged]
    if ranged and data is not None and not data.random:
        unnamed = {name: dims for name, dims in inputs.items() if name not in options.shapes}
        options = replace(options, sampled=ranges_of(unnamed, data))
    for runtime in ranged:
        runtime.check_sizes(inputs, options)
    return options


def load_artifact(path: Path, name: str, *, threads: int) -> Loaded:
    """Load an artifact in its runtime. An .onnx file is loaded in ONNX Runtime, with sequences and maps as arrays.

    Raises:
        TargetError: the runtime does not run on this machine.
        ModelError: the artifact does not load.
    """
    if name == ONNX:
        try:
            return Runner(path, threads=threads, whole=True)
        except ModelError as e:
            if computes_bfloat16(path):
                raise TargetError(f"{path.name} computes in bfloat16, which ONNX Runtime lacks on CPUs") from e
            raise
    runtime = runtime_of(name)
    runtime.check()
    if missing := runtime.runs_here():
        raise TargetError(missing)
    return runtime.load(path, threads=threads)


def artifact_path(output: Path, name: str) -> Path:
    """The path of the artifact of a format: that of the output, with the suffix of the format.

    Links are followed. Raises UsageError for an output without a file name, and as `follow_link`.
    """
    if not output.name:
        raise UsageError(f"the output {output} is a folder", "name the file in it with [[output|-o]]")
    output = follow_link(output)
    suffixes = {runtime.suffix for runtime in RUNTIMES.values()}
    if name == ONNX:
        return follow_link(output.with_suffix(".onnx")) if output.suffix.lower() in suffixes else output
    known = output.suffix.lower() in (".onnx", *suffixes)
    return follow_link(output.with_name((output.stem if known else output.name) + runtime_of(name).suffix))


def make_artifacts(
    source: Path,
    formats: Sequence[str],
    output: Path,
    options: EmitOptions,
    judged: Judged | None,
    settings: Settings,
) -> Iterator[AbstractContextManager[tuple[Draft, Artifact]]]:
    """Context managers, as of `make_artifact`, for the artifacts of all formats but .onnx."""
    for name in formats:
        if name != ONNX:
            yield make_artifact(source, name, artifact_path(output, name), options, judged, settings)


@contextlib.contextmanager
def make_artifact(
    source: Path, name: str, final: Path, options: EmitOptions, judged: Judged | None, settings: Settings
) -> Iterator[tuple[Draft, Artifact]]:
    """Make an artifact of an .onnx file in a temporary folder, and verify it if its runtime runs on this machine.

    Args:
        source: the .onnx file.
        name: format of the artifact.
        final: the path that the artifact will have.
        options: of the artifact.
        judged: what to compare it with; None without samples.
        settings: how the run is executed.

    Yields:
        The unpublished files, and what was measured of them.

    Raises:
        UsageError: `final` is a folder.
        TargetError: the runtime refuses the model.
        ModelError: the artifact does not run.
    """
    runtime, started = runtime_of(name), time.perf_counter()
    if final.is_dir():
        raise UsageError(f"{final} is a folder", "name the file in it with [[output|-o]]")
    with aside(final) as folder:
        with stage(f"emit {name}"):
            emitted = runtime.emit(source, folder, final.stem, options)
        seconds = time.perf_counter() - started
        draft = Draft(folder, final, list(emitted.files))
        yield draft, _proven(draft, emitted, name, seconds, judged, settings, options)


def _proven(
    draft: Draft,
    emitted: Emitted,
    name: str,
    seconds: float,
    judged: Judged | None,
    settings: Settings,
    options: EmitOptions,
) -> Artifact:
    """Describe an artifact: how it was compiled and, if it runs on this machine, its accuracy and its latency."""
    runtime, notes = runtime_of(name), list(emitted.notes)
    ran = emitted.executed if emitted.executed is not None and emitted.executed.total_macs else None
    found, latency = None, {}
    missing = runtime.runs_here() or ("" if judged is not None else "there are no samples")
    if missing:
        notes.append(f"compiled, not run: {missing}")
    if judged is not None and not missing:
        loaded = runtime.load(draft.path, threads=settings.threads)
        found = compare_loaded(judged.reference, loaded, judged.samples, threads=settings.threads)
        notes += [*found.notes, *found.not_finite]
        if judged.samples.random:
            notes.append(worded("compared on random data alone: [[calib=DATA]] gives figures that mean something"))
            found = None
        with scratch() as folder:
            path = Reference(judged.reference).at(folder / "float.onnx")
            feeds = [judged.samples[i].feed for i in range(min(len(judged.samples), _BENCH_FEEDS))]
            try:
                given = runtime.load(path, threads=settings.threads, options=options)
            except (ModelError, TargetError) as e:
                notes.append(f"not timed: {name} does not load the model that was given: {e.message}")
            else:
                before, after = bench_loaded(
                    [(path, given), (draft.path, loaded)], feeds, seconds=settings.bench_seconds, precision=NOISE,
                    clear=CLEAR,
                )
                latency = after.against(before)
                notes += runtime.time_notes(given, loaded)
    return Artifact(
        str(draft.final), name, name, draft.size_bytes,
        sqnr_db=found.sqnr_db if found is not None else None,
        agreement=found.agreement if found is not None else None,
        int8_macs_share=ran.share if ran is not None else None,
        honoured=ran.honoured if ran is not None else None, latency=latency, notes=tuple(notes), seconds=seconds,
    )  # fmt: skip
