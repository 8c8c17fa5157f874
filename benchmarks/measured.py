"""Measure files by ONNX Runtime and NumPy alone: samples, distance of outputs, speed in turns.

Knows nothing of onnxshot.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Feed = dict[str, Any]

CAP_DB = 200.0  # told where outputs are equal


def samples(folder: Path) -> tuple[list[Feed], list[Feed]]:
    """Samples to calibrate on, calib/*.npz, and those to judge by, eval.npz: arrays named INPUT__NUMBER."""
    calib = [dict(np.load(path)) for path in sorted((folder / "calib").glob("*.npz"))]
    judged: dict[int, Feed] = defaultdict(dict)
    for key, value in np.load(folder / "eval.npz").items():
        name, _, number = key.rpartition("__")
        judged[int(number)][name] = value
    return calib, [judged[i] for i in sorted(judged)]


def session(path: Path, threads: int = 1) -> Any:
    """A session whose threads sleep instead of spinning, so that files in turns do not disturb each other."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(loaded: Any, feed: Feed, names: Sequence[str] | None = None) -> list[Any]:
    """Outputs of one sample; what the file does not read is left out."""
    if names is not None and not names:  # for ONNX Runtime, no names are all names
        return []
    found: list[Any] = loaded.run(names, {arg.name: feed[arg.name] for arg in loaded.get_inputs()})
    return found


def tensors(loaded: Any) -> list[str]:
    """Names of the outputs that are tensors of floats."""
    kinds = ("tensor(float)", "tensor(float16)", "tensor(double)")
    return [out.name for out in loaded.get_outputs() if out.type in kinds]


def distance(wanted: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Signal to noise in dB over all samples and outputs of equal shapes, and how many outputs had other shapes.

    Energies of signal and error are each added up: 10 log10 of their ratio, between -CAP_DB and CAP_DB.
    """
    signal = noise = 0.0
    compared = other = 0
    for a, b in ((a, b) for sample in zip(wanted, got, strict=True) for a, b in zip(*sample, strict=True)):
        if a.shape != b.shape:
            other += 1
            continue
        compared += 1
        a, b = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(a) & np.isfinite(b)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        signal += float((a[finite] ** 2).sum())
        noise += float(((a - b)[finite] ** 2).sum()) if (finite | same).all() else math.inf
    return {"db": decibels(signal, noise) if compared else None, "compared": compared, "other_shapes": other}


def decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return CAP_DB
    if signal == 0 or not math.isfinite(noise):
        return -CAP_DB
    return max(-CAP_DB, min(CAP_DB, 10 * math.log10(signal / noise)))


def in_turns(
    loaded: Mapping[str, Any], feeds: Sequence[Feed], seconds: float, clock: Callable[[], int] = time.perf_counter_ns
) -> dict[str, tuple[float, float, float]]:
    """Speed of each session against the first one: ratio, half the width of a 95 % interval about it, and ms.

    All run once a round on the same sample, and each round starts with the next one. The ratio is the median of the
    ratios within each round, its interval the notch of McGill, Tukey and Larsen 1978. Of sessions with one thread,
    `time.process_time_ns` leaves out what else the machine does: on a busy one, long runs are interrupted, short ones
    are not.
    """
    names = list(loaded)
    for name in names:
        for _ in range(2):  # the first run plans memory and packs weights
            run(loaded[name], feeds[0])
    rows: list[list[float]] = []
    end = time.perf_counter() + seconds * len(names)
    while len(rows) < 5 or (time.perf_counter() < end and len(rows) < 2000):
        feed, row = feeds[len(rows) % len(feeds)], [0.0] * len(names)
        for turn in range(len(names)):
            i = (turn + len(rows)) % len(names)
            start = clock()
            run(loaded[names[i]], feed)
            row[i] = (clock() - start) / 1e6
        rows.append(row)
    ms = np.array(rows)
    low, middle, high = np.percentile(ms[:, :1] / ms, (25, 50, 75), axis=0)
    width = 1.57 * (high - low) / math.sqrt(len(rows))
    typical = np.median(ms, axis=0)
    return {name: (float(middle[i]), float(width[i]), float(typical[i])) for i, name in enumerate(names)}
