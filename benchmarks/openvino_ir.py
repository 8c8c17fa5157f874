"""OpenVINO beside ONNX Runtime: `python benchmarks/openvino_ir.py [--zoo FOLDER] [--models ...]`, a Markdown table.

Every model is quantized for target ort and for target openvino, and the latter written as IR. All are held against the
float model in ONNX Runtime, on the samples that nothing was learned from, and timed in turns on the same ones: in each
round every model runs one sample, another one first, and a ratio is the median of those within rounds. CPU time is of
all threads; other work on the machine disturbs it less. f32: what is float is computed in float32.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from readme import THREADS, Job, fixture_jobs, head, table, zoo_jobs

import onnxshot
from onnxshot.calibration.readers import split
from onnxshot.calibration.sample_parts import HOLDOUT
from onnxshot.execution.statistics_source import open_calib
from onnxshot.graph.load import load_model
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.runtimes.base import EmitOptions, Loaded
from onnxshot.runtimes.openvino_runtime import OpenVino
from onnxshot.runtimes.ort_runtime import Feed, Runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, help="a folder of entries; without it the models of fixtures/")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each model's times are taken")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        os.environ["ONNXSHOT_CACHE"] = str(Path(made) / "cache")
        jobs = fixture_jobs() if args.zoo is None else zoo_jobs(args.zoo, Path(made))
        head(
            "model", "ort file dB", "IR dB, f32", "IR dB, default", "openvino file in ort dB", "quantized MACs in int8",
            "ort file ms", "IR speed over ort file", "in CPU time", "over float in OpenVINO",
        )  # fmt: skip
        for job in jobs:
            if not job.options and (args.models is None or job.name in args.models):
                table(f"`{job.name}`", *measured(job, args.effort, args.seconds, Path(made)))


def measured(job: Job, effort: str, seconds: float, folder: Path) -> list[str]:
    """The cells of one model."""
    openvino, settings = OpenVino(), onnxshot.Settings(verify=False, threads=THREADS)
    files = {target: folder / f"{job.name}.{target}.onnx" for target in ("ort", "openvino")}
    for target, path in files.items():
        onnxshot.quantize(
            job.model, job.calib, preset=job.preset, output=path, settings=settings, target=target, effort=effort
        )
    with open_calib(job.calib, load_model(job.model), job.preset, settings) as data:
        feeds = [data[i].feed for i in split(len(data), HOLDOUT)[1]]
    sizes = {name: (values.shape,) * 3 for name, values in feeds[0].items()}
    emitted = openvino.emit(files["openvino"], folder, job.name, EmitOptions(shapes=sizes, threads=THREADS))
    ir = folder / emitted.files[0]
    exact = openvino.load(ir, threads=THREADS)
    models: list[Loaded] = [
        Runner(files["ort"], threads=THREADS), exact, openvino.load(ir, threads=THREADS, precision=None),
        Runner(files["openvino"], threads=THREADS),
    ]  # fmt: skip
    references = list(map(Runner(job.model, threads=THREADS).run, feeds))
    db = [sqnr(references, model, feeds) for model in models]
    timed: list[Loaded] = [models[0], exact, openvino.load(job.model, threads=THREADS)]
    wall = in_turns(timed, feeds, seconds / 2, time.perf_counter)
    cpu = in_turns(timed, feeds, seconds / 2, time.process_time)
    assert emitted.executed is not None
    return [
        *(f"{value:.2f}" for value in db), f"{100 * emitted.executed.honoured:.1f} %", f"{np.median(wall[:, 0]):.2f}",
        *(f"{np.median(times[:, 0] / times[:, 1]):.2f}x" for times in (wall, cpu)),
        f"{np.median(wall[:, 2] / wall[:, 1]):.2f}x",
    ]  # fmt: skip


def sqnr(references: Sequence[Feed], model: Loaded, feeds: Sequence[Feed]) -> float:
    """SQNR in dB over all outputs of all samples."""
    total = SqnrSum()
    for reference, feed in zip(references, feeds, strict=True):
        found = model.run(feed)
        for name, values in reference.items():
            if values.dtype.kind == "f":
                total.add(values, found[name])
    return total.db


def in_turns(models: Sequence[Loaded], feeds: Sequence[Feed], seconds: float, clock: Callable[[], float]) -> np.ndarray:
    """Milliseconds [rounds, models] by this clock, of the second of two runs: caches are another model's at first."""
    rows: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rows) < 5 or time.perf_counter() < end:
        feed, row = feeds[len(rows) % len(feeds)], [0.0] * len(models)
        for turn in range(len(models)):
            i = (turn + len(rows)) % len(models)
            models[i].run(feed)
            start = clock()
            models[i].run(feed)
            row[i] = 1000 * (clock() - start)
        rows.append(row)
    return np.array(rows)


if __name__ == "__main__":
    main()
