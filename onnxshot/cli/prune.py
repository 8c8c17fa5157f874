"""`prune`: set weights to zero, or cut whole channels out."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.completion import CUT_SCOPES, IMPORTANCES, PATTERNS, one_of
from onnxshot.cli.help import CHANNELS, RESULT, ZEROS
from onnxshot.cli.options import (
    CalibOpt,
    JsonOpt,
    LayerOpt,
    LengthOpt,
    MemoryOpt,
    ModelArg,
    PresetOpt,
    ReportOpt,
    SamplesOpt,
    ScopeOpt,
    SparsityOpt,
    ThreadsOpt,
    TokenizerOpt,
    VerifyOpt,
    files_of,
    layer_sparsity,
    place_of,
    preset_of,
    samples_of,
    share_of,
    tell,
)
from onnxshot.errors import GoalMissed, UsageError
from onnxshot.files.messages import shown
from onnxshot.progress import PRUNING

if TYPE_CHECKING:
    from pathlib import Path

    from onnxshot.results.pruned import PruneReport
    from onnxshot.results.shrunk import ShrinkResult

_SHARES = "50% or 0.5"


def prune(
    model: ModelArg,
    sparsity: SparsityOpt = None,
    pattern: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=ZEROS, autocompletion=one_of(PATTERNS),
            help="unstructured; N:M such as 2:4; block:4x1; or channels (removed whole).",
        ),
    ] = "unstructured",
    scope: ScopeOpt = None,
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    tokenizer: TokenizerOpt = None,
    length: LengthOpt = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", rich_help_panel=RESULT,
            help="Default: MODEL.pruned.onnx, beside MODEL.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", rich_help_panel=ZEROS, help="Prune only the nodes that it matches. Repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", rich_help_panel=ZEROS, help="Do not prune the nodes that it matches. Repeatable."),
    ] = None,
    layer: LayerOpt = None,
    keep_zeros: Annotated[
        bool,
        typer.Option("--keep-zeros", rich_help_panel=ZEROS, help="Keep the zeros of the input, and count them."),
    ] = False,
    target_flops: Annotated[
        str | None,
        typer.Option(metavar="SHARE", rich_help_panel=CHANNELS, help="Share of the multiply-accumulates to keep."),
    ] = None,
    target_params: Annotated[
        str | None, typer.Option(metavar="SHARE", rich_help_panel=CHANNELS, help="Share of the parameters to keep.")
    ] = None,
    target_latency: Annotated[
        str | None, typer.Option(metavar="SHARE", rich_help_panel=CHANNELS, help="Share of the latency to keep.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", rich_help_panel=CHANNELS, help="Cut until the score of --eval fell by this."),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--eval", metavar="CODE", rich_help_panel=CHANNELS,
            help="file.py:function that scores a model; higher is better.",
        ),
    ] = None,
    prune_scope: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=CHANNELS, autocompletion=one_of(CUT_SCOPES),
            help="What may be cut: all, mlp or heads.",
        ),
    ] = "all",
    multiple: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=CHANNELS, help="Widths become a multiple of 1, 8 or 16.")
    ] = 8,
    importance: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=CHANNELS, autocompletion=one_of(IMPORTANCES),
            help="How they are ranked: error, activation, batchnorm, l1, l2, auto.",
        ),
    ] = "auto",
    samples: SamplesOpt = "auto",
    report: ReportOpt = None,
    verify: VerifyOpt = True,
    threads: ThreadsOpt = 2,
    memory: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Set weights of a model to zero, or remove channels.

    With samples, the weights that stay make up for those that go. Zeros need a runtime that skips them to save time.
    """
    from onnxshot.cli import tables
    from onnxshot.report.saving import save_report

    reading = preset_of(preset, tokenizer, length)
    out, named = place_of(output, model.parent / f"{model.stem}.pruned.onnx")
    zeros = share_of("--sparsity", sparsity, _SHARES)
    targets = {
        "target_flops": share_of("--target-flops", target_flops, _SHARES),
        "target_params": share_of("--target-params", target_params, _SHARES),
        "target_latency": share_of("--target-latency", target_latency, _SHARES), "max_drop": max_drop,
    }  # fmt: skip
    channels = pattern == "channels"
    if not channels and get_close_matches(pattern, ["channels"], cutoff=0.7):
        raise UsageError(f"--pattern is {shown(pattern)}", "did you mean channels?")
    of_zeros = {"scope": scope is not None, "layer": bool(layer), "keep-zeros": keep_zeros}
    of_channels = {name.replace("_", "-"): value is not None for name, value in targets.items()}
    if wrong := [name for name, given in (of_zeros if channels else of_channels).items() if given]:
        hint = "it applies to patterns that set zeros" if channels else "it applies to --pattern channels"
        raise UsageError(f"--{wrong[0]} with --pattern {pattern}", hint)
    if prune_scope not in CUT_SCOPES:
        raise UsageError(f"--prune-scope is {shown(prune_scope)}", f"one of {', '.join(CUT_SCOPES)}")
    if channels and zeros is not None:
        if beside := [name for name, given in of_channels.items() if given]:
            raise UsageError(f"--sparsity is given beside --{beside[0]}", "give one of them")
        if not 0 <= zeros < 1:
            raise UsageError(f"--sparsity is {zeros:g}", "give a share from 0 up to but not including 1, such as 0.5")
        targets["target_flops"] = 1 - zeros
    files = files_of(report, unnamed=() if named else (out,))
    result: ShrinkResult | onnxshot.PruneResult
    with terminal.progress(not as_json, stages=PRUNING) as show:
        settings = onnxshot.Settings(
            samples=samples_of(samples), verify=verify, threads=threads, memory=memory, files=files,
            progress=show,
        )  # fmt: skip
        if channels:
            result = onnxshot.shrink(
                model, calib, **targets, evaluate=evaluation, scope=prune_scope, multiple=multiple,  # type: ignore[arg-type]
                include=include or (), exclude=exclude or (), importance=importance, output=out,  # type: ignore[arg-type]
                preset=reading, settings=settings,
            )  # fmt: skip
        else:
            result = onnxshot.prune(
                model, calib, sparsity=zeros, pattern=pattern, scope=scope, output=out, preset=reading,  # type: ignore[arg-type]
                include=include or (), exclude=exclude or (), layers=dict(map(layer_sparsity, layer or ())),
                keep_zeros=keep_zeros, settings=settings,
            )  # fmt: skip
    if report is not None:
        save_report(result.report.to_dict(), report)
    if isinstance(result, onnxshot.PruneResult):
        pruned = result.report
        tell(as_json, pruned.to_dict(), lambda: _show_zeros(pruned, report))
        return
    cut = result.report
    tell(as_json, cut.to_dict(), lambda: tables.show_shrunk(cut, model, out, report), output=out)
    if not cut.reached:
        raise GoalMissed(f"{out} was written, but it does not reach the target", "no more can be cut")


def _show_zeros(pruned: PruneReport, report: Path | None) -> None:
    """Print the report on zeros, and first what they do not do."""
    from onnxshot.cli import tables

    terminal.show_text("zeros do not make a model faster in ONNX Runtime; --pattern channels does")
    tables.show_pruned(pruned, report)
