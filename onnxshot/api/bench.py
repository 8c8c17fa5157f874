"""`bench`: time models in interleaved runs on the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnxshot.arguments import check_value, checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.given import Transform, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.comparison.proto_edits import parsed
from onnxshot.comparison.token_outputs import token_output
from onnxshot.errors import ModelError, UsageError
from onnxshot.execution.statistics_source import open_calib
from onnxshot.graph.load import load_model
from onnxshot.precision16.bfloat16_emulation import runnable_on_cpu
from onnxshot.results.benched import BenchResult
from onnxshot.results.model_source import ModelSource, model_files, name_of_source
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.runtimes.open_models import OpenModels
from onnxshot.runtimes.ort_bench import Latency, exceed
from onnxshot.runtimes.ort_bench import bench as time_models
from onnxshot.runtimes.ort_other_environment import bench_in
from onnxshot.runtimes.ort_runtime import Feed, runtime
from onnxshot.settings import MOST_THREADS, Settings, budgeted
from onnxshot.verification.decoding_speed import time_decoding, with_decoding

_BENCH_FEEDS = 8


@checked
@budgeted
@one_blas_thread()
@blames_model
def bench(
    models: ModelSource | Sequence[ModelSource],
    calib: Calib | None = None,
    *,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    seconds: float = 2.0,
    threads: int = 2,
    python: str | Path | None = None,
    memory: int | str | None = None,
) -> BenchResult:
    """Time models in ONNX Runtime, in interleaved runs on the same samples.

    Args:
        models: A model as `quantize` takes it, or several; speedups are relative to the first.
        calib: Samples, as `quantize` takes them. Default: random ones.
        preset: How samples become inputs.
        transform: Called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        seconds: Time for all runs together, about.
        threads: Threads of each session.
        python: Interpreter of another environment, or its folder. The models are then timed in the ONNX Runtime of that
            environment, which needs onnxruntime and numpy but not onnxshot.
        memory: Memory budget, as in `Settings`.

    Returns:
        A list with one row per model, in the order given. Latencies are in milliseconds. If the models are decoders
        with a cache, `prompt` and `token` of a row are the latencies of a prompt of 64 tokens and of one token behind
        it; not with `python`, and not of models that run in parts.

    Raises:
        UsageError: `models` or `seconds` is invalid, or the other environment cannot be used.
        ModelError: A model cannot be read or run.
        CalibrationError: The data does not fit the models.

    Example:
        >>> before, after = onnxshot.bench(["model.onnx", "model.int8.onnx"], seconds=2.0)
        >>> after.ratio  # times as fast as the first model
    """
    calib = with_transform(calib, transform)
    given: list[ModelSource]
    if isinstance(models, Sequence) and not isinstance(models, str | bytes):
        given, names = [*models], [f"models[{number}]" for number in range(len(models))]
    else:
        given, names = [models], ["models"]
    if not given:
        raise UsageError("models is an empty list", "give one or more, such as ['a.onnx', 'b.onnx']")
    if not (math.isfinite(seconds) and seconds >= 0):
        raise UsageError(f"seconds is {seconds:g}", "give a finite number, 0 or above")
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"threads is {threads}", f"a number from 1 to {MOST_THREADS}")
    for name, model in zip(names, given, strict=True):
        check_value(name, model, "ModelSource", globals())
    with model_files(*given) as paths:
        rows = _timed(paths, calib, preset, seconds, threads, python)
    named = zip(rows, map(name_of_source, given), strict=True)
    return BenchResult(_named(row, Path(name), row.runtime) for row, name in named)


def _timed(
    paths: list[Path],
    calib: Calib,
    preset: str | Path | Preset | SoundPreset | TextPreset | None,
    seconds: float,
    threads: int,
    python: str | Path | None,
) -> list[Latency]:
    """The rows of files."""
    loaded = [load_model(p) for p in paths]
    with open_calib("random" if calib is None else calib, loaded[0], preset, Settings(), whole=True) as data:
        feeds = [data[i].feed for i in range(min(len(data), _BENCH_FEEDS))]
        if python is not None:
            return bench_in(python, paths, feeds, threads=threads, seconds=seconds)
        here = f"onnxruntime {runtime().__version__}"
        with runnable_on_cpu(paths) as (runs, _):
            timed = time_models(runs, feeds, threads=threads, rounds=10_000, seconds=seconds)
            timed = _with_decoding(runs, feeds[0], timed, threads=threads, seconds=seconds)
        return [_named(row, path, here) for row, path in zip(timed, paths, strict=True)]


def _named(row: Latency, path: Path, runtime: str) -> Latency:
    """A row, and those inside it, with the file as it was given and the runtime."""
    prompt, token = (None if one is None else _named(one, path, runtime) for one in (row.prompt, row.token))
    return replace(row, path=path, runtime=runtime, prompt=prompt, token=token)


def _with_decoding(
    models: Sequence[Path], sample: Feed, rows: list[Latency], *, threads: int, seconds: float
) -> list[Latency]:
    """The rows, with the latency of a prompt and of a token where all models are decoders with a cache."""
    output = token_output(parsed(models[0]))
    if output is None or not output.presents or exceed(models):
        return rows
    opened = OpenModels(models, threads, whole=True)
    try:
        timed = time_decoding(models, sample, output, threads=threads, opened=opened, rounds=10_000, seconds=seconds)
    except ModelError:  # a model without such a cache: it was timed on the samples alone
        return rows
    return with_decoding(rows, timed)
