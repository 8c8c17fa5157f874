"""What pays in a browser: `python benchmarks/web.py PACKAGE [--zoo FOLDER] [--models ...]`, a Markdown table.

PACKAGE is the folder of onnxruntime-web (`npm install onnxruntime-web` makes node_modules/onnxruntime-web); node runs
its WebAssembly build on the CPU, as a browser does. Every model is written in each of the forms below for target ort.
All are timed in turns on the same held-out samples: a speed is the median of the ratios within rounds, float over form.
dB: of the outputs that onnxruntime-web gives, against those that it gives for the float file. One thread is what a page
has that is not cross-origin isolated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from readme import Job, fixture_jobs, head, table, zoo_jobs

import onnxshot
from onnxshot.calibration.readers import split
from onnxshot.calibration.sample_parts import HOLDOUT
from onnxshot.errors import OnnxshotError
from onnxshot.execution.statistics_source import open_calib
from onnxshot.graph.load import load_model
from onnxshot.maths.sqnr import SqnrSum

FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "static": {"mode": "static"},
    "dynamic": {"mode": "dynamic"},
    "weights": {"mode": "weights"},
}
SAMPLES = 4  # that are run in node


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="the folder of onnxruntime-web")
    parser.add_argument("--zoo", type=Path, help="a folder of entries; without it the models of fixtures/")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each form is timed")
    args = parser.parse_args()
    if not (args.package / "dist").is_dir():
        parser.error(f"{args.package} has no dist/: `npm install onnxruntime-web` makes the folder")
    with tempfile.TemporaryDirectory() as made:
        jobs = fixture_jobs() if args.zoo is None else zoo_jobs(args.zoo, Path(made))
        head("model", "float ms", *(f"{name}: speed, dB, size" for name in FORMS))
        for job in jobs:
            if not job.options and (args.models is None or job.name in args.models):
                table(f"`{job.name}`", *cells(job, args, Path(made)))


def cells(job: Job, args: argparse.Namespace, folder: Path) -> list[str]:
    """Of one model: milliseconds of float, then speed, dB and relative size of every form."""
    settings = onnxshot.Settings(verify=False)
    files, refused = [job.model], {}
    for name, options in FORMS.items():
        path = folder / f"{job.name}.{name}.onnx"
        try:
            onnxshot.quantize(
                job.model, job.calib, preset=job.preset, output=path, settings=settings, effort=args.effort, **options
            )
            files.append(path)
        except OnnxshotError as e:
            refused[name] = str(e).splitlines()[0]
    with open_calib(str(job.calib), load_model(job.model), job.preset, settings) as data:
        feeds = [data[i].feed for i in split(len(data), HOLDOUT)[1][:SAMPLES]]
    found = run(args, files, feeds, folder)
    told = iter(found[1:])
    rows = [refused[name] if name in refused else form(next(told), job.model) for name in FORMS]
    return [f"{found[0]['ms']:.1f}" if "ms" in found[0] else found[0]["error"], *rows]


def form(one: dict[str, Any], given: Path) -> str:
    if "error" in one:
        return one["error"]
    share = one["file"].stat().st_size / given.stat().st_size
    return f"{one['ratio']:.2f}x, {one['db']:.1f} dB, {share:.2f}"


def run(args: argparse.Namespace, files: list[Path], feeds: list[Any], folder: Path) -> list[dict[str, Any]]:
    """What node found of each file: {error}, or {ms, ratio, db, file}."""
    out = Path(tempfile.mkdtemp(dir=folder))
    described = []
    for i, feed in enumerate(feeds):
        described.append([])
        for k, (name, values) in enumerate(feed.items()):
            place = out / f"feed-{i}-{k}"
            place.write_bytes(np.ascontiguousarray(values).tobytes())
            described[-1].append(
                {"name": name, "type": values.dtype.name, "dims": list(values.shape), "file": str(place)}
            )
    job = {
        "package": str(args.package.resolve()), "threads": args.threads, "seconds": args.seconds,
        "models": [str(f) for f in files], "feeds": described, "out": str(out),
    }  # fmt: skip
    place = out / "job.json"
    place.write_text(json.dumps(job))
    script = Path(__file__).with_name("web.mjs")
    done = subprocess.run(["node", str(script), str(place)], check=True, capture_output=True, text=True)
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["models"]
    for i, (one, file) in enumerate(zip(found, files, strict=True)):
        total = SqnrSum()
        for reference in sorted(out.glob("0-*.f32")) if "error" not in one else ():
            other = out / f"{i}{reference.name[1:]}"
            total.add(*(np.fromfile(p, np.float32) for p in (reference, other)))
        one |= {"file": file, "db": total.db if "error" not in one else None}
    return found


if __name__ == "__main__":
    main()
