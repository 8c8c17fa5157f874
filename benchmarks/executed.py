"""Hold what is told to run in int8 against what runs: `python benchmarks/executed.py [FOLDER or MODEL ...]`.

Without arguments, the models of fixtures/. A folder is an entry (model.onnx, calib/, and meta.json with an optional
"preset"), a folder of entries, or any folder of .onnx files: samples are then taken from the first folder or .npz in it
that fits, or made at random.

The count is one of its own, by the shapes in ONNX Runtime's profiles: all work by a run of the file that was written,
without optimizations, and work on integers by one with them. Beside it stands how much work the file has of that of the
model that was given: products of constants are gone from it. Ends with 1 where a planned float node runs in int8, or
where a share is off by more than a point.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import yaml
from counting import is_int8, kernels, macs, new_matrices, quiet
from readme import fixture_data, head, table

import onnxshot
from onnxshot.calibration.readers import split
from onnxshot.errors import OnnxshotError
from onnxshot.execution.statistics_source import open_calib
from onnxshot.graph.load import load_model
from onnxshot.settings import Settings

MOST = 0.01  # a share may be off by this


@dataclass(frozen=True)
class Job:
    """A model, and where its samples are."""

    name: str
    model: Path
    calib: str
    preset: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--target", default="ort")
    parser.add_argument("--exclude", nargs="*", default=[])
    args = parser.parse_args()
    options = {"effort": args.effort, "target": args.target, "exclude": tuple(args.exclude)}
    head("model", "int8 told", "counted", "points apart", "float by plan, int8 in the run", "made int8 by ORT", "work")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        jobs = [job for path in args.paths for job in jobs_of(path, Path(folder))] if args.paths else fixtures()
        for job in jobs:
            wrong += not row(job, Path(folder) / "int8.onnx", options)
    sys.exit(1 if wrong else 0)


def fixtures() -> Iterator[Job]:
    for name, facts in fixture_data.facts().items():
        preset = None if facts["preset"] == "none" else str(fixture_data.FIXTURES / facts["preset"])
        yield Job(name, fixture_data.fixture(name), str(fixture_data.FIXTURES / facts["calib"]), preset)


def jobs_of(path: Path, folder: Path) -> Iterator[Job]:
    """The models of a path; presets are written to `folder`."""
    entries = [path] if (path / "model.onnx").is_file() else sorted(p.parent for p in path.glob("*/model.onnx"))
    for entry in entries:
        meta = entry / "meta.json"
        preset = json.loads(meta.read_text()).get("preset") if meta.is_file() else None
        file = folder / f"{entry.name}.yaml"
        if preset is not None:
            file.write_text(yaml.safe_dump(preset))
        yield Job(entry.name, entry / "model.onnx", str(entry / "calib"), None if preset is None else str(file))
    models = [path] if path.is_file() else sorted(path.glob("*.onnx")) if not entries else []
    for model in models:
        yield Job(model.stem, model, fitting(model))


def fitting(model: Path) -> str:
    """The folder or archive beside a model whose samples fit it; 'random' where none does."""
    for place in sorted(p for p in model.parent.iterdir() if p.is_dir() or p.suffix == ".npz"):
        try:
            with open_calib(str(place), load_model(model), None, Settings()) as data:
                onnxruntime.InferenceSession(str(model), quiet()).run(None, dict(data[0].feed))
        except Exception:  # whatever it is: the next one
            continue
        return str(place)
    return "random"


def row(job: Job, out: Path, options: dict[str, Any]) -> bool:
    """Print a line; whether it is as it should be."""
    try:
        settings = Settings(use_cache=False, bench_seconds=0.01)
        result = onnxshot.quantize(job.model, job.calib, output=out, preset=job.preset, settings=settings, **options)
        with open_calib(job.calib, load_model(job.model), job.preset, settings) as data:
            feed = dict(data[(split(len(data))[1] or [0])[0]].feed)
        told, unplanned = result.report.int8_macs_share, result.report.int8_unplanned
        given = sum(map(macs, kernels(job.model, feed, optimize=False)))
        everything = sum(map(macs, kernels(out, feed, optimize=False)))
        integers = sum(macs(kernel) for kernel in kernels(out, feed) if is_int8(kernel[0]))
    except (OnnxshotError, onnxruntime.capi.onnxruntime_pybind11_state.Fail) as e:
        table(f"`{job.name}`", str(e).splitlines()[0][:90], *[""] * 5)
        return True
    made = new_matrices(out)
    counted = integers / everything if everything else None
    if told is None or counted is None:
        table(f"`{job.name}`", told, counted, "-", len(unplanned), made, "-")
        return told == counted and not unplanned
    apart = abs(told - counted)
    share = f"{everything / given:.4f}" if given else "-"
    marks = "" if not unplanned else f" {unplanned[:3]}"
    cells = (f"{told:.4f}", f"{counted:.4f}", f"{100 * apart:.2f}", f"{len(unplanned)}{marks}", made, share)
    table(f"`{job.name}`", *cells)
    return apart <= MOST and not unplanned and made == 0


if __name__ == "__main__":
    main()
