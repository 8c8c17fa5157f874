"""Options that several commands share, helpers that parse their values, and `tell`, which prints a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from onnxshot.cli import streams
from onnxshot.errors import UsageError
from onnxshot.files.conflicts import Files, Write
from onnxshot.files.messages import shown
from onnxshot.settings import MOST_THREADS

if TYPE_CHECKING:
    from onnxshot.calibration.text_preset import TextPreset
    from onnxshot.report.trackers.send import Sink

Loaded = TypeVar("Loaded")

_DIGITS = 19  # most digits of a number of samples

ModelArg = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)]
CalibOpt = Annotated[
    str | None,
    typer.Option(
        "--calib",
        help="Calibration data: a folder of pictures (with --preset), of .wav, .flac, .txt, .npy or .npz files; one "
        ".wav, .flac, .txt, .jsonl, .tsv or .npz file; an ONNX test_data_set folder; module:function or "
        "file.py:function that yields dicts; or 'random'.",
    ),
]
PresetOpt = Annotated[
    str | None,
    typer.Option(help="How pictures, sounds and texts become inputs: a name, a YAML file, or 'none' for raw arrays."),
]
TokenizerOpt = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="For texts: a tokenizer.json, or the folder that holds it. Default: the one beside the model, or one "
        "folder above.",
    ),
]
LengthOpt = Annotated[
    int | None, typer.Option(help="For texts: tokens of a sample. Default: what the model takes, 256 at most.", min=1)
]
TargetOpt = Annotated[str, typer.Option(help="Where the model will run: ort, ort-avx2, openvino, tensorrt, portable.")]
PrecisionOpt = Annotated[
    str, typer.Option(help="int8; fp16 or bf16 (16-bit floats, no int8); int8+fp16 (fp16 where int8 is not used).")
]
ThreadsOpt = Annotated[int, typer.Option(help="CPU threads of each inference.", min=1, max=MOST_THREADS)]
MemoryOpt = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="SIZE",
        help="Memory to use, such as 4G or 512M; larger models run in parts. Default: a quarter of what is free.",
    ),
]  # fmt: skip
SamplesOpt = Annotated[
    str, typer.Option(help="auto: stop when the ranges have settled; all; or a number of samples, evenly spaced.")
]
DeviceOpt = Annotated[str, typer.Option(help="Where calibration runs: cpu, cuda, openvino.")]
CacheOpt = Annotated[bool, typer.Option("--cache/--no-cache", help="Use the calibration cache.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")]
StatsOpt = Annotated[
    Path | None, typer.Option(help="Statistics that 'onnxshot calibrate' wrote; the model is not calibrated again.")
]
SetOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Set an argument, which the file spells ${NAME:DEFAULT}. Repeatable."
    ),
]
ReportOpt = Annotated[Path | None, typer.Option(help="Also write the report here: as a page (.html), else as JSON.")]
LogOpt = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND:WHERE", help="Also log to tensorboard:FOLDER, wandb:PROJECT or mlflow:URI. Repeatable."),
]
SearchTimeOpt = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Where the result is not good enough: how long to go on with other mixes of int8 and float; 0: not at "
        "all. Default: as long as the run has taken, at least 30.",
    ),
]
AcceptOpt = Annotated[
    bool,
    typer.Option("--accept", help="Accept a result below the floor of accuracy, or one that misses a goal: exit 0."),
]
BundleOpt = Annotated[
    Path | None,
    typer.Option(
        help="Also write a bundle into this folder: the results, samples and a manifest. One folder per target."
    ),
]
ExcludeOpt = Annotated[
    list[str] | None,
    typer.Option(help="Leave nodes in float: a glob over node names, tensor names and op types. May be repeated."),
]
IncludeOpt = Annotated[
    list[str] | None, typer.Option(help="Quantize nodes that a heuristic would leave in float: a glob as in --exclude.")
]


def sinks_of(texts: list[str] | None) -> list[Sink]:
    """Open the trackers of --log. Raises UsageError for an unknown one, or one that is not installed."""
    if not texts:
        return []
    from onnxshot.report.trackers.send import sink_of

    return [sink_of(text) for text in texts]


def preset_of(preset: str | None, tokenizer: Path | None, length: int | None) -> str | TextPreset | None:
    """The preset of --preset, --tokenizer and --length. Raises UsageError where they contradict each other."""
    if tokenizer is None and length is None:
        return preset
    from onnxshot.calibration.preset import load_preset
    from onnxshot.calibration.text_preset import TextPreset

    base = load_preset(preset) if preset is not None else TextPreset()
    if not isinstance(base, TextPreset):
        option = "--tokenizer" if tokenizer is not None else "--length"
        raise UsageError(f"{option} is for texts, and preset {shown(preset)} is not", "give one of them")
    return replace(base, tokenizer=tokenizer or base.tokenizer, length=length or base.length)


def samples_of(text: str) -> int | str:
    """Parse the value of --samples. Raises UsageError if it is invalid."""
    if text in ("auto", "all"):
        return text
    if text.isdecimal() and len(text) < _DIGITS and int(text) > 0:
        return int(text)
    raise UsageError(f"--samples is {shown(text)}", "a number above 0, 'auto', or 'all'")


def arguments_of(given: list[str] | None) -> dict[str, str]:
    """Parse the values of --set into {name: value}. Raises UsageError if one is malformed."""
    arguments = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not (name and sign):
            raise UsageError(f"--set is {shown(text)}", "NAME=VALUE, such as sparsity=0.6")
        arguments[name] = value
    return arguments


def share_of(option: str, text: str | None) -> float | None:
    """A share given as 2% or 0.02; None if it is not given. Raises UsageError where it is malformed."""
    if text is None:
        return None
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        return float(number) / (100.0 if percent else 1.0)
    except ValueError:
        raise UsageError(f"{option} is {shown(text)}", "a share, such as 2% or 0.02") from None


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
    """Load the file of --recipe with the arguments of --set; None if there is no file.

    Raises UsageError for a malformed argument, or for arguments without a file.
    """
    arguments = arguments_of(given)
    if path is None:
        if given:
            raise UsageError("--set is given without --recipe", "it sets an argument of a recipe")
        return None
    return load(path, arguments)


def is_given(context: typer.Context, name: str) -> bool:
    """True if the option was given on the command line."""
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
    """Return the files that the command itself reads and writes; the run checks them for conflicts with its own.

    unnamed: outputs whose path the user did not give, so that a foreign file there must not be replaced.
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
    """Print the values as one JSON object on stdout, or call `show`, which prints for people."""
    if as_json:
        streams.write(values)
    else:
        show()
