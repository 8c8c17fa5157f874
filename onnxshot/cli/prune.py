"""`prune`: set weights to zero, or cut whole channels out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.options import (
    CalibOpt,
    JsonOpt,
    LengthOpt,
    MemoryOpt,
    ModelArg,
    PresetOpt,
    ReportOpt,
    SamplesOpt,
    ThreadsOpt,
    TokenizerOpt,
    files_of,
    layer_sparsity,
    preset_of,
    samples_of,
    tell,
)
from onnxshot.errors import GoalMissed, UsageError

if TYPE_CHECKING:
    from onnxshot.results.shrunk import ShrinkResult


def prune(
    model: ModelArg,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the weights that become zero. N:M patterns fix their own share.")
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            help="unstructured; N:M such as 2:4 (N of M neighbouring inputs stay); block:4x1; channels (removed whole)."
        ),
    ] = "unstructured",
    scope: Annotated[
        str | None,
        typer.Option(
            help="How zeros are distributed over layers: layer, global, erk, or auto (by measured cost). "
            "Default: auto with --calib, else layer."
        ),
    ] = None,
    calib: CalibOpt = None,
    preset: PresetOpt = None,
    tokenizer: TokenizerOpt = None,
    length: LengthOpt = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write. Default: MODEL.pruned.onnx beside the input.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Prune only nodes that this glob matches. Repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Do not prune nodes that this glob matches. Repeatable.")
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB=SPARSITY", help="Sparsity of the layers that GLOB matches. May be repeated."),
    ] = None,
    keep_zeros: Annotated[
        bool, typer.Option("--keep-zeros", help="Keep the zeros of the input, and count them.")
    ] = False,
    target_flops: Annotated[
        float | None, typer.Option(help="Channels: share of the multiply-accumulates to keep.")
    ] = None,
    target_params: Annotated[float | None, typer.Option(help="Channels: share of the parameters to keep.")] = None,
    target_latency: Annotated[float | None, typer.Option(help="Channels: share of the latency to keep.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Channels: largest allowed drop of the score of --eval.")
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option("--eval", help="file.py:function that scores a model; higher is better.")
    ] = None,
    prune_scope: Annotated[str, typer.Option(help="Channels: all, mlp or heads.")] = "all",
    multiple: Annotated[int, typer.Option(help="Channels: widths become a multiple of 1, 8 or 16.")] = 8,
    importance: Annotated[
        str, typer.Option(help="Channels: how they are ranked: error, activation, batchnorm, l1, l2 or auto.")
    ] = "auto",
    samples: SamplesOpt = "auto",
    report: ReportOpt = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare the result with the input.")] = True,
    threads: ThreadsOpt = 2,
    memory: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Set weights of MODEL to zero in one shot; with calibration data, the remaining weights compensate."""
    from onnxshot.cli import tables
    from onnxshot.report.saving import save_report

    reading = preset_of(preset, tokenizer, length)
    out = output or model.parent / f"{model.stem}.pruned.onnx"
    targets = {
        "target_flops": target_flops, "target_params": target_params, "target_latency": target_latency,
        "max_drop": max_drop,
    }  # fmt: skip
    channels = pattern == "channels"
    of_zeros = {"scope": scope is not None, "layer": bool(layer), "keep-zeros": keep_zeros}
    of_channels = {name.replace("_", "-"): value is not None for name, value in targets.items()}
    if wrong := [name for name, given in (of_zeros if channels else of_channels).items() if given]:
        hint = "it applies to patterns that set zeros" if channels else "it applies to --pattern channels"
        raise UsageError(f"--{wrong[0]} with --pattern {pattern}", hint)
    if channels and sparsity is not None:
        targets["target_flops"] = 1 - sparsity
    if not channels and not as_json:
        terminal.show_text("zeros do not make a model faster in ONNX Runtime; --pattern channels does")
    files = files_of(report, unnamed=() if output is not None else (out,))
    result: ShrinkResult | onnxshot.PruneResult
    with terminal.progress(not as_json) as show:
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
                model, calib, sparsity=sparsity, pattern=pattern, scope=scope, output=out, preset=reading,
                include=include or (), exclude=exclude or (), layers=dict(map(layer_sparsity, layer or ())),
                keep_zeros=keep_zeros, settings=settings,
            )  # fmt: skip
    if report is not None:
        save_report(result.report.to_dict(), report)
    if isinstance(result, onnxshot.PruneResult):
        pruned = result.report
        tell(as_json, pruned.to_dict(), lambda: tables.show_pruned(pruned))
        return
    cut = result.report
    tell(as_json, cut.to_dict(), lambda: tables.show_shrunk(cut))
    if not cut.reached:
        raise GoalMissed(f"{out} was written, but it does not reach the target", "no more can be cut")
