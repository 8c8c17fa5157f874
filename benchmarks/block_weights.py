"""Weights in blocks of 4 and 8 bits against other tools, in one run: `python benchmarks/block_weights.py FOLDER`.

FOLDER holds any of these; what is missing is said and left out:

    smollm2-135m/model.onnx            a decoder: input_ids and past.N.key, past.N.value to logits and present.N.*
    smollm2-135m/wikitext2_test.npy    rows of 257 tokens that it is judged on; perplexity of the first 4 and 32 rows
    smollm2-135m/wikitext2_valid.npy   rows that everybody calibrates on
    whisper-base/encoder.onnx, *.wav   an encoder of sound; error of its first output on the first half minute of the
                                       clips of `CLIPS`, which calibrate it too

Other tools run in their own environments: --tools PYTHON, which may be repeated. Files are timed in this ONNX Runtime
and in those of --runtimes: an interpreter, or a folder that holds its package. All is done on one thread. Speeds are
ratios of CPU time within one process, file and float in turns.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Feed = dict[str, Any]
HERE = Path(__file__).parent
PEERS = HERE / "block_weights_peers.py"
ONE = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")}
CLIPS = ("beckett.wav", "endgame_nagg_nell.wav", "two_cities.wav")
PROMPT, ROWS, CALIBRATED = 64, (4, 32), 32


@dataclass(frozen=True)
class Form:
    """One file to be made. tool: a name in `block_weights_peers.TOOLS`, or "onnxshot" or "onnxshot, data"."""

    tool: str
    bits: int
    block: int
    symmetric: bool

    @property
    def name(self) -> str:
        return f"{self.tool}, {self.bits} bits, block {self.block}, {'sym' if self.symmetric else 'asym'}"


def forms(tools: Sequence[str]) -> Iterator[Form]:
    """The forms of the table: every tool in every kind of blocks that it makes."""
    for bits, block, symmetric in ((4, 32, False), (4, 32, True), (4, 128, False), (4, 128, True), (8, 128, True)):
        for tool in tools:
            only_4 = tool not in ("onnxshot", "onnxshot, data", "onnxruntime", "NNCF")
            if (bits == 8 and only_4) or (tool == "onnxruntime HQQ" and symmetric):
                continue
            if tool.startswith("ModelOpt") and not symmetric:
                continue
            yield Form(tool, bits, block, symmetric)


def command(form: Form, model: Path, out: Path, samples: Path, pythons: dict[str, str]) -> list[str]:
    """What makes a form."""
    if form.tool.startswith("onnxshot"):
        data = ["--calib", str(samples)] if form.tool.endswith("data") else []
        return [
            sys.executable, "-m", "onnxshot", "quantize", str(model), "-o", str(out), "--bits", str(form.bits),
            "--block", str(form.block), "--symmetric" if form.symmetric else "--asymmetric", "--no-verify",
            "--no-cache", "--threads", "1", *data,
        ]  # fmt: skip
    rest = (model, out, samples, form.bits, form.block, int(form.symmetric))
    return [pythons[form.tool], str(PEERS), form.tool, *map(str, rest)]


def found_tools(pythons: Sequence[str]) -> dict[str, str]:
    """The tools that are installed somewhere -> the interpreter. Says which are not."""
    from block_weights_peers import TOOLS

    found: dict[str, str] = {}
    for name in TOOLS:
        for python in pythons:
            ran = subprocess.run([python, str(PEERS), name], capture_output=True, check=False)
            if ran.returncode == 0:
                found[name] = python
                break
        else:
            print(f"not found: {name}: no interpreter of --tools has it", flush=True)
    return found


# ---------------------------------------------------------------------- what is measured


def bytes_of(model: Path) -> int:
    """Size of a file and of the data files that it names."""
    import onnx

    proto = onnx.load(str(model), load_external_data=False)
    named = {e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"}
    return model.stat().st_size + sum((model.parent / name).stat().st_size for name in named)


def weights_of(model: Path) -> int:
    """Number of weights of a float file; each initializer counts once."""
    import onnx

    proto = onnx.load(str(model), load_external_data=False)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return sum(math.prod(t.dims) for t in proto.graph.initializer if t.data_type in floats)


def pasts(session: Any, length: int = 0) -> Feed:
    """Pasts of zeros."""
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    given = [arg for arg in session.get_inputs() if arg.name.startswith("past")]
    return {a.name: np.zeros((1, a.shape[1], length, a.shape[3]), kinds[a.type]) for a in given}


def perplexities(model: Path, rows: Any) -> list[float]:
    """Perplexity on the first rows, as many as `ROWS` says: exp of the mean loss of tokens 1 to 256 of each row."""
    from measured import session

    loaded, losses = session(model), list[float]()
    empty = pasts(loaded)
    for row in rows[: max(ROWS)]:
        (logits,) = loaded.run(["logits"], {"input_ids": row[None, :-1].astype(np.int64), **empty})
        scores = logits[0].astype(np.float64)
        top = scores.max(-1, keepdims=True)
        logs = scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))
        losses.append(-float(logs[np.arange(len(row) - 1), row[1:]].mean()))
    return [math.exp(sum(losses[:n]) / n) for n in ROWS]


def hidden_db(wanted: Sequence[Any], model: Path, feeds: Sequence[Feed]) -> float:
    from measured import distance, run, session

    loaded = session(model)
    name = [loaded.get_outputs()[0].name]
    db: float = distance(wanted, [run(loaded, feed, name) for feed in feeds])["db"]
    return db


def timed(files: Sequence[str], kind: str, samples: str, seconds: float) -> None:
    """Print, as JSON, the ratios of float over each file; the first file is float. Needs numpy and onnxruntime only."""
    import onnxruntime
    from measured import in_turns, session

    found: dict[str, Any] = {"version": onnxruntime.__version__}
    first = session(Path(files[0]))
    for file in files[1:]:
        try:
            both = {"float": first, "file": session(Path(file))}
            feeds: dict[str, list[Feed]] = {}
            if kind == "decoder":
                past = pasts(first, PROMPT)
                feeds["token"] = [{"input_ids": np.array([[7]], np.int64), **past}]
                feeds["prompt"] = [{"input_ids": np.arange(5, 5 + PROMPT)[None].astype(np.int64), **pasts(first)}]
            else:
                feeds["run"] = [dict(np.load(sorted(Path(samples).glob("*.npz"))[0]))]
            found[file] = {
                name: in_turns(both, given, seconds, time.process_time_ns)["file"][0] for name, given in feeds.items()
            }
        except Exception as error:  # whatever a version of ONNX Runtime refuses
            found[file] = {"error": str(error).splitlines()[0][:80]}
    print(json.dumps(found))


def speeds(runtimes: Sequence[str], files: Sequence[Path], kind: str, samples: Path, seconds: float) -> list[Any]:
    """What `timed` prints in each ONNX Runtime."""
    found = []
    for runtime in ("", *runtimes):
        folder = Path(runtime).is_dir() and not (Path(runtime) / "bin").is_dir()
        python = sys.executable if not runtime or folder else runtime
        env = {**os.environ, **ONE}
        line = [python, __file__, "--time", runtime if folder else "", kind, str(samples), str(seconds)]
        line += map(str, files)
        ran = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
        if ran.returncode:
            print(f"not timed in {runtime}: {ran.stderr.strip().splitlines()[-1:]}", flush=True)
            continue
        found.append(json.loads(ran.stdout.splitlines()[-1]))
    return found


# ---------------------------------------------------------------------- tables


def samples_of_text(model: Path, rows: Any, folder: Path) -> None:
    """Write rows of tokens as samples of a decoder: .npz files with empty pasts."""
    from measured import session

    empty = pasts(session(model))
    for i, row in enumerate(rows[:CALIBRATED]):
        np.savez(folder / f"{i:03}.npz", input_ids=row[None, :-1].astype(np.int64), **empty)


def samples_of_sound(model: Path, clips: Path, folder: Path) -> None:
    """Write the clips as samples of an encoder, by the preset that onnxshot has for it."""
    from onnxshot.calibration.readers import open_data
    from onnxshot.graph.load import load_model
    from onnxshot.rewriting.model_inputs import input_specs, resolve_preset

    inputs = input_specs(load_model(model))
    for i, clip in enumerate(CLIPS):
        sample = open_data(str(clips / clip), inputs, resolve_preset("whisper"))[0]
        np.savez(folder / f"{i:03}.npz", **sample.feed)


def table(
    kind: str, model: Path, judged: Any, samples: Path, given: argparse.Namespace, pythons: dict[str, str]
) -> None:
    """Make every form of a model, measure it, and print the table."""
    from measured import run, session
    from processes import cost

    count = weights_of(model)
    if kind == "decoder":
        heads, value = [f"perplexity, {n} rows" for n in ROWS], [f"{p:.2f}" for p in perplexities(model, judged)]
    else:
        loaded = session(model)
        wanted = [run(loaded, feed, [loaded.get_outputs()[0].name]) for feed in judged]
        heads, value = ["dB"], [""]
        del loaded
    lines, files = [("float", f"{bytes_of(model) * 8 / count:.2f}", *value, "", "")], [model]
    for form in forms(["onnxshot", "onnxshot, data", *pythons]):
        if not any(fnmatch.fnmatch(form.name, glob) for glob in given.forms):
            continue
        out = Path(given.keep) / kind / f"{form.name.replace(', ', '-').replace(' ', '_')}" / "model.onnx"
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            first = ["timeout", str(given.limit), "env", *(f"{k}={v}" for k, v in ONE.items())]
            spent = cost([*first, *command(form, model, out, samples, pythons)])
            if kind == "decoder":
                value = [f"{p:.2f}" for p in perplexities(out, judged)]
            else:
                value = [f"{hidden_db(wanted, out, judged):.1f}"]
        except (SystemExit, Exception) as error:
            print(f"{form.name} failed: {str(error).strip().splitlines()[-1][:300]}", flush=True)
            continue
        bits = f"{bytes_of(out) * 8 / count:.2f}"
        lines.append((form.name, bits, *value, f"{spent.cpu:.1f}", f"{spent.peak:.0f}"))
        files.append(out)
        print("  ".join(lines[-1]), flush=True)
    times = speeds(given.runtimes, files, kind, samples, given.seconds)
    steps = ("token", "prompt") if kind == "decoder" else ("run",)
    columns = [(t, s) for t in times for s in steps]
    names = [f"{s}, {t['version']}" for t, s in columns]
    print(f"\n| {model.parent.name} | bits a weight | {' | '.join((*heads, 'CPU s', 'peak MB', *names))} |")
    print("|---" * (4 + len(heads) + len(names)) + "|")
    for line, file in zip(lines, files, strict=True):
        told = [("" if file == model else _ratio(t.get(str(file), {}), s)) for t, s in columns]
        print(f"| {' | '.join((*line, *told))} |", flush=True)


def _ratio(found: dict[str, Any], step: str) -> str:
    return f"{found[step]:.2f}x" if step in found else "not run"


def main() -> None:
    if sys.argv[1:2] == ["--time"]:
        first, kind, samples, seconds, *files = sys.argv[2:]
        sys.path[:0] = [first] if first else []
        timed(files, kind, samples, float(seconds))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tools", action="append", default=[], help="a Python with other tools")
    parser.add_argument("--runtimes", action="append", default=[], help="a Python, or a folder that holds onnxruntime")
    parser.add_argument("--forms", nargs="+", default=["*"], help="globs over names, such as '*4 bits, block 32*'")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long a step of each file is timed")
    parser.add_argument("--limit", type=int, default=1800, help="seconds after which a tool is ended")
    parser.add_argument("--keep", help="keep the files here")
    given = parser.parse_args()
    pythons = found_tools([*given.tools, sys.executable])
    with tempfile.TemporaryDirectory() as work:
        given.keep = given.keep or work
        decoder, encoder = given.folder / "smollm2-135m", given.folder / "whisper-base"
        needed = [decoder / name for name in ("model.onnx", "wikitext2_test.npy", "wikitext2_valid.npy")]
        if missing := [str(path) for path in needed if not path.is_file()]:
            print(f"not found: {', '.join(missing)}")
        else:
            texts = Path(work) / "texts"
            texts.mkdir()
            samples_of_text(needed[0], np.load(needed[2]), texts)
            table("decoder", needed[0], np.load(needed[1]), texts, given, pythons)
        if missing := [name for name in ("encoder.onnx", *CLIPS) if not (encoder / name).is_file()]:
            print(f"not found in {encoder}: {', '.join(missing)}")
            return
        sounds = Path(work) / "sounds"
        sounds.mkdir()
        samples_of_sound(encoder / "encoder.onnx", encoder, sounds)
        judged = [dict(np.load(path)) for path in sorted(sounds.glob("*.npz"))]
        table("encoder", encoder / "encoder.onnx", judged, sounds, given, pythons)


if __name__ == "__main__":
    main()
