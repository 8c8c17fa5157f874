"""Steps that every proof shares: load and run the written file, compare it with its source, and time both."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxshot.calibration.checks import fits
from onnxshot.calibration.readers import Dataset, open_data
from onnxshot.comparison.token_scores import TokenScores
from onnxshot.errors import ModelError, OnnxshotError
from onnxshot.graph import Model, Node, edit
from onnxshot.graph.fixed_shapes import NO_FIXED_SHAPES, FixedShapes
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.weight_facts import facts_of
from onnxshot.report.report import Report
from onnxshot.rewriting.model_inputs import input_specs
from onnxshot.runtimes.executed import Execution
from onnxshot.runtimes.mapped_weights import serialized
from onnxshot.runtimes.open_models import OpenModels
from onnxshot.runtimes.ort_bench import CLEAR, NOISE, bench, exceed
from onnxshot.runtimes.ort_runtime import Runnable, Runner, is_large
from onnxshot.runtimes.ort_session import SessionRunner
from onnxshot.settings import Settings
from onnxshot.verification.compare_models import Comparison
from onnxshot.verification.decoding import decode
from onnxshot.verification.decoding_speed import PROMPT, time_decoding
from onnxshot.verification.io_contract import contract, same_contract, with_frozen
from onnxshot.wording import worded

_RANDOM_SAMPLES = 4
_BENCH_FEEDS = 8
_DECODED_SHARE = 3  # of the memory budget: two sessions hold their weights twice, and the rest is for what they compute
_SHOWN = 3  # names in a note


def record_comparison(report: Report, found: Comparison, *, random: bool) -> None:
    """Store a comparison of outputs in the report.

    Args:
        report: The report to fill in.
        found: The comparison.
        random: True if the samples were random. Their figures go into a section of their own.
    """
    known: dict[str, Any] = {
        "sqnr_db": found.sqnr_db, "agreement": found.agreement,
        "sqnr_optimized_db": found.optimized_db, "sqnr_unoptimized_db": found.unoptimized_db,
        "output_sqnr_db": {row.name: row.sqnr_db for row in found.outputs if row.sqnr_db is not None},
    }  # fmt: skip
    if found.token_inputs and random:
        known["token_inputs"] = list(found.token_inputs)
    report.samples |= {"judged": found.samples, "distinct": found.distinct}
    if blank := max((row.blank for row in found.outputs), default=0):
        report.samples["blank"] = blank
    if found.agreement is not None and found.cases:
        report.samples["cases"] = found.cases
    if found.tensors:
        report.samples["tensors"] = found.tensor_samples
    if random:
        report.on_random_data = known
    else:
        for name, value in known.items():
            setattr(report, name, value)
        report.sample_db = {row.name: dict(row.samples_db) for row in found.outputs if row.samples_db}
        report.output_parts = {row.name: asdict(row.part) for row in found.outputs if row.part is not None}
        report.matches = {row.name: asdict(row.match) for row in found.outputs if row.match is not None}
        report.output_kl = {row.name: row.kl_nats for row in found.outputs if row.kl_nats is not None}
        if found.tokens is not None:
            output = found.tokens.output
            report.tokens = {"output": output.logits, "ids": output.ids, **found.tokens.figures()}
            report.tokens |= {"informative": found.tokens.informative, "caches": list(output.presents.values())}
        report.output_equal = {row.name: row.equal for row in found.outputs if row.equal is not None}
    judged = {"random": list(found.random), "ordered": dict(found.ordered), "copied": list(found.copied)}
    report.judged = {key: value for key, value in judged.items() if value}
    report.not_finite = list(found.not_finite)
    report.contract = found.contract
    report.optimizer_changes_results = found.optimizer_changes_results
    report.notes += found.notes if random else (*found.notes, *found.one_answer)  # no agreement is told of random data


def record_execution(report: Report, ran: Execution, floats: Collection[str] = ()) -> None:
    """Store what ONNX Runtime really executed in the report.

    Args:
        report: The report to fill in.
        ran: What was executed.
        floats: Names of the nodes that the plan leaves in float.
    """
    total = ran.total_macs
    report.int8_macs_share = ran.share if total else None
    report.blocks = ran.blocks
    report.float_between_qdq = len(ran.float_between)
    report.float_macs = {op: macs / total for op, macs in ran.float_by_op.items()} if total else {}
    report.int8_unplanned = ran.unplanned(floats)
    if report.int8_unplanned:
        some = ", ".join(map(repr, report.int8_unplanned[:_SHOWN]))
        more = f" and {len(report.int8_unplanned) - _SHOWN} more" if len(report.int8_unplanned) > _SHOWN else ""
        report.notes.append(f"ONNX Runtime runs nodes in int8 that are float in the file or the plan: {some}{more}")
    if ran.note:
        report.notes.append(ran.note)


def record_latency(
    report: Report, source: Path | LeanModel, written: Path, data: Dataset, settings: Settings,
    opened: OpenModels | None = None,
) -> None:  # fmt: skip
    """Time the written file against its source in interleaved runs, and store the result in the report.

    Sessions of the files that `opened` keeps are used.
    """
    feeds = [data[i].feed for i in range(min(len(data), _BENCH_FEEDS))]
    before, after = bench(
        [source, written], feeds, threads=settings.threads, seconds=settings.bench_seconds, precision=NOISE,
        clear=CLEAR, opened=opened,
    )
    report.latency = after.against(before)
    if after.parts > 1:
        report.notes.append(
            f"latency: the sum over {after.parts} parts that were timed one after the other, as the models together "
            + worded("take more than an eighth of [[memory]]")
        )


def record_decoding(
    report: Report, scores: TokenScores | None, source: Path | LeanModel, written: Path, data: Dataset,
    settings: Settings, *, timed: bool = True,
) -> None:  # fmt: skip
    """Decode a few samples token by token, and time a prompt and a token, if the model is a decoder with a cache.

    Memory: one session of each model. Larger ones than a third of the budget are not decoded: a note says so.

    Args:
        report: The report to fill in.
        scores: The figures of the logits, from the comparison; None for other models.
        source: The float model.
        written: The file made of it.
        data: Samples.
        settings: Threads, and seconds of each timing.
        timed: Time it as well.
    """
    if scores is None or not scores.output.presents:
        return
    if exceed([source, written], _DECODED_SHARE):
        report.notes.append(
            "not decoded token by token, and a token not timed: the models run in parts, as they together take more "
            + worded("than a third of [[memory]]")
        )
        return
    files = [model for model in (source, written) if isinstance(model, Path)]
    opened = OpenModels(files, settings.threads, whole=True)
    if not data.random:
        reference = opened.runner(source) if isinstance(source, Path) else Runner(source, threads=settings.threads)
        found = decode(reference, opened.runner(written), data, scores.output, causal=scores.causal)
        report.tokens |= {"steps": found.figures()} if found.figures() else {}
        report.notes += [found.note] if found.note else []
    if not timed:
        return
    try:
        before, after = time_decoding(
            [source, written], data[0].feed, scores.output, threads=settings.threads, opened=opened,
            seconds=settings.bench_seconds, precision=NOISE, clear=CLEAR,
        )  # fmt: skip
    except ModelError as e:
        report.notes.append(f"a prompt and a token were not timed: {e.message}")
        return
    report.decoding = {"prompt_tokens": PROMPT, "prompt": after[0].against(before[0])}
    report.decoding["token"] = after[1].against(before[1])


def loads(written: Path, source: str | Path | ModelProto) -> bool:
    """Whether ONNX Runtime loads the written file.

    If it does not load the source either, as with custom operators or inputs that are no tensors, the written file is
    not to blame.

    Raises:
        ModelError: The source loads, and the written file does not.
    """
    try:
        _load(written)
    except ModelError:
        try:
            _load(LeanModel.of(source) if isinstance(source, ModelProto) else Path(source))
        except (ModelError, ValueError):
            return False
        raise
    return True


def _load(model: Path | LeanModel) -> None:
    """Load a model in ONNX Runtime. Raises ModelError if that fails."""
    if is_large(model):
        with serialized(LeanModel.of(model)) as (source, folder):
            SessionRunner(source, folder=folder, pack=False, label=str(model) if isinstance(model, Path) else "")
    else:
        Runner(model)


def keeps_contract(source: str | Path | ModelProto, written: Path, sizes: FixedShapes = NO_FIXED_SHAPES) -> None:
    """Check that inputs and outputs have the names, types and dimensions of the source.

    Args:
        source: The model as it was given.
        written: The file made of it.
        sizes: Dimensions that were fixed on purpose; only these may differ.

    Raises:
        ModelError: Something else differs. Names the first difference.
    """
    wanted = contract(source if isinstance(source, ModelProto) else Path(source))
    same_contract(with_frozen(wanted, sizes), contract(written))


def runs_frozen(written: Path, model: Model, source: str | Path | ModelProto) -> None:
    """Run a file whose dimensions were fixed once, on zeros.

    An exporter may have stored a size in the graph, in the shape of a Reshape for example. The run fails then. A file
    that ONNX Runtime does not load is not run.

    Raises:
        ModelError: The run fails, or gives another shape than the contract. Names nodes that hold a size.
    """
    if not loads(written, source):
        return
    hint = "a size is baked in: export the model with dynamic dimensions, or freeze it at those it was exported with"
    run = Runner(written)
    feed = {s.name: np.zeros([d if isinstance(d, int) else 1 for d in s.shape or ()], s.dtype) for s in run.inputs}
    try:
        found = run.run(feed)
    except ModelError as e:
        short = "allocate memory" in e.message
        raise ModelError(
            f"with its dimensions frozen, {e.message}",
            "there is not memory enough for a run at these sizes: freeze it at smaller ones" if short else hint,
        ) from e
    for port in contract(model):
        if port.way == "input" or port.name not in found or port.dims is None:
            continue
        shape = found[port.name].shape
        if not fits(shape, port.dims):
            baked = [node.label for _, node in model.walk() if _names_a_size(node)]
            some = f"; nodes that hold a size: {', '.join(map(repr, baked[:3]))}" if baked else ""
            raise ModelError(f"with its dimensions frozen, the model gives {list(shape)} for {port}{some}", hint)


def _names_a_size(node: Node) -> bool:
    """Whether a constant fixes the first dimension of the node's output."""
    wanted = edit.constant_input(node, 1) if node.op in ("Reshape", "Expand") else None
    return wanted is not None and wanted.size > 0 and int(wanted.reshape(-1)[0]) > 0


def random_data(reference: Runnable, model: Model) -> Dataset | None:
    """A few random samples that the reference runs on; None if it runs on none."""
    try:
        data = open_data("random", input_specs(model), limit=_RANDOM_SAMPLES)
        Runner(reference).run(data[0].feed)
    except OnnxshotError:
        return None
    return data


def sparsity(model: Model) -> float:
    """Share of zeros in all constants of two dimensions or more, 0..1; 0 if there are none."""
    zeros = total = 0
    for constant in model.constants():
        dtype = np.dtype(constant._values.dtype)
        if len(constant.shape) >= 2 and (dtype.kind in "fi" or dtype.name == "bfloat16"):
            facts = facts_of(constant)
            zeros += facts.zeros
            total += facts.size
    return zeros / total if total else 0.0
