"""Peak memory of `onnxshot quantize`, by model, mode and budget: `python benchmarks/memory.py FOLDER...`, Markdown.

A FOLDER has model.onnx and calib/, and meta.json where the samples are pictures; or it holds such folders. Everything
is the default but for what the table names, the proof included, without a cache; each run is a process of its own. MB
are of all resident pages, and of those alone that no file backs. The model's MB are of the file and its data.

Several values of --memory show whether the results depend on the budget: whether nodes and weights of the written model
are the same bytes as with the first value, and how far apart the SQNR is. `generated_models.py` makes large models.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo
from processes import cost
from readme import THREADS, Job, head, table, zoo_jobs

MODES = ("static", "dynamic", "weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--memory", nargs="+", default=[""], help="budgets, such as 512M 4G; none: the default")
    parser.add_argument("--samples", nargs="+", default=[""], help="numbers of samples, or all; none: the default")
    parser.add_argument("--options", default="", help="more options of onnxshot quantize, in one string")
    parser.add_argument("--scratch", type=Path, help="where the results go until they are measured")
    parser.add_argument("--keep", type=Path, help="a folder that gets the reports")
    args = parser.parse_args()
    columns = ("peak MB", "private MB", "/ model", "CPU s", "s", "SQNR dB", "agreement", "result")
    head("model", "MB", "mode", "memory", "samples", *columns)
    with tempfile.TemporaryDirectory(dir=args.scratch) as made:
        for job in jobs(args.folders, Path(made)):
            for mode, samples in product(args.modes, args.samples):
                first: tuple[str, float] | None = None
                for memory in args.memory:
                    cells, result = measured(job, mode, memory, samples, args.options.split(), Path(made), args.keep)
                    size = f"{bytes_of(job.model) / 1e6:.0f}"
                    told = "" if first is None or result is None else compared(first, result)
                    table(f"`{job.name}`", size, mode, memory or "default", samples or "default", *cells, told)
                    first = first or result


def jobs(folders: Sequence[Path], made: Path) -> list[Job]:
    """What is named: entries with a model each, and folders of such."""
    found = []
    for folder in folders:
        inside = [folder] if (folder / "model.onnx").exists() else sorted(p.parent for p in folder.glob("*/model.onnx"))
        for entry in inside:
            presets = {job.name: job for job in zoo_jobs(entry.parent, made)}
            found.append(presets.get(entry.name) or Job(entry.name, entry / "model.onnx", entry / "calib", None))
    return found


def measured(
    job: Job, mode: str, memory: str, samples: str, options: Sequence[str], made: Path, keep: Path | None
) -> tuple[list[str], tuple[str, float] | None]:
    """The cells of one run, and the digest and the SQNR of its result; None where the run failed."""
    folder = made / "result"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    program, out = str(Path(sys.executable).with_name("onnxshot")), folder / "model.onnx"
    line = [program, "quantize", str(job.model), "--calib", str(job.calib), "-o", str(out), "--mode", mode]
    line += [*(["--preset", job.preset] if job.preset else []), "--threads", str(THREADS), "--no-cache", "--json"]
    line += [*(["--memory", memory] if memory else []), *(["--samples", samples] if samples else []), *options]
    try:
        took = cost(line)
    except SystemExit as error:
        return ["", "", "", "", "", "", str(error).strip().splitlines()[-1][:200]], None
    report = json.loads(took.output)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{job.name}-{mode}-{memory or 'default'}-{samples or 'default'}.json").write_text(took.output)
    share = f"{took.peak * 1e6 / bytes_of(job.model):.2f}"
    db, agreement = report.get("sqnr_db"), report.get("agreement")
    cells = [f"{took.peak:.0f}", f"{took.private:.0f}", share, f"{took.cpu:.1f}", f"{took.wall:.1f}"]
    cells += ["" if db is None else f"{db:.2f}", "" if agreement is None else f"{100 * agreement:.1f} %"]
    return cells, (digest(out), float("nan") if db is None else db)


def compared(first: tuple[str, float], result: tuple[str, float]) -> str:
    return "same bytes" if first[0] == result[0] else f"other bytes, {result[1] - first[1]:+.2f} dB"


def bytes_of(model: Path) -> int:
    """Bytes of a model: the file and its data."""
    return sum(path.stat().st_size for path in (model, *data_files(model)))


def data_files(model: Path) -> list[Path]:
    graph = onnx.load(str(model), load_external_data=False).graph
    outside = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    return sorted({model.parent / ExternalDataInfo(t).location for t in outside})


def digest(model: Path) -> str:
    """Of nodes, initializers and data; what else a file tells, such as how it was made, is left out."""
    graph = onnx.load(str(model), load_external_data=False).graph
    found = hashlib.sha256(b"".join(item.SerializeToString(deterministic=True) for item in graph.node))
    for tensor in graph.initializer:
        found.update(tensor.SerializeToString(deterministic=True))
    for path in data_files(model):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


if __name__ == "__main__":
    main()
