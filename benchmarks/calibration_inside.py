"""The parts of calibration.py that look inside: how precise a subsample is, and ways to observe a model."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from readme import Job

from onnxshot.calibration.observers import Observers, glimpse
from onnxshot.calibration.range_methods import choose_range, range_sqnr_db
from onnxshot.calibration.readers import split
from onnxshot.calibration.stats import TensorStats
from onnxshot.errors import ModelError
from onnxshot.execution.instrumented_model import InsideProbe, OutsideProbe
from onnxshot.execution.statistics_source import open_calib
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.plan import Plan
from onnxshot.planning.scales import Evidence
from onnxshot.recipes.recipe import Recipe
from onnxshot.rewriting.prepare import prepare
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.runtimes.parallel import in_order
from onnxshot.settings import Settings
from onnxshot.targets import target_named
from onnxshot.verification.compare_models import compare

ALL = Settings(samples="all", use_cache=False, verify=False)
_TIMED = 24  # samples in one round
_BATCH = 8


def judged(job: Job, out: object) -> str:
    """SQNR of a file on the quarter of the samples, which calibration has left alone."""
    model = load_model(job.model)
    with open_calib(str(job.calib), model, job.preset or "none", ALL) as data:
        found = compare(job.model, out, data.subset(split(len(data))[1]))  # type: ignore[arg-type]
    return "-" if found.sqnr_db is None else f"{found.sqnr_db:.2f}"


def _ready(job: Job) -> tuple[Model, Plan]:
    model, recipe = load_model(job.model), Recipe()
    target = target_named(recipe.target)
    prepare(model, target, recipe)
    return model, make_plan(model, target, recipe)


def precision(job: Job, methods: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Of the whole model, and of each tensor's range where both are held against every value."""
    from onnxshot.rewriting.apply_plan import apply_plan
    from onnxshot.stages.prepare_model import prepare_model

    model, plan = _ready(job)
    names = list(plan.observe)
    channels = [i for i, name in enumerate(names) if name in plan.watched]
    probe = OutsideProbe(model, names, plan.watched, threads=2)
    thinned, full = Observers(len(names)), Observers(len(names))
    with open_calib(str(job.calib), model, job.preset or "none", ALL) as data:
        calibrated, held_out = split(len(data))
        for i in calibrated:
            values = probe.values(data[i].feed)
            seen = glimpse(values, channels)
            thinned.add(seen)
            flat = [np.asarray(x, np.float32).reshape(-1) for x in values]
            full.add(replace(seen, picks=np.concatenate(flat), picked=seen.sizes))
        kinds = {"subsample": thinned.stats(), "everything": full.stats()}
        for method in methods:
            sqnr = {}
            for kind, stats in kinds.items():
                prepared = prepare_model(str(job.model), Recipe(method=method), ALL)
                candidate = prepared.model
                scaled = prepared.plan(evidence=Evidence(dict(zip(names, stats, strict=True))))
                apply_plan(candidate, scaled, prepared.recipe)
                found = compare(job.model, candidate.to_proto().SerializeToString(), data.subset(held_out))
                sqnr[kind] = found.sqnr_db or float("nan")
            scheme = target_named("ort").activation
            losses = [_loss(a, b, method, scheme) for a, b in zip(*kinds.values(), strict=True) if a.count]
            yield method, f"{sqnr['subsample']:.2f}", f"{sqnr['everything']:.2f}", f"{statistics.mean(losses):.3f}"


def _loss(thinned: TensorStats, full: TensorStats, method: str, scheme: object) -> float:
    ranges = [choose_range(stats, scheme, method) for stats in (full, thinned)]  # type: ignore[arg-type]
    best, found = (range_sqnr_db(full, chosen, scheme) for chosen in ranges)  # type: ignore[arg-type]
    return best - found


def _stacked(feeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def designs(job: Job, rounds: int) -> Iterator[tuple[str, ...]]:
    """In turns, on the same samples; all but the batches end with the same statistics."""
    model, plan = _ready(job)
    names, channels = list(plan.observe), plan.watched
    source = model.to_proto().SerializeToString()
    with open_calib(str(job.calib), model, job.preset or "none", ALL) as data:
        feeds = [data[i].feed for i in range(min(len(data), _TIMED))]
    float_model = {threads: Runner(source, threads=threads) for threads in (1, 2)}
    outside = {threads: OutsideProbe(model, names, channels, threads=threads) for threads in (1, 2)}
    inside = {threads: InsideProbe(model, names, channels, threads=threads) for threads in (1, 2)}

    def observed(looks: Iterator[object]) -> None:
        observers = Observers(len(names))
        for seen in looks:
            observers.add(seen)  # type: ignore[arg-type]

    ways: dict[str, Callable[[], object]] = {
        "inference, one by one on 2 threads": lambda: [float_model[2].run(feed) for feed in feeds],
        "inference, two at once on 1 thread each": lambda: list(in_order(float_model[1].run, feeds, 2)),
        "tensors out, reduced in numpy, one by one": lambda: observed(map(outside[2].look, feeds)),
        "tensors out, reduced in numpy, two at once": lambda: observed(in_order(outside[1].look, feeds, 2)),
        "reduced in the graph, one by one": lambda: observed(map(inside[2].look, feeds)),
        "reduced in the graph, two at once (taken)": lambda: observed(in_order(inside[1].look, feeds, 2)),
    }
    with contextlib.suppress(ModelError, ValueError):  # not every model takes batches, nor every set of samples
        batches = [_stacked(feeds[i : i + _BATCH]) for i in range(0, len(feeds), _BATCH)]
        inside[1].observe(batches[0])
        ways[f"reduced in the graph, batches of {_BATCH}, two at once"] = lambda: observed(
            in_order(inside[1].look, batches, 2)
        )
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append((time.perf_counter() - start) * 1e3 / len(feeds))
    base = taken[next(iter(ways))][1:]
    for name, times in taken.items():
        ratio = statistics.median(a / b for a, b in zip(times[1:], base, strict=True))
        yield name, f"{statistics.median(times[1:]):.2f}", f"{ratio:.2f}"
