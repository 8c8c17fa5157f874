"""What becomes of models of many kinds: `python benchmarks/compatibility.py FOLDER [--only GLOB]`, Markdown.

FOLDER holds NAME/model.onnx with NAME/calib/*.npz and NAME/eval.npz, whose arrays are named INPUT__NUMBER; an optional
meta.json may say what it is "about". Each row is measured in a process of its own, with bounded time and memory, by
ONNX Runtime and NumPy alone (see `compatibility_row.py`). With --json, what is known already is not measured again.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from compatibility_table import markdown

HERE = Path(__file__).resolve().parent
STAGES = ("given", "int8", "dynamic", "ort_static", "ort_dynamic", "speed", "channels", "fp16", "openvino")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds NAME/model.onnx, NAME/calib/ and NAME/eval.npz")
    parser.add_argument("--only", default="*", help="names, as a glob; commas between several")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--json", type=Path, help="where values are kept; rows in it are not measured again")
    parser.add_argument("--again", action="store_true", help="measure rows that are known already")
    parser.add_argument("--out", type=Path, help="where the Markdown goes; without, to stdout")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each file is timed")
    parser.add_argument("--minutes", type=float, default=6.0, help="most that a stage may take")
    parser.add_argument("--memory", type=int, default=8, help="most GiB that a row may take")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="a sentence for the head of the page")
    args = parser.parse_args()
    known: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    known["machine"] = machine(args)
    rows = known.setdefault("rows", {})
    for path in sorted(args.folder.glob("*/model.onnx")):
        name = path.parent.name
        if not any(fnmatch.fnmatch(name, glob) for glob in args.only.split(",")):
            continue
        if not args.again and set(args.stages) <= set(rows.get(name, {})):
            continue
        rows[name] = rows.get(name, {}) | about(path.parent) | measure(path.parent, args)
        print(f"{name}: {brief(rows[name])}", file=sys.stderr, flush=True)
        if args.json:
            args.json.write_text(json.dumps(known, indent=1))
    text = markdown(known)
    if args.out:
        args.out.write_text(text)
    else:
        print(text)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Values of each stage; a stage that ends the process or its time is told, and the next ones go on."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as out:
        journal, job = Path(out) / "journal", Path(out) / "job.json"
        journal.touch()
        left = list(args.stages)
        while left:
            job.write_text(json.dumps({
                "folder": str(folder), "out": out, "journal": str(journal), "stages": left,
                "effort": args.effort, "seconds": args.seconds, "threads": args.threads, "memory": args.memory,
            }))  # fmt: skip
            before = len(left)
            ended = watched(job, journal, 60 * args.minutes)
            lines = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
            found |= {line["stage"]: line["values"] for line in lines if "values" in line}
            left = [stage for stage in left if stage not in found]
            begun = lines[-1]["stage"] if lines else None
            if left and (begun in left or len(left) == before):
                found[left[0]] = {"why": ended}
                left = left[1:]
    return found


def watched(job: Path, journal: Path, most: float) -> str:
    """Run the stages of a job until one takes longer than `most` seconds; how it ended."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    command = [sys.executable, str(HERE / "compatibility_row.py"), str(job)]
    with (
        (job.parent / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
    ):
        while process.poll() is None:
            time.sleep(0.1)
            if time.time() - journal.stat().st_mtime > most:
                process.kill()
                return f"took more than {most / 60:g} minutes"
    lines = (job.parent / "log").read_text(errors="replace").strip().splitlines()
    code = process.returncode
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    return f"ended with {how}" + (f": {lines[-1][:200]}" if lines else "")


def about(folder: Path) -> dict[str, Any]:
    meta = folder / "meta.json"
    return {"about": json.loads(meta.read_text()).get("about", "")} if meta.is_file() else {}


def brief(row: dict[str, Any]) -> str:
    int8, speed = row.get("int8", {}), row.get("speed", {})
    if "why" in int8:
        return str(int8["why"])
    shown = {key: int8.get(key) for key in ("share", "db")}
    return f"{shown} {dict((name, round(values[0], 2)) for name, values in speed.items() if name != 'why')}"


def machine(args: argparse.Namespace) -> dict[str, Any]:
    named = (line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name"))
    cpu = next(named, platform.machine())
    versions = {name: version(name) for name in ("onnxshot", "onnxruntime", "onnx", "numpy", "openvino")}
    flags = next((line.split() for line in cpu_lines() if line.startswith("flags")), [])
    cpu += "".join(f", {flag}" for flag in ("avx2", "avx512_vnni", "amx_int8") if flag in flags)
    facts = {"cpu": cpu, "cores": os.cpu_count(), "threads": args.threads, "versions": versions}
    return facts | {
        "effort": args.effort,
        "seconds": args.seconds,
        "minutes": args.minutes,
        "memory": args.memory,
        "note": args.note,
    }


def cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"


if __name__ == "__main__":
    main()
