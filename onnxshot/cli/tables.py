"""Print results for people on stderr: a headline, one short table with the worst row on top, and the next step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from onnxshot.api.sensitivity import Sensitivity
from onnxshot.cli.fitted_table import Field, figures, print_table
from onnxshot.cli.merged_errors import merged
from onnxshot.cli.result_frame import (
    Line,
    accuracy_lines,
    bytes_of,
    lines_of,
    print_frame,
    print_written,
    size_line,
    speed_line,
)
from onnxshot.cli.terminal import STYLES, say, say_notes, stderr_console
from onnxshot.graph.skip import Skip
from onnxshot.report.advice import (
    BAD,
    Values,
    bits_before,
    decibels,
    int8_share,
    level_of,
    megabytes,
    size_change,
    words_of,
)
from onnxshot.report.counts import counts
from onnxshot.report.digits import significant
from onnxshot.report.html.figures import milliseconds
from onnxshot.report.report import Report
from onnxshot.report.token_figures import blocks_in_words, decoding_in_one_line, in_one_line, rise_of
from onnxshot.report.values import VECTOR, Artifact
from onnxshot.report.verdict import WORDS, Verdict
from onnxshot.results.compressed import CompressReport
from onnxshot.results.pruned import PruneReport
from onnxshot.results.shrunk import ShrinkReport
from onnxshot.wording import counted

_WORST = 5
_SKIPS = 6
_SAME_SHARE = 0.0005  # shares that differ by less are printed once


def show_reports(reports: Iterable[Report], *more: Path | None) -> None:
    """Print one result after another. more: what else was written, such as the report."""
    for number, report in enumerate(reports):
        if number and stderr_console().is_terminal:
            stderr_console().print()
        show_report(report, *(() if number else more))


def show_report(report: Report, *more: Path | None) -> None:
    """Print a result: sizes, accuracy, speed, the worst tensors, the weights that stayed float, the next step.

    more: paths of what else was written, such as the report; a terminal shows them.
    """
    console = stderr_console()
    values = report.to_dict()
    if console.is_terminal:
        _frames(console, report, more)
        lines = [in_one_line({**values, "tokens": {}}), blocks_in_words(values)]
    else:
        console.print(_headline(report, values))
        lines = [in_one_line(values), decoding_in_one_line(values), blocks_in_words(values)]
    for line in filter(None, lines):
        say(console, line)
    if report.worst and not report.on_random_data:  # errors per layer mean nothing on random inputs
        _worst(console, report)
    if not console.is_terminal:
        for artifact in report.outputs:
            if artifact.format != "onnx":
                console.print(escape(_artifact_line(artifact, values)))
    for line in _grouped(row for row in report.float_weights if row.reason != VECTOR):
        say(console, f"float weight: {line}")
    if report.onnxruntime is not None:
        say(console, report.onnxruntime.to_text())
    say_notes(console, report.notes)
    for tried in report.tried:
        say(console, f"{'taken' if tried.get('taken') else 'measured too'}: {words_of(tried)}")
    _show_verdict(console, report.verdict)


def _frames(console: Console, report: Report, more: Sequence[Path | None]) -> None:
    """Print a frame for each artifact with its path; for a comparison, which writes none, one frame."""
    if not report.outputs:
        print_frame(console, lines_of(report), "float", "candidate")
    for artifact in report.outputs:
        print_frame(console, lines_of(report, artifact))
        print_written(console, [artifact.path])
        for note in artifact.notes:
            say(console, note)
    _written(console, more)


def _written(console: Console, paths: Sequence[Path | str | None]) -> None:
    """Print the paths of what was written to a terminal."""
    if console.is_terminal:
        print_written(console, [str(path) for path in paths if path is not None])


def _worst(console: Console, report: Report) -> None:
    """Print the tensors with the largest errors. Those of one error are one row."""
    rows = merged(report.worst) if console.is_terminal else [(row, 1) for row in report.worst]
    cells = []
    several = any(count > 1 for _, count in rows[:_WORST])
    for row, count in rows[:_WORST]:
        span = "" if row.low is None or row.high is None else f"{significant(row.low, 4)} .. {significant(row.high, 4)}"
        clipped = "" if row.clipped is None else f"{100 * row.clipped:.3f} %"
        cells.append((row.tensor, str(count) if several else "", row.op, f"{row.sqnr_db:.1f}", span, clipped))
    fields = (
        Field(f"worst tensors{_sample_share(report)}", name=True), Field("tensors", figure=True), Field("op", drop=3),
        Field("SQNR dB", figure=True), Field("range", figure=True, drop=2), Field("clipped", figure=True, drop=1),
    )  # fmt: skip
    print_table(console, fields, cells)


def _show_verdict(console: Console, verdict: Verdict) -> None:
    """Print each reason against a result on a coloured line, then the next step."""
    for number, reason in enumerate(verdict.reasons):
        said = "also" if number else WORDS[verdict.level]
        say(console, f"{said}: {reason}", STYLES[verdict.level])
    words, mark, command = verdict.next.rpartition(": onnxshot ")
    if not mark or not console.is_terminal:
        say(console, f"next: {verdict.next}")
        return
    say(console, f"next: {words}:")
    console.print(Text(f"  onnxshot {command}"), soft_wrap=True)  # in one line, so that it can be pasted


def show_emitted(report: Report, *more: Path | None) -> None:
    """Print each artifact with its measurements in its own runtime. more: what else was written."""
    console, values = stderr_console(), report.to_dict()
    if console.is_terminal:
        _frames(console, report, more)
    else:
        for artifact in report.outputs:
            console.print(escape(_artifact_line(artifact, values)))
        if report.sqnr_db is not None:
            console.print(f"{accuracy(report.sqnr_db, None)} of the .onnx file against the input")
    for line in _grouped(report.skips):
        say(console, f"left as it is: {line}")
    if report.onnxruntime is not None:
        say(console, report.onnxruntime.to_text())
    say_notes(console, report.notes)
    _show_verdict(console, report.verdict)


def _grouped(skips: Iterable[Skip]) -> list[str]:
    """Group skips by op and reason: one line per group with its first node, at most _SKIPS lines."""
    groups: dict[tuple[str, str], list[str]] = {}
    for skip in skips:
        groups.setdefault((skip.op, skip.reason), []).append(skip.node)
    return [f"{len(names)} x {op}, {names[0]!r}: {why}" for (op, why), names in list(groups.items())[:_SKIPS]]


def _artifact_line(artifact: Artifact, values: Values) -> str:
    """Describe an artifact in one line: path, size, accuracy and speed."""
    parts = [f"{artifact.path}: {artifact.format}, {megabytes(artifact.bytes)}"]
    if (share := int8_share(values, asdict(artifact))) is not None:
        parts.append(f"{100 * share:.0f} % of the work in int8")
    if artifact.sqnr_db is not None:
        parts.append(f"SQNR {artifact.sqnr_db:.1f} dB")
    if artifact.latency:
        times = artifact.latency
        unsure = "" if times.get("sure", True) else ", not certain because runs scatter"
        parts.append(f"{times['ms']:.2f} ms, {times['speedup']:.2f}x as fast as the float model there{unsure}")
    return ", ".join(parts) + "".join(f"; {note}" for note in artifact.notes)


def show_pruned(report: PruneReport, *more: Path | None) -> None:
    """Print a pruned model: sizes, accuracy, the densest and sparsest layers, skipped nodes, the next step."""
    console = stderr_console()
    zeros = f"{100 * report.sparsity:.1f} % zeros"
    of_all = abs(report.sparsity - report.sparsity_of_all) >= _SAME_SHARE
    if console.is_terminal:
        for artifact in report.outputs:
            print_frame(console, [*lines_of(report, artifact), *_zeros(report, of_all)])
            _written(console, [artifact.path, *more])
    else:
        if of_all:
            zeros += f" in the layers to be pruned, {100 * report.sparsity_of_all:.1f} % in all weights"
        parts = [_headline(report, report.to_dict()), zeros]
        if report.magnitude_sqnr_db is not None:
            parts.append(f"(by magnitude alone {report.magnitude_sqnr_db:.1f} dB)")
        console.print("  ".join(parts))
    rows = sorted(report.layers, key=lambda row: row.sparsity)
    shown = rows if len(rows) <= 2 * _WORST else [*rows[:_WORST], *rows[-_WORST:]]
    fields = (Field("layer", name=True), Field("op", drop=1), *figures("weights", "zeros"))
    print_table(
        console, fields, [(row.layer, row.op, f"{row.weights:,}", f"{100 * row.sparsity:.1f} %") for row in shown]
    )
    _skipped(console, "not pruned", report.skips)
    for line in report.worth:
        say(console, line)
    say_notes(console, report.notes)
    _show_verdict(console, report.verdict)


def _zeros(report: PruneReport, of_all: bool) -> Iterator[Line]:
    """The lines of a frame that only pruning has."""
    weights = sum(row.weights for row in report.layers)
    before = f"{100 * sum(row.before * row.weights for row in report.layers) / weights:.1f} %" if weights else ""
    words = f"{100 * report.sparsity_of_all:.1f} % of all weights" if of_all else ""
    yield Line("zeros", before, f"{100 * report.sparsity:.1f} %", words)
    if report.magnitude_sqnr_db is not None:
        yield Line("by magnitude alone", "", decibels(report.magnitude_sqnr_db), "without compensation")


def _skipped(console: Console, what: str, skips: Sequence[Skip]) -> None:
    """Print what was left out: on a terminal one line for each reason."""
    if console.is_terminal:
        for line in _grouped(skips):
            say(console, f"{what}: {line}")
        return
    for skip in skips[:_SKIPS]:
        say(console, f"{what}: {skip.node} ({skip.op}): {skip.reason}")


def show_shrunk(report: ShrinkReport, model: Path, output: Path, *more: Path | None) -> None:
    """Print the MACs, parameters and latency that remain, then the groups of channels, the one cut most first.

    Args:
        report: of the run.
        model: the given model.
        output: the file that was written.
        more: what else was written.
    """
    console = stderr_console()
    (work, left), (params, kept) = report.macs, report.params
    if console.is_terminal:
        lines = [
            size_line(bytes_of(model), bytes_of(output)),
            _share("MACs", work, left),
            _share("parameters", params, kept),
        ]
        if report.latency is not None:
            before = report.float_ms or math.nan
            times = {"float_ms": before, "ms": before * report.latency, "speedup": 1 / report.latency}
            lines += [line for line in [speed_line("time", times)] if line is not None]
        lines += accuracy_lines(report.sqnr_db, report.agreement, {"judged": report.compared, "cases": report.cases})
        if report.drop is not None and report.score is not None:
            lines.append(
                Line("score", f"{report.score:.4g}", f"{report.score - report.drop:.4g}", f"{report.drop:.4g} lower")
            )
        print_frame(console, lines)
        _written(console, [output, *more])
    else:
        shares = (
            f"{100 * left / max(work, 1):.1f} % of the MACs",
            f"{100 * kept / max(params, 1):.1f} % of the parameters",
        )
        parts = list(shares)
        if report.latency is not None:
            parts.append(f"{100 * report.latency:.0f} % of the latency")
        if report.sqnr_db is not None:
            parts.append(f"SQNR {decibels(report.sqnr_db)}")
        if report.agreement is not None:
            parts.append(f"agreement {100 * report.agreement:.1f} %")
        if report.drop is not None:
            parts.append(f"score {report.drop:.4g} lower")
        console.print(f"{escape(str(output))}  remaining: {', '.join(parts)}")
    for branch in report.branches:
        say(console, f"removed: the residual branch of {branch}")
    cut = sorted((row for row in report.groups if row.after < row.before), key=lambda row: row.after / row.before)
    fields = (Field("group", name=True), Field("kind", drop=1), *figures("before", "after"))
    rows = [(row.group, row.kind, str(row.before), str(row.after)) for row in cut[: 2 * _WORST]]
    print_table(console, fields, rows)
    _skipped(console, "not cut", report.skips)
    say_notes(console, report.notes)
    _show_verdict(console, report.verdict)


def _share(what: str, before: int, after: int) -> Line:
    return Line(what, f"{before:,}", f"{after:,}", f"{100 * after / max(before, 1):.1f} % remain")


def show_stages(report: CompressReport, *more: Path | None) -> None:
    """Print one line per stage, then the share of zeros. more: what was written besides the result."""
    console = stderr_console()
    fields = (
        Field("stage"), *figures("MB", "SQNR dB"), Field("agreement", figure=True, drop=2),
        Field("int8 MACs", figure=True, drop=1), *figures("ms", "speed"), Field("verdict"),
    )  # fmt: skip
    rows, styles = [], []
    for stage in report.stages:
        db = "" if stage.sqnr_db is None else f"{stage.sqnr_db:.1f}"
        agreement = "" if stage.agreement is None else f"{100 * stage.agreement:.1f} %"
        low = level_of(stage.sqnr_db, stage.agreement, report.samples.get("cases")) == BAD
        share = getattr(stage.report, "int8_macs_share", None)
        rows.append((
            stage.name, f"{stage.bytes / 1e6:.2f}", db, agreement, "" if share is None else f"{100 * share:.0f} %",
            f"{stage.latency_ms:.3f}", f"{stage.speedup:.2f}x", "too low" if low else "",
        ))  # fmt: skip
        styles.append(STYLES[BAD] if low else "")
    print_table(console, fields, rows, styles, framed=True)
    _written(console, [*(artifact.path for artifact in report.outputs), *more])
    for stage in report.stages:
        if isinstance(stage.report, PruneReport):
            say(console, f"{stage.name}: {100 * stage.report.sparsity:.1f} % zeros, all kept by later stages")
    say_notes(console, report.notes)
    _show_verdict(console, report.verdict)


def show_sensitivity(found: Sensitivity, *more: Path | None) -> None:
    """Print one line per node, the most costly first. more: what was written."""
    console = stderr_console()
    say(console, f"{found.input}  all in int8: SQNR {decibels(found.sqnr_db)} on {counted(found.samples, 'sample')}")
    rows = []
    for row in found.nodes:
        figs = (row.per_channel_db, row.per_tensor_db, row.float_gain_db)
        texts = ("" if value is None else f"{value:.1f}" for value in figs)
        rows.append((row.node, row.op, row.how, *texts, *(f"{ms:.3f}" for ms in (row.float_ms, row.int8_ms))))
    fields = (
        Field("node", name=True), Field("op", drop=3), Field("how", drop=2), Field("int8 dB", figure=True),
        Field("per tensor", figure=True, drop=1), Field("if float", figure=True, drop=4),
        *figures("float ms", "int8 ms"),
    )  # fmt: skip
    print_table(console, fields, rows)
    _written(console, more)
    say_notes(console, found.notes)


def _sample_share(report: Report) -> str:
    """State how many samples tensors were compared on, if outputs were compared on more."""
    seen, judged = report.samples.get("tensors"), report.samples.get("judged")
    return f" ({seen} of {judged} samples)" if seen and judged and seen < judged else ""


def _headline(report: Report, values: Values) -> str:
    written = sum(a.bytes for a in report.outputs)
    parts = [escape(report.outputs[0].path if report.outputs else report.input)]
    if written:
        parts.append(size_change(report.input_bytes, written))
    if bits_before(values) is not None:
        parts.append(f"{report.bits_per_weight:.2f} bits a weight")
    # Else the perplexity says whether they are good enough, or the user does.
    judged = rise_of({"tokens": report.tokens}) is None and not report.accepted
    parts += [accuracy(report.sqnr_db, None, judged=judged)] if report.sqnr_db is not None else []
    if report.agreement is not None:
        judged = judged and level_of(None, report.agreement, report.samples.get("cases")) == BAD
        parts.append(accuracy(None, report.agreement, judged=judged))
    parts += counts(report.matches)
    if (share := int8_share(values)) is not None:
        parts.append(f"int8 {100 * share:.0f} % of MACs")
    if report.speedup is not None:
        text = f"{report.speedup:.2f}x (float {milliseconds(report.latency['float_ms'])})"
        if not report.latency.get("sure", True):
            parts.append(f"not certain whether faster, because runs scatter: {text}")
        else:
            parts.append(f"[bold red]slower than float: {text}[/]" if report.slower else f"[green]{text}[/]")
    return "  ".join(parts)


def accuracy(sqnr_db: float | None, agreement: float | None, *, judged: bool = True) -> str:
    """Format the SQNR or the agreement, whichever is given; red if it is `judged` and not good enough."""
    text = f"SQNR {decibels(sqnr_db)}" if sqnr_db is not None else f"agreement {100 * (agreement or 0.0):.1f} %"
    return f"[bold red]{text}[/]" if judged and level_of(sqnr_db, agreement) == BAD else text
