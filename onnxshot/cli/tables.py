"""Print results for people on stderr: a headline, one short table with the worst row on top, and the next step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxshot.api.sensitivity import Sensitivity
from onnxshot.cli.terminal import STYLES, name_column, stderr_console
from onnxshot.graph.skip import Skip
from onnxshot.report.advice import BAD, decibels, level_of, words_of
from onnxshot.report.counts import counts
from onnxshot.report.report import Report
from onnxshot.report.token_figures import blocks_in_words, decoding_in_one_line, in_one_line, rise_of
from onnxshot.report.values import VECTOR, Artifact
from onnxshot.report.verdict import WORDS, Verdict
from onnxshot.results.compressed import CompressReport
from onnxshot.results.pruned import PruneReport
from onnxshot.results.shrunk import ShrinkReport
from onnxshot.runtimes.ort_bench import Latency
from onnxshot.verification.decoding_speed import PROMPT

_WORST = 5
_SKIPS = 6


def show_reports(reports: Iterable[Report]) -> None:
    """Print one result after another."""
    for report in reports:
        show_report(report)


_SAME_SHARE = 0.0005  # shares that differ by less are printed once


def show_report(report: Report) -> None:
    """Print a result: sizes, accuracy, speed, the worst tensors, the weights that stayed float, the next step."""
    console = stderr_console()
    console.print(_headline(report))
    values = report.to_dict()
    for line in (in_one_line(values), decoding_in_one_line(values), blocks_in_words(values)):
        if line:
            console.print(escape(line))
    if report.worst and not report.on_random_data:  # errors per layer mean nothing on random inputs
        head = name_column(f"worst tensors{_sample_share(report)}")
        table = Table(head, "op", "SQNR dB", "range", "clipped", box=None, pad_edge=False)
        for row in report.worst[:_WORST]:
            span = "" if row.low is None or row.high is None else f"{row.low:.4g} .. {row.high:.4g}"
            clipped = "" if row.clipped is None else f"{100 * row.clipped:.3f} %"
            table.add_row(escape(row.tensor), row.op, f"{row.sqnr_db:.1f}", span, clipped)
        console.print(table)
    for artifact in report.outputs:
        if artifact.format != "onnx":
            console.print(escape(_artifact_line(artifact)))
    for line in _grouped(row for row in report.float_weights if row.reason != VECTOR):
        console.print(escape(f"float weight: {line}"))
    if report.onnxruntime is not None:
        console.print(escape(report.onnxruntime.to_text()))
    for note in report.notes:
        console.print(escape(f"note: {note}"))
    for tried in report.tried:
        console.print(escape(f"{'taken' if tried.get('taken') else 'measured too'}: {words_of(tried)}"))
    _show_verdict(console, report.verdict)


def _show_verdict(console: Console, verdict: Verdict) -> None:
    """Print each reason against a result on a coloured line, then the next step."""
    for number, reason in enumerate(verdict.reasons):
        said = "also" if number else WORDS[verdict.level]
        console.print(f"[{STYLES[verdict.level]}]{said}: {escape(reason)}[/]")
    console.print(escape(f"next: {verdict.next}"))


def show_emitted(report: Report) -> None:
    """Print one line per artifact, with its measurements in its own runtime."""
    console = stderr_console()
    for artifact in report.outputs:
        console.print(escape(_artifact_line(artifact)))
    if report.sqnr_db is not None:
        console.print(f"{accuracy(report.sqnr_db, None)} of the .onnx file against the input")
    for line in _grouped(report.skips):
        console.print(escape(f"left as it is: {line}"))
    if report.onnxruntime is not None:
        console.print(escape(report.onnxruntime.to_text()))
    for note in report.notes:
        console.print(escape(f"note: {note}"))
    _show_verdict(console, report.verdict)


def _grouped(skips: Iterable[Skip]) -> list[str]:
    """Group skips by op and reason: one line per group with its first node, at most _SKIPS lines."""
    groups: dict[tuple[str, str], list[str]] = {}
    for skip in skips:
        groups.setdefault((skip.op, skip.reason), []).append(skip.node)
    return [f"{len(names)} x {op}, {names[0]!r}: {why}" for (op, why), names in list(groups.items())[:_SKIPS]]


def _artifact_line(artifact: Artifact) -> str:
    """Describe an artifact in one line: path, size, accuracy and speed."""
    parts = [f"{artifact.path}: {artifact.format}, {artifact.bytes / 1e6:.2f} MB"]
    if artifact.int8_macs_share is not None:
        parts.append(f"{100 * artifact.int8_macs_share:.0f} % of the work in int8")
    if artifact.sqnr_db is not None:
        parts.append(f"SQNR {artifact.sqnr_db:.1f} dB")
    if artifact.latency:
        times = artifact.latency
        unsure = "" if times.get("sure", True) else ", not certain because runs scatter"
        parts.append(f"{times['ms']:.2f} ms, {times['speedup']:.2f}x as fast as the float model there{unsure}")
    return ", ".join(parts) + "".join(f"; {note}" for note in artifact.notes)


def show_pruned(report: PruneReport) -> None:
    """Print a pruned model: sizes, accuracy, the densest and sparsest layers, skipped nodes, the next step."""
    console = stderr_console()
    zeros = f"{100 * report.sparsity:.1f} % zeros"
    if abs(report.sparsity - report.sparsity_of_all) >= _SAME_SHARE:
        zeros += f" in the layers to be pruned, {100 * report.sparsity_of_all:.1f} % in all weights"
    parts = [_headline(report), zeros]
    if report.magnitude_sqnr_db is not None:
        parts.append(f"(by magnitude alone {report.magnitude_sqnr_db:.1f} dB)")
    console.print("  ".join(parts))
    table = Table(name_column("layer"), "op", "weights", "zeros", box=None, pad_edge=False)
    rows = sorted(report.layers, key=lambda row: row.sparsity)
    shown = rows if len(rows) <= 2 * _WORST else [*rows[:_WORST], *rows[-_WORST:]]
    for row in shown:
        table.add_row(escape(row.layer), row.op, str(row.weights), f"{100 * row.sparsity:.1f} %")
    console.print(table)
    for skip in report.skips[:_SKIPS]:
        console.print(escape(f"not pruned: {skip.node} ({skip.op}): {skip.reason}"))
    for line in report.worth:
        console.print(escape(line))
    for note in report.notes:
        console.print(escape(f"note: {note}"))
    _show_verdict(console, report.verdict)


def show_shrunk(report: ShrinkReport) -> None:
    """Print the MACs, parameters and latency that remain, then the groups of channels, the one cut most first."""
    console = stderr_console()
    (work, left), (params, kept) = report.macs, report.params
    parts = [f"{100 * left / max(work, 1):.1f} % of the MACs", f"{100 * kept / max(params, 1):.1f} % of the parameters"]
    if report.latency is not None:
        parts.append(f"{100 * report.latency:.0f} % of the latency")
    if report.drop is not None:
        parts.append(f"score {report.drop:.4g} lower")
    console.print("remaining: " + ", ".join(parts))
    for branch in report.branches:
        console.print(escape(f"removed: the residual branch of {branch}"))
    table = Table(name_column("group"), "kind", "before", "after", box=None, pad_edge=False)
    cut = sorted((row for row in report.groups if row.after < row.before), key=lambda row: row.after / row.before)
    for row in cut[: 2 * _WORST]:
        table.add_row(escape(row.group), row.kind, str(row.before), str(row.after))
    console.print(table)
    for skip in report.skips[:_SKIPS]:
        console.print(escape(f"not cut: {skip.node} ({skip.op}): {skip.reason}"))
    for note in report.notes:
        console.print(escape(f"note: {note}"))
    _show_verdict(console, report.verdict)


def show_stages(report: CompressReport) -> None:
    """Print one line per stage, then the share of zeros."""
    console = stderr_console()
    table = Table("stage", "MB", "SQNR dB", "agreement", "ms", "speed", box=None, pad_edge=False)
    for stage in report.stages:
        db = "" if stage.sqnr_db is None else f"{stage.sqnr_db:.1f}"
        agreement = "" if stage.agreement is None else f"{100 * stage.agreement:.1f} %"
        style = STYLES[BAD] if level_of(stage.sqnr_db, stage.agreement, report.samples.get("cases")) == BAD else None
        table.add_row(
            stage.name, f"{stage.bytes / 1e6:.2f}", db, agreement, f"{stage.latency_ms:.3f}", f"{stage.speedup:.2f}x",
            style=style,
        )  # fmt: skip
    console.print(table)
    for stage in report.stages:
        if isinstance(stage.report, PruneReport):
            console.print(f"{stage.name}: {100 * stage.report.sparsity:.1f} % zeros, all kept by later stages")
    for note in report.notes:
        console.print(escape(f"note: {note}"))
    _show_verdict(console, report.verdict)


def show_sensitivity(found: Sensitivity) -> None:
    """Print one line per node, the most costly first."""
    table = Table(name_column("node"), "op", "how", "int8 dB", "per tensor", box=None, pad_edge=False)
    gains = any(row.float_gain_db is not None for row in found.nodes)
    if gains:
        table.add_column("if float")
    for header in ("float ms", "int8 ms"):
        table.add_column(header)
    for row in found.nodes:
        figures = [row.per_channel_db, row.per_tensor_db, *([row.float_gain_db] if gains else [])]
        times = (f"{ms:.3f}" for ms in (row.float_ms, row.int8_ms))
        texts = ("" if value is None else f"{value:.1f}" for value in figures)
        table.add_row(escape(row.node), row.op, row.how, *texts, *times)
    console = stderr_console()
    console.print(f"{escape(found.input)}  all in int8: {accuracy(found.sqnr_db, None)} on {found.samples} samples")
    console.print(table)
    for note in found.notes:
        console.print(escape(f"note: {note}"))


def _sample_share(report: Report) -> str:
    """State how many samples tensors were compared on, if outputs were compared on more."""
    seen, judged = report.samples.get("tensors"), report.samples.get("judged")
    return f" ({seen} of {judged} samples)" if seen and judged and seen < judged else ""


def _headline(report: Report) -> str:
    written = sum(a.bytes for a in report.outputs)
    parts = [escape(report.outputs[0].path if report.outputs else report.input)]
    if written:
        parts.append(f"{report.input_bytes / 1e6:.2f} -> {written / 1e6:.2f} MB")
    if report.bits_per_weight is not None:
        parts.append(f"{report.bits_per_weight:.2f} bits a weight")
    # Else the perplexity says whether they are good enough, or the user does.
    judged = rise_of({"tokens": report.tokens}) is None and not report.accepted
    parts += [accuracy(report.sqnr_db, None, judged=judged)] if report.sqnr_db is not None else []
    if report.agreement is not None:
        judged = judged and level_of(None, report.agreement, report.samples.get("cases")) == BAD
        parts.append(accuracy(None, report.agreement, judged=judged))
    parts += counts(report.matches)
    if report.int8_macs_share is not None:
        parts.append(f"int8 {100 * report.int8_macs_share:.0f} % of MACs")
    if report.speedup is not None:
        text = f"{report.speedup:.2f}x (float {report.latency['float_ms']:.3g} ms)"
        if not report.latency.get("sure", True):
            parts.append(f"not certain whether faster, because runs scatter: {text}")
        else:
            parts.append(f"[bold red]slower than float: {text}[/]" if report.slower else f"[green]{text}[/]")
    return "  ".join(parts)


def accuracy(sqnr_db: float | None, agreement: float | None, *, judged: bool = True) -> str:
    """Format the SQNR or the agreement, whichever is given; red if it is `judged` and not good enough."""
    text = f"SQNR {decibels(sqnr_db)}" if sqnr_db is not None else f"agreement {100 * (agreement or 0.0):.1f} %"
    return f"[bold red]{text}[/]" if judged and level_of(sqnr_db, agreement) == BAD else text


def show_latencies(rows: Sequence[Latency]) -> None:
    """Print the runtime, then one line per model; speedups are relative to the first."""
    if rows and rows[0].runtime:
        stderr_console().print(f"in {escape(rows[0].runtime)}")
    _print_latencies(rows)
    for what, part in (("one token behind a prompt", "token"), ("a prompt", "prompt")):
        inner = [one for row in rows if (one := getattr(row, part)) is not None]
        if inner:
            tokens = f" of {PROMPT} tokens"
            stderr_console().print(f"{what}{tokens}:")
            _print_latencies(inner)


def _print_latencies(rows: Sequence[Latency]) -> None:
    heads = ("median ms", "p10", "p90", "speedup", "CPU ms", "CPU speedup")
    measured = all(row.cpu_ms is not None for row in rows)
    table = Table(name_column("model"), *(heads if measured else heads[:4]), box=None, pad_edge=False)
    for row in rows:
        cpu = [f"{row.cpu_ms:.3f}", f"{row.cpu_ratio:.2f}x"] if measured else []
        figures = (f"{row.median_ms:.3f}", f"{row.p10:.3f}", f"{row.p90:.3f}", f"{row.ratio:.2f}x", *cpu)
        table.add_row(escape(str(row.path)), *figures)
    stderr_console().print(table)
