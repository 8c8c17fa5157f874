"""The proof of a run: the written file read back, run, held against the float model, and timed against it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxshot.calibration.checks import fits
from onnxshot.calibration.readers import Dataset, open_data
from onnxshot.errors import ModelError, OnnxshotError
from onnxshot.frozen import AS_THEY_ARE, Frozen
from onnxshot.graph import Model, Node, edit, weights
from onnxshot.graph.ops import weight_slot
from onnxshot.passes.base import Skip
from onnxshot.planning.plan import FLOAT, HALF, Plan
from onnxshot.preparing import input_specs
from onnxshot.proving.contract import contract, reload_check, same_contract, with_frozen
from onnxshot.proving.verify import Comparison, compare
from onnxshot.report import NOISE, Report, TensorReport
from onnxshot.settings import Settings
from onnxshot.targets.ort_bench import bench
from onnxshot.targets.ort_executed import executed
from onnxshot.targets.ort_runtime import Runner

MAX_BYTES = 1_500_000_000
"""Weights of a model that is still compared with its float original; both must fit into memory, several times."""
MAX_NODES = 20_000
"""Nodes of a graph that is still compared with its float original: every comparison loads it anew."""
_RANDOM_SAMPLES = 4
_BENCH_FEEDS = 8
_MIN_ELEMENTS = 1024  # float weights below this are not worth a line


def prove(
    report: Report,
    plan: Plan,
    original: ModelProto,
    float_model: ModelProto,
    model: Model,
    written: Path,
    runs: Path,
    data: Dataset,
    settings: Settings,
) -> None:
    """Fill in the report: accuracy per output and tensor, what ran in int8, latency. `data` are held-out samples.

    `runs` is what ONNX Runtime runs for the written file, by rule that file itself.

    Outputs are held against the original; tensors inside against the float model the plan was made for, whose channels
    may have other scales.

    Raises ModelError where the written file does not load, run, or equal the model in memory.
    """
    first = data[0]
    reload_check(model, written, first.feed, run=runs is written)
    inside = None if float_model is original else float_model.SerializeToString()
    found = compare(
        original.SerializeToString(), runs, data, tensors=list(plan.tensors) or None, threads=settings.threads,
        inside=inside,
    )  # fmt: skip
    tell(report, found)
    report.worst = [_row(row.tensor, row.op, row.sqnr_db, row.clipped, plan) for row in found.tensors]
    report.notes += _refused_methods(plan)
    ran = executed(runs, sample=first.feed, threads=settings.threads)
    report.int8_macs_share = ran.share if ran.total_macs else None
    report.float_between_qdq = len(ran.float_between)
    report.float_macs = {op: macs / ran.total_macs for op, macs in ran.float_by_op.items()} if ran.total_macs else {}
    if ran.note:
        report.notes.append(ran.note)


def tell(report: Report, found: Comparison) -> None:
    """Put a comparison of outputs into the report."""
    report.sqnr_db = found.sqnr_db
    report.sqnr_optimized_db, report.sqnr_unoptimized_db = found.optimized_db, found.unoptimized_db
    report.agreement = found.agreement
    report.output_sqnr_db = {row.name: row.sqnr_db for row in found.outputs if row.sqnr_db is not None}
    report.notes += [*found.notes, *found.not_finite]
    if found.contract:
        report.notes.append(f"inputs or outputs differ: {found.contract}")
    if found.optimizer_changes_results:
        report.notes.append(
            f"SQNR is {found.optimized_db:.1f} dB with graph optimizations and {found.unoptimized_db:.1f} dB without"
        )


def time_both(report: Report, source: Path, written: Path, data: Dataset, settings: Settings) -> None:
    """Measure the written file against its source, in turns on the same samples."""
    feeds = [data[i].feed for i in range(min(len(data), _BENCH_FEEDS))]
    before, after = bench(
        [source, written], feeds, threads=settings.threads, seconds=settings.bench_seconds, precision=NOISE
    )
    report.latency = {"float_ms": before.median_ms, "ms": after.median_ms, "speedup": after.ratio}


def _refused_methods(plan: Plan) -> list[str]:
    """The tensors whose range is not chosen by the method asked for, as one note."""
    refused = {group: span.note for group, span in plan.ranges.items() if span.note}
    if not refused:
        return []
    some = ", ".join(f"{group!r} ({note})" for group, note in list(refused.items())[:3])
    more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
    return [f"min-max ranges instead of those asked for on {some}{more}"]


def _row(tensor: str, op: str, sqnr_db: float, clipped: float | None, plan: Plan) -> TensorReport:
    planned = plan.tensors.get(tensor)
    if planned is None or planned.group not in plan.ranges:
        return TensorReport(tensor, op, sqnr_db, clipped=clipped)
    span, params = plan.ranges[planned.group], plan.params[planned.group]
    scheme = f"{params.scheme.dtype.name} scale {float(params.scale):.6g} zero point {int(params.zero_point)}"
    return TensorReport(tensor, op, sqnr_db, span.low, span.high, clipped, scheme, span.method)


def loads(written: Path, source: str | Path | ModelProto) -> bool:
    """Whether ONNX Runtime loads the written file. Raise ModelError where it does not, but loads the source.

    A source with custom operators, or with inputs that are no tensors, is no reason to refuse what was made of it.
    """
    try:
        Runner(written)
    except ModelError:
        try:
            Runner(source.SerializeToString() if isinstance(source, ModelProto) else Path(source))
        except (ModelError, ValueError):
            return False
        raise
    return True


def keeps_contract(source: str | Path | ModelProto, written: Path, sizes: Frozen = AS_THEY_ARE) -> None:
    """Raise ModelError where names, types or dimensions of inputs and outputs are not those of the source.

    sizes: dimensions that were frozen, which are those alone that differ.
    """
    wanted = contract(source if isinstance(source, ModelProto) else Path(source))
    same_contract(with_frozen(wanted, sizes), contract(written))


def runs_frozen(written: Path, model: Model, source: str | Path | ModelProto) -> None:
    """Run a file whose dimensions were frozen once, on zeros. Raise ModelError, with a node, where that fails.

    An exporter may have left a size in the graph: in a Reshape, say. What ONNX Runtime does not load is not run.
    """
    if not loads(written, source):
        return
    hint = "a size is baked in: export the model with dynamic dimensions, or freeze it at those it was exported with"
    run = Runner(written)
    feed = {s.name: np.zeros([d if isinstance(d, int) else 1 for d in s.shape or ()], s.dtype) for s in run.inputs}
    try:
        found = run.run(feed)
    except ModelError as e:
        raise ModelError(f"with its dimensions frozen, {e.message}", hint) from e
    for port in contract(model):
        if port.way == "input" or port.name not in found or port.dims is None:
            continue
        shape = found[port.name].shape
        if not fits(shape, port.dims):
            baked = [node.label for _, node in model.walk() if _names_a_size(node)]
            some = f"; nodes that hold a size: {', '.join(map(repr, baked[:3]))}" if baked else ""
            raise ModelError(f"with its dimensions frozen, the model gives {list(shape)} for {port}{some}", hint)


def _names_a_size(node: Node) -> bool:
    """Whether a constant says how long the leading dimension of its output is."""
    wanted = edit.constant_input(node, 1) if node.op in ("Reshape", "Expand") else None
    return wanted is not None and wanted.size > 0 and int(wanted.reshape(-1)[0]) > 0


def random_data(float_model: ModelProto, model: Model) -> Dataset | None:
    """Random samples the float model runs on; None where it does not run on any."""
    try:
        data = open_data("random", input_specs(model), limit=_RANDOM_SAMPLES)
        Runner(float_model.SerializeToString()).run(data[0].feed)
    except OnnxshotError:
        return None
    return data


def float_weights(model: Model, plan: Plan) -> list[Skip]:
    """Weights of the written model that are still float, not of 16 bits, with the reason the plan gives."""
    reasons = {n.node: n.reason for n in plan.nodes if n.how == FLOAT}
    halves = plan.labels(HALF)
    found = []
    for _, node in model.walk():
        slot = weight_slot(node) if node.label not in halves else None
        if slot is not None and int(np.prod(node.inputs[slot].shape, dtype=np.int64)) >= _MIN_ELEMENTS:
            found.append(Skip(node.label, node.op, reasons.get(node.label, "not quantized")))
    return found


def sparsity(model: Model) -> float:
    """Share 0..1 of zeros in the weights of Conv, Gemm, MatMul and the like; 0 where there are none."""
    zeros = total = 0
    for constant in model.constants():
        if len(constant.shape) >= 2 and weights.size_bytes(constant) <= MAX_BYTES // 10:
            values = np.asarray(weights.read(constant))
            if values.dtype.kind in "fi" or values.dtype.name == "bfloat16":
                zeros += values.size - int(np.count_nonzero(values))
                total += values.size
    return zeros / total if total else 0.0
