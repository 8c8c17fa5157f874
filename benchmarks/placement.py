"""Hold the speed of default results against float and peers: `python benchmarks/placement.py FOLDER [NAME ...]`.

Peers: onnxshot in mode dynamic, and onnxruntime's own quantizers (quantize_static with Q/DQ pairs and with operators,
per channel; quantize_dynamic). FOLDER holds entries with model.onnx, calib/*.npz and eval.npz. CPU time of one thread,
all files in turns in one process. A result loses where a file is faster than it by more than 3 % and by more than the
95 % interval. Files are kept in --out, and those of peers are made once. Ends with 1 if a result loses to float.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import time
from pathlib import Path

from measured import distance, in_turns, run, samples, session
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from readme import head, table

OURS, DYNAMIC, QDQ, OPERATOR, RUN_TIME = "ours", "--mode dynamic", "static QDQ", "static operators", "quantize_dynamic"
MADE = {OURS: (), DYNAMIC: ("--mode", "dynamic")}
LOST = 0.03  # smaller differences are as large as those between two runs of one file


def main() -> None:
    logging.disable(logging.WARNING)  # of onnxruntime's quantizers
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("placement"))
    parser.add_argument("--seconds", type=float, default=0.4, help="of each file")
    parser.add_argument("--options", default="", help="of onnxshot quantize, for our result")
    args = parser.parse_args()
    every = sorted(p.parent for p in args.folder.glob("*/model.onnx"))
    entries = [entry for entry in every if not args.names or entry.name in args.names]
    head("model", "float ms", OURS, "dB", "made in s", DYNAMIC, QDQ, OPERATOR, RUN_TIME, "lost to")
    lost = 0
    for entry in entries:
        lost += "float" in row(entry, args.out / entry.name, args.seconds, args.options.split())
    sys.exit(1 if lost else 0)


def row(entry: Path, out: Path, seconds: float, options: list[str]) -> list[str]:
    """Print the line of one model; the names of the files that its result loses to."""
    out.mkdir(parents=True, exist_ok=True)
    given = entry / "model.onnx"
    calib, judged = samples(entry)
    files = {"float": given}
    spent = 0.0
    for name, asked in MADE.items():
        path = out / f"{name.lstrip('-').replace(' ', '_')}.onnx"
        if name == OURS or not path.exists():
            began = resource.getrusage(resource.RUSAGE_CHILDREN)
            own = ("--threads", "1", *(options if name == OURS else ()), *asked)
            asked_for = ["quantize", given, "--calib", entry / "calib", "-o", path, *own, "--json"]
            command = [sys.executable, "-m", "onnxshot", *map(str, asked_for)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            if name == OURS:
                spent = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
                path.with_suffix(".json").write_text(done.stdout)
                path.with_suffix(".err").write_text(done.stderr)
        if path.exists():
            files[name] = path
    for name, make in ((QDQ, static), (OPERATOR, static), (RUN_TIME, at_run_time)):
        path = out / f"{name.replace(' ', '_')}.onnx"
        failed = path.with_suffix(".failed")
        if not path.exists() and not failed.exists():
            try:
                make(given, path, calib, QuantFormat.QDQ if name == QDQ else QuantFormat.QOperator)
            except Exception as e:  # whatever it is: there is no file
                failed.write_text(str(e))
        if path.exists():
            files[name] = path
    loaded = {}
    for name, path in files.items():
        try:
            loaded[name] = session(path)
            run(loaded[name], judged[0])
        except Exception:  # it does not load or run
            loaded.pop(name, None)
    if OURS not in loaded:
        table(f"`{entry.name}`", *["-"] * 8, "no result")
        return []
    found = in_turns(loaded, judged[:4], seconds, time.process_time_ns)
    quality = distance([run(loaded["float"], feed) for feed in judged], [run(loaded[OURS], feed) for feed in judged])
    ours, doubt, _ = found[OURS]
    lost = [name for name, (ratio, half, _) in found.items() if ratio - half > (ours + doubt) * (1 + LOST)]
    speeds = [f"{found[name][0]:.2f}" if name in found else "-" for name in (DYNAMIC, QDQ, OPERATOR, RUN_TIME)]
    db = quality["db"]
    table(
        f"`{entry.name}`", f"{found['float'][2]:.2f}", f"{ours:.2f}", "-" if db is None else f"{db:.1f}",
        f"{spent:.1f}", *speeds, ", ".join(lost),
    )  # fmt: skip
    told = {"speeds": {name: list(value) for name, value in found.items()}, "db": db, "seconds": spent, "lost": lost}
    (out / "row.json").write_text(json.dumps(told))
    sys.stdout.flush()
    return lost


class Reader(CalibrationDataReader):
    """Samples for onnxruntime."""

    def __init__(self, feeds: list[dict[str, object]], names: list[str]) -> None:
        self._feeds = iter([{name: feed[name] for name in names} for feed in feeds])

    def get_next(self) -> dict[str, object] | None:
        return next(self._feeds, None)


def static(given: Path, path: Path, calib: list[dict[str, object]], form: QuantFormat) -> None:
    prepared = path.with_suffix(".prepared.onnx")
    try:
        quant_pre_process(str(given), str(prepared))
    except Exception:  # its shapes cannot be inferred: as it is
        prepared.write_bytes(given.read_bytes())
    names = [arg.name for arg in session(given).get_inputs()]
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}  # its fastest on x86
    quantize_static(str(prepared), str(path), Reader(calib, names), quant_format=form, per_channel=True, **kinds)
    prepared.unlink()


def at_run_time(given: Path, path: Path, calib: list[dict[str, object]], form: QuantFormat) -> None:
    quantize_dynamic(str(given), str(path), per_channel=True)


if __name__ == "__main__":
    main()
