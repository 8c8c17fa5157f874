"""What commands of the command line share: options, and how a result is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from onnxshot.cli import streams
from onnxshot.errors import UsageError
from onnxshot.files.conflicts import Files, Write
from onnxshot.files.messages import shown
from onnxshot.settings import MOST_THREADS

if TYPE_CHECKING:
    from onnxshot.report.trackers.send import Sink

Loaded = TypeVar("Loaded")

_DIGITS = 19  # of a number of samples

ModelArg = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)]
CalibOpt = Annotated[
    str | None,
    typer.Option(
        "--calib",
        help="Calibration data: a folder of pictures (with --preset), .npy or .npz; one .npz; an onnx test_data_set "
        "folder; module:function or file.py:function yielding dicts; 'random'.",
    ),
]
PresetOpt = Annotated[
    str | None, typer.Option(help="How pictures become inputs: a name, a YAML file, or 'none' for raw arrays.")
]
TargetOpt = Annotated[
    str, typer.Option(help="Where the model will run: ort, ort-avx2, openvino, tensorrt, portable.")
]
PrecisionOpt = Annotated[
    str, typer.Option(help="int8, fp16, bf16 (floats of 16 bits, no int8), int8+fp16 (fp16 for what int8 leaves).")
]
ThreadsOpt = Annotated[int, typer.Option(help="CPU threads of every inference.", min=1, max=MOST_THREADS)]
SamplesOpt = Annotated[
    str, typer.Option(help="auto: until the ranges have settled. all, or a number: that many, evenly spaced.")
]
DeviceOpt = Annotated[str, typer.Option(help="Where calibration runs: cpu, cuda, openvino.")]
CacheOpt = Annotated[bool, typer.Option("--cache/--no-cache", help="Keep and reuse calibration statistics.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
StatsOpt = Annotated[
    Path | None, typer.Option(help="Statistics that 'onnxshot calibrate' wrote: nothing is run to calibrate.")
]
SetOpt = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An argument of the file, ${NAME:DEFAULT} there. Repeatable."),
]
ReportOpt = Annotated[
    Path | None, typer.Option(help="Also write the report here: a page for people (.html), else JSON.")
]
LogOpt = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND:WHERE", help="Also log to tensorboard:FOLDER, wandb:PROJECT or mlflow:URI. Repeatable."),
]
BundleOpt = Annotated[
    Path | None,
    typer.Option(help="Also put all of it into this folder, with samples and a manifest; of several targets, each."),
]
ExcludeOpt = Annotated[
    list[str] | None,
    typer.Option(help="Leave in float: a glob over node names, tensor names and op types. May be repeated."),
]
IncludeOpt = Annotated[
    list[str] | None, typer.Option(help="Quantize although a rule of thumb says no: a glob as in --exclude.")
]


def sinks_of(texts: list[str] | None) -> list[Sink]:
    """The sinks of --log, before any work. Raises UsageError for what is none, or is not installed."""
    if not texts:
        return []
    from onnxshot.report.trackers.send import sink_of

    return [sink_of(text) for text in texts]


def samples_of(text: str) -> int | str:
    """The value of --samples. Raises UsageError for what is none."""
    if text in ("auto", "all"):
        return text
    if text.isdecimal() and len(text) < _DIGITS and int(text) > 0:
        return int(text)
    raise UsageError(f"--samples is {shown(text)}", "a number above 0, 'auto', or 'all'")


def arguments_of(given: list[str] | None) -> dict[str, str]:
    """The values of --set by name. Raises UsageError for what is no argument."""
    arguments = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not (name and sign):
            raise UsageError(f"--set is {shown(text)}", "NAME=VALUE, such as sparsity=0.6")
        arguments[name] = value
    return arguments


def layer_sparsity(text: str) -> tuple[str, float]:
    """One value of --layer: (glob, sparsity). Raises UsageError where it is malformed."""
    glob, _, share = text.rpartition("=")
    try:
        return glob, float(share)
    except ValueError:
        raise UsageError(f"--layer is {text!r}", "GLOB=SPARSITY, such as 'conv1=0.3'") from None


def recipe_of(
    path: Path | None, given: list[str] | None, load: Callable[[Path, dict[str, str]], Loaded]
) -> Loaded | None:
    """What `load` makes of the file of --recipe and the arguments of --set; None where there is no file.

    Raises UsageError for an argument that is none.
    """
    arguments = arguments_of(given)
    if path is None:
        if given:
            raise UsageError("--set is given without --recipe", "it sets an argument of a recipe")
        return None
    return load(path, arguments)


def is_given(context: typer.Context, name: str) -> bool:
    """True where the option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def files_of(
    report: Path | None = None,
    *,
    recipe: Path | None = None,
    arguments: list[str] | None = None,
    bundle: Iterable[Path] = (),
    unnamed: Iterable[Path] = (),
) -> Files:
    """What a command reads and writes itself; the run holds it against its own.

    unnamed: outputs that have the name that they get where the user gives none.
    """
    from onnxshot.delivery.input_files import of_recipe
    from onnxshot.delivery.output_files import OUTPUT, of_bundle
    from onnxshot.delivery.overwrite_checks import foreign_artifact
    from onnxshot.files.links import follow_link

    return Files(of_recipe(recipe, arguments_of(arguments))).writing(
        *(Write(follow_link(place), OUTPUT, foreign_artifact) for place in unnamed),
        *([Write(report, "the report")] if report is not None else []),
        *map(of_bundle, bundle),
    )


def tell(as_json: bool, values: dict[str, Any], show: Callable[[], None]) -> None:
    """One JSON object on stdout, or what `show` prints for people."""
    if as_json:
        streams.write(values)
    else:
        show()
