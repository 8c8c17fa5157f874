"""Hold what reports say against what is true: `python benchmarks/truth.py [MODEL or FOLDER ...] [--node-cases]`.

Every model is quantized, and the SQNR that its report tells is measured once more: the given file against the written
one, on the same held-out samples, with numpy and onnxruntime alone. Exits with 1 where the two are over 0.5 dB apart.

A folder is one of: model.onnx with calib/, and a "preset" in meta.json where pictures need one; test data of an ONNX
node case (model.onnx with test_data_set_*); or .onnx files with folders of samples beside them, of which each model
takes the first that fits its inputs. Without arguments, the models of fixtures/.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import yaml

import onnxshot
from onnxshot.calibration.preset import load_preset
from onnxshot.calibration.readers import open_data, split
from onnxshot.errors import OnnxshotError
from onnxshot.graph.load import load_model
from onnxshot.rewriting.model_inputs import input_specs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))
import fixture_data

Feed = dict[str, np.ndarray[Any, Any]]

MOST_DB = 0.5  # that what is told may be away from what is measured
_CAP_DB = 200.0
_NODE_SAMPLES = 4  # times that the one sample of a node case is given


@dataclass(frozen=True)
class Job:
    """A model and what it is fed; a name for the table."""

    name: str
    model: Path
    feeds: list[Feed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="models and folders; none: fixtures/")
    parser.add_argument("--node-cases", action="store_true", help="the node cases of the onnx package, too")
    parser.add_argument("--data", type=Path, help="samples of every model, where they are not found beside it")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--mode", default="static")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    print(f"| model | told dB | measured dB | apart |\n{'|---' * 4}|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs(args, Path(folder)):
            if isinstance(job, str):
                counts["without samples"] += 1
                print(f"| {job} | no samples that fit | | |", flush=True)
                continue
            counts[row(job, Path(folder) / "made.onnx", args)] += 1
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    sys.exit(1 if counts["over"] else 0)


def row(job: Job, out: Path, args: argparse.Namespace) -> str:
    """Quantize and print; what came of it: 'over' or 'within' MOST_DB, or why there is nothing to hold against."""
    try:
        settings = onnxshot.Settings(bench_seconds=0.01)
        report = onnxshot.quantize(
            job.model, job.feeds, output=out, effort=args.effort, mode=args.mode, settings=settings
        ).report
    except OnnxshotError as e:
        print(f"| {job.name} | {type(e).__name__}: {str(e)[:120]} | | |", flush=True)
        return "refused"
    told = report.sqnr_db
    if told is None:
        print(f"| {job.name} | none | | |", flush=True)
        return "not compared"
    if report.judged:
        print(f"| {job.name} | {told:.2f} | kept out of it: {', '.join(report.judged)} | |", flush=True)
        return "judged in part"
    found = measured(job.model, out, [job.feeds[i] for i in split(len(job.feeds))[1]])
    apart = abs(told - found)
    print(f"| {job.name} | {told:.2f} | {found:.2f} | {apart:.2f}{' !' if apart > MOST_DB else ''} |", flush=True)
    return "over" if apart > MOST_DB else "within"


def measured(given: Path, written: Path, feeds: list[Feed]) -> float:
    """SQNR in dB of all float outputs over the samples: energies of signal and error, each added up."""
    first, second = session(given), session(written)
    names = [o.name for o in first.get_outputs() if o.type.startswith("tensor(")]
    signal = noise = 0.0
    for feed in feeds:
        wanted, got = (s.run(names, {i.name: feed[i.name] for i in s.get_inputs()}) for s in (first, second))
        for a, b in zip(wanted, got, strict=True):
            if a.dtype.kind == "f" and a.shape == b.shape:
                a, b = a.astype(np.float64), b.astype(np.float64)
                finite = np.isfinite(a) & np.isfinite(b)
                same = (a == b) | (np.isnan(a) & np.isnan(b))
                signal += float((a[finite] ** 2).sum())
                noise += float(((a - b)[finite] ** 2).sum()) if (finite | same).all() else math.inf
    if noise == 0:
        return _CAP_DB
    if signal == 0 or not math.isfinite(noise):
        return -_CAP_DB
    return max(-_CAP_DB, min(_CAP_DB, 10 * math.log10(signal / noise)))


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def jobs(args: argparse.Namespace, folder: Path) -> Iterator[Job | str]:
    """What is to be measured; the name alone of a model without samples."""
    if not args.paths and not args.node_cases:
        for name, facts in fixture_data.facts().items():
            preset = None if facts["preset"] == "none" else str(fixture_data.FIXTURES / facts["preset"])
            path = fixture_data.fixture(name)
            yield Job(name, path, read(path, fixture_data.FIXTURES / facts["calib"], preset))
    for path in args.paths:
        yield from in_folder(path, args.data, folder) if path.is_dir() else fitting(path, [args.data, *beside(path)])
    if args.node_cases:
        from node_case_worker import cases

        for name, model, inputs in cases():
            path = folder / "case.onnx"
            path.write_bytes(model.SerializeToString())
            names = [i.name for i in model.graph.input]
            if all(isinstance(value, np.ndarray) for value in inputs) and len(names) == len(inputs):
                yield Job(name, path, [dict(zip(names, inputs, strict=True))] * _NODE_SAMPLES)


def in_folder(path: Path, data: Path | None, folder: Path) -> Iterator[Job | str]:
    model = path / "model.onnx"
    if model.is_file() and (path / "calib").exists():
        meta = json.loads((path / "meta.json").read_text()) if (path / "meta.json").is_file() else {}
        preset = None
        if "preset" in meta:
            preset = str(folder / "preset.yaml")
            Path(preset).write_text(yaml.safe_dump(meta["preset"]))
        yield Job(path.name, model, read(model, path / "calib", preset))
        return
    if model.is_file() and (sets := sorted(path.glob("test_data_set_*"))):
        yield Job(path.name, model, [feed for one in sets for feed in read(model, one, None)])
        return
    for child in sorted(path.glob("*.onnx")):
        yield from fitting(child, [data, *beside(child)])
    for child in sorted(p for p in path.iterdir() if p.is_dir() and any(p.rglob("*.onnx"))):
        yield from in_folder(child, data, folder)


def beside(model: Path) -> list[Path]:
    """Folders and archives beside a model."""
    return sorted(p for p in model.parent.iterdir() if p.is_dir() or p.suffix == ".npz")


def fitting(model: Path, places: list[Path | None]) -> Iterator[Job | str]:
    """The model with the first samples that it runs on."""
    name = f"{model.parent.name}/{model.stem}"
    for place in filter(None, places):
        try:
            feeds = read(model, place, None)
            session(model).run(None, feeds[0])
        except Exception:  # of whatever ONNX Runtime raises
            continue
        yield Job(name, model, feeds)
        return
    yield name


def read(model: Path, place: Path, preset: str | None) -> list[Feed]:
    """All samples of a place, as feeds."""
    with open_data(str(place), input_specs(load_model(model)), None if preset is None else load_preset(preset)) as data:
        return [dict(data[i].feed) for i in range(len(data))]


if __name__ == "__main__":
    main()
