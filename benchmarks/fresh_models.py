"""Quantize trained models that no rule was fitted to, by onnxshot and by other tools, and judge all on unseen samples:

    python benchmarks/fresh_models.py FOLDER --work DIR [--models ...] [--ways ...] [--python TOOL=PATH ...]

FOLDER has one folder per model: model.onnx, calib/*.npz, eval.npz, source.txt (where the model is from), task.txt (what
it does), and task.json, which tells what counts as agreement (see `agreement`). Each way runs in a process of its own,
with one thread and no cache. Figures are kept in DIR/figures.json: a run that was stopped goes on where it ended.
`--table` prints those figures as Markdown.

dB: signal to noise over all samples of eval.npz, each output weighed by its own energy; and that of the worst output.
Speed: CPU time of one thread of the float model over that of the result, in turns within one process.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measured import CAP_DB, in_turns, run, samples, session, tensors
from processes import cost

OWN: dict[str, dict[str, Any]] = {  # name -> fields of the recipe
    "onnxshot": {},
    "onnxshot, no look": {"look": False},
    "onnxshot, no equalization": {"equalize": False},
    "onnxshot, dynamic": {"mode": "dynamic"},
    "onnxshot, best": {"effort": "best"},
    "onnxshot, no search": {},
    "onnxshot, no look, no search": {"look": False},
}
OPTIONS = {way: ["--search-time", "0"] for way in OWN if way.endswith(", no search")}  # else none
PEERS = {  # name -> (package, what to pass to fresh_models_peer.py)
    "onnxruntime, minmax": ("onnxruntime", "static-minmax"),
    "onnxruntime, percentile": ("onnxruntime", "static-percentile"),
    "onnxruntime, entropy": ("onnxruntime", "static-entropy"),
    "onnxruntime, dynamic": ("onnxruntime", "dynamic"),
    "NNCF": ("nncf", "nncf"),
    "Neural Compressor": ("onnx-neural-compressor", "neural-compressor"),
    "Quark": ("amd-quark", "quark"),
}
OWN_DEFAULT = "onnxshot"
LEAST_DB = 15
FORMS = {"db": "{:.1f}", "speed": "{:.2f}x", "cpu_s": "{:.1f}", "peak_mb": "{:.0f}"}
Rows = Sequence[Sequence[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="where results and figures are kept")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--ways", nargs="+", choices=[*OWN, *PEERS], default=[*OWN, *PEERS], help="only these")
    parser.add_argument("--python", nargs="+", default=[], metavar="TOOL=PATH", help="the Python of a peer's package")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each file to measure speed")
    parser.add_argument("--measure", action="store_true", help="measure the files in DIR again, make none")
    parser.add_argument("--table", action="store_true", help="print the figures kept in DIR, measure nothing")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    store = args.work / "figures.json"
    kept: dict[str, Any] = json.loads(store.read_text()) if store.is_file() else {}
    if args.table:
        print(tables(kept))
        return
    pythons = dict(given.split("=", 1) for given in args.python)
    names = args.models or sorted(path.parent.name for path in args.folder.glob("*/model.onnx"))
    for entry in (args.folder / name for name in names):
        row = kept.setdefault(entry.name, {"ways": {}})
        row |= {name: (entry / f"{name}.txt").read_text().strip() for name in ("source", "task")}
        if args.measure:
            made = {way: found for way, found in row["ways"].items() if file_of(way, args.work / entry.name).is_file()}
        else:
            left = [way for way in args.ways if way not in row["ways"]]
            made = {way: made_by(way, entry, args.work / entry.name, pythons) for way in left}
        if made:
            measure(entry, args.work / entry.name, made, args.seconds)
        row["ways"] |= made
        store.write_text(json.dumps(kept, indent=1))
        for way, found in made.items():
            print(entry.name, way, said(found), flush=True)


def said(found: dict[str, Any]) -> str:
    return str(found.get("error", {key: value for key, value in found.items() if key != "outputs"}))[:300]


def file_of(way: str, folder: Path) -> Path:
    return folder / f"{''.join(c if c.isalnum() else '_' for c in way)}.onnx"


def made_by(way: str, entry: Path, folder: Path, pythons: dict[str, str]) -> dict[str, Any]:
    """Write the file of one way; what it took and what its tool said of it, or its error."""
    folder.mkdir(exist_ok=True)
    out = file_of(way, folder)
    model, calib = str(entry / "model.onnx"), str(entry / "calib")
    try:
        if way in OWN:
            command = [sys.executable, "-m", "onnxshot", "quantize", model, "--calib", calib, "-o", str(out)]
            if OWN[way]:
                recipe = out.with_suffix(".given.yaml")
                recipe.write_text(json.dumps(OWN[way]))  # JSON is YAML
                command += ["--recipe", str(recipe)]
            took = cost([*command, *OPTIONS.get(way, ()), "--threads", "1", "--no-cache", "--json"])
            report = json.loads(took.output)
            return {
                "cpu_s": took.cpu,
                "peak_mb": took.peak,
                "verdict": report["verdict"]["level"],
                "reasons": report["verdict"]["reasons"],
                "reported_db": report["sqnr_db"],
                "reported_agreement": report["agreement"],
                "look": report.get("look", []),
            }
        package, method = PEERS[way]
        script = str(Path(__file__).with_name("fresh_models_peer.py"))
        took = cost([pythons.get(package, sys.executable), script, method, model, calib, str(out)])
        return {"cpu_s": took.cpu, "peak_mb": took.peak, "version": took.output.strip().rsplit("\n", 1)[-1]}
    except SystemExit as error:
        return {"error": str(error)}


def measure(entry: Path, folder: Path, made: dict[str, dict[str, Any]], seconds: float) -> None:
    """Add dB, agreement, speed and size to each way that has a file."""
    _, feeds = samples(entry)
    task = json.loads((entry / "task.json").read_text())
    base = session(entry / "model.onnx")
    names = tensors(base)
    wanted = [run(base, feed, names) for feed in feeds]
    loaded = {"float": base}
    for way, found in made.items():
        if "error" in found:
            continue
        path = file_of(way, folder)
        try:
            loaded[way] = session(path)
            got = [run(loaded[way], feed, names) for feed in feeds]
        except Exception as error:  # whatever ONNX Runtime raises on another tool's file is that tool's figure
            loaded.pop(way, None)
            found["error"] = f"does not run: {error}"[:500]
            continue
        found |= distance_by_output(names, wanted, got)
        found["agreement"] = agreement(task, names, wanted, got)
        found["float_bytes"] = (entry / "model.onnx").stat().st_size
        found["bytes"] = sum(file.stat().st_size for file in folder.glob(f"{path.name}*"))
    for way, (ratio, half, ms) in in_turns(loaded, feeds[:16], seconds, time.process_time_ns).items():
        if way != "float":
            made[way] |= {"speed": ratio, "speed_half": half, "ms": ms}


def distance_by_output(names: Sequence[str], wanted: Rows, got: Rows) -> dict[str, Any]:
    """dB of each output over all samples, of the worst, and of all with each output scaled to the same energy."""
    found = {}
    for i, name in enumerate(names):
        pairs = [(a[i].astype(np.float64), b[i].astype(np.float64)) for a, b in zip(wanted, got, strict=True)]
        if any(a.shape != b.shape for a, b in pairs):  # a loop that ended elsewhere: what is there is compared
            pairs = [common(a, b) for a, b in pairs]
        signal = sum(float((a**2).sum()) for a, _ in pairs)
        noise = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
        if signal > 0:
            found[name] = noise / signal if math.isfinite(noise) else math.inf
    mean = sum(found.values()) / len(found)
    return {"db": decibels(mean), "worst_db": min(map(decibels, found.values())), "outputs": found}


def common(a: Any, b: Any) -> tuple[Any, Any]:
    """The part of two arrays that both have."""
    part = tuple(slice(min(sizes)) for sizes in zip(a.shape, b.shape, strict=True))
    return a[part], b[part]


def decibels(ratio: float) -> float:
    """10 log10 of signal over noise, given noise over signal."""
    return CAP_DB if ratio == 0 else max(-CAP_DB, min(CAP_DB, -10 * math.log10(ratio))) if ratio < math.inf else -CAP_DB


def agreement(task: dict[str, Any], names: Sequence[str], wanted: Rows, got: Rows) -> float | None:
    """How often the result decides as the float model, 0 to 1; None where the task has no decision.

    task["agree"] is one of: "argmax", the same class at each position (task["least"]: where the float model gives it at
    least that); "peak", the maximum of each of the first task["channels"] maps, to one cell; "over", elements above
    task["threshold"] in both over those in either; "near", elements that differ by at most task["within"]; "ratio",
    elements that differ by at most that share; "cosine", samples whose vectors have at least that cosine. `where` names
    an output whose float values must reach task["least"].
    """
    if task["agree"] is None:
        return None
    hits = total = 0.0
    for a, b in zip(wanted, got, strict=True):
        mask = a[names.index(task["where"])] >= task["least"] if "where" in task else None
        for name in task["outputs"]:
            i = names.index(name)
            one, other = compared(task, *common(a[i], b[i]), mask)
            hits, total = hits + one, total + other
            if a[i].shape != b[i].shape:
                total += abs(a[i].size - b[i].size) / a[i].shape[-1]
    return hits / total if total else None


def compared(task: dict[str, Any], a: Any, b: Any, mask: Any) -> tuple[float, float]:
    """How many of how many agree."""
    kind = task["agree"]
    if kind == "over":
        one, other = a > task["threshold"], b > task["threshold"]
        return float((one & other).sum()), float((one | other).sum())
    if kind == "cosine":
        x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
        return float(x @ y >= task["within"] * np.linalg.norm(x) * np.linalg.norm(y)), 1.0
    if kind == "peak":
        flat = [v[0, : task["channels"]].reshape(task["channels"], -1).argmax(1) for v in (a, b)]
        cells = [np.stack(np.unravel_index(found, a.shape[2:])) for found in flat]
        return float((np.abs(cells[0] - cells[1]).max(0) <= 1).sum()), float(task["channels"])
    if kind == "argmax":
        same = a.argmax(-1) == b.argmax(-1)
        mask = a.max(-1) >= task.get("least", -math.inf)
    else:
        same = np.abs(a - b) <= task["within"] * (np.abs(a) if kind == "ratio" else 1.0)
    kept = np.ones(same.shape, bool) if mask is None else np.broadcast_to(mask, same.shape)
    return float(same[kept].sum()), float(kept.sum())


def tables(kept: dict[str, Any]) -> str:
    """Markdown: what the default gives, its variants, the other tools, and where the models are from."""
    names = sorted(name for name in kept if OWN_DEFAULT in kept[name]["ways"])
    ways = {name: kept[name]["ways"] for name in names}
    peers = [way for way in PEERS if any(way in ways[name] for name in names)]
    variants = [way for way in OWN if way != OWN_DEFAULT and any(way in ways[name] for name in names)]
    parts = [
        grid(
            ["model", "dB", "worst output", "agreement", "speed", "MB", "CPU s", "verdict"],
            ([f"`{name}`", *figures(ways[name][OWN_DEFAULT])] for name in names),
        ),
        "## Other steps and efforts",
        grid(
            ["model", "default", *(way.removeprefix(f"{OWN_DEFAULT}, ") for way in variants)],
            ([f"`{name}`", *(brief(ways[name].get(way)) for way in (OWN_DEFAULT, *variants))] for name in names),
        ),
        "## Other tools",
        grid(
            ["model", OWN_DEFAULT, *peers],
            ([f"`{name}`", *(brief(ways[name].get(way)) for way in (OWN_DEFAULT, *peers))] for name in names),
        ),
        beaten(ways, peers),
        summary(ways, peers),
        "## Where the models are from",
        grid(["model", "what it does", "from"], ([f"`{n}`", kept[n]["task"], kept[n]["source"]] for n in names)),
    ]
    versions = {row["version"] for found in ways.values() for row in found.values() if "version" in row}
    return "\n\n".join([*parts, f"Other tools: {', '.join(sorted(versions))}."])


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def brief(found: dict[str, Any] | None) -> str:
    """dB and speed in one cell."""
    if found is None:
        return ""
    return "fails" if "error" in found else f"{found['db']:.1f} dB, {found['speed']:.2f}x"


def beaten(ways: dict[str, Any], peers: Sequence[str]) -> str:
    """Where another tool has more dB and is as fast, or is faster and has as many dB; 3 % and 0.3 dB are even."""
    found = []
    for name, row in ways.items():
        own = row[OWN_DEFAULT]
        for way in peers:
            peer = row.get(way, {"error": ""})
            if "error" in own or "error" in peer:
                continue
            better, faster = peer["db"] - own["db"], peer["speed"] / own["speed"]
            if (better > 0.3 and faster > 0.97) or (faster > 1.03 and better > -0.3):
                found.append(f"- `{name}`: {way} {brief(peer)}, onnxshot {brief(own)}")
    said = "As accurate as the default of onnxshot and faster, or as fast and more accurate:"
    return "\n".join([said, "", *(found or ["- none"])])


def summary(ways: dict[str, Any], peers: Sequence[str]) -> str:
    """One row a tool: how many models it serves, and medians over the models that it does not fail on, beside ours."""
    lines = []
    for peer in peers:
        rows = [(row[peer], row[OWN_DEFAULT]) for row in ways.values() if peer in row]
        done = [(its, own) for its, own in rows if "error" not in its and "error" not in own]
        cells = []
        for key, form in FORMS.items():
            pair = [form.format(statistics.median(found[i][key] for found in done)) for i in (0, 1)] if done else ["-"]
            cells.append(" / ".join(pair))
        good = [sum(map(serves, side)) for side in zip(*rows, strict=True)]
        lines.append([peer, str(len(rows)), str(len(rows) - len(done)), f"{good[0]} / {good[1]}", *cells])
    said = (
        f"Models that are served (at least {LEAST_DB} dB, and no slower than the float model), and medians over the "
        "models that a tool does not fail on. Each cell: the tool / onnxshot, on the same models.\n"
        "CPU s and MB (peak) are those of the whole process that quantizes; onnxshot also proves and times its result."
    )
    head = ["tool", "models", "fails", "served", "dB", "speed", "CPU s", "peak MB"]
    return f"{said}\n\n{grid(head, lines)}"


def serves(found: dict[str, Any]) -> bool:
    """Whether a result is accurate enough and no slower than the float model, by more than the noise of runs."""
    return "error" not in found and found["db"] >= LEAST_DB and found["speed"] >= 0.98


def figures(found: dict[str, Any]) -> Iterable[str]:
    if "error" in found:
        yield from ("fails", *["-"] * 6)
        return
    share = found["agreement"]
    yield from (f"{found['db']:.1f}", f"{found['worst_db']:.1f}", "-" if share is None else f"{100 * share:.1f} %")
    size = f"{found['float_bytes'] / 1e6:.2f} → {found['bytes'] / 1e6:.2f}"
    yield from (f"{found['speed']:.2f}x", size, f"{found['cpu_s']:.0f}", found.get("verdict", "-"))


if __name__ == "__main__":
    main()
