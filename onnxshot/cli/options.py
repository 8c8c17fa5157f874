"""Options that several commands share, helpers that parse their values, and `tell`, which prints a result."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from onnxshot.cli import streams, terminal
from onnxshot.cli.completion import DEVICES, EFFORTS, MODES, PRECISIONS, PRESETS, SCOPES, TARGETS, one_of
from onnxshot.cli.help import ACCURACY, DATA, GOALS, MACHINE, MESSAGES, RESULT, RUNTIMES, ZEROS
from onnxshot.errors import UsageError
from onnxshot.files.conflicts import Files, Write
from onnxshot.files.links import named_file, names_folder
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
        "--calib", metavar="DATA", rich_help_panel=DATA,
        help="Samples: a folder or file of pictures, sound, text or arrays; file.py:function; or 'random'.",
    ),
]  # fmt: skip
PresetOpt = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", rich_help_panel=DATA, autocompletion=one_of(PRESETS),
        help="How pictures, sound and text become inputs: a name, a YAML file, or 'none'.",
    ),
]  # fmt: skip
TokenizerOpt = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH", rich_help_panel=DATA,
        help="Text: a tokenizer.json, or its folder. Default: the one beside the model.",
    ),
]  # fmt: skip
LengthOpt = Annotated[
    int | None,
    typer.Option(
        metavar="N", rich_help_panel=DATA, min=1,
        help="Text: tokens of a sample. Default: as the model takes, 256 at most.",
    ),
]  # fmt: skip
TargetOpt = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel=RUNTIMES, autocompletion=one_of(TARGETS),
        help="Where the model will run: ort, ort-avx2, openvino, tensorrt, portable.",
    ),
]  # fmt: skip
PrecisionOpt = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel=ACCURACY, autocompletion=one_of(PRECISIONS),
        help="int8, fp16, bf16 or int8+fp16.",
    ),
]  # fmt: skip
ThreadsOpt = Annotated[
    int,
    typer.Option(
        metavar="N", rich_help_panel=MACHINE, min=1, max=MOST_THREADS, help="CPU threads of each inference."
    ),
]  # fmt: skip
MemoryOpt = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="SIZE", rich_help_panel=MACHINE,
        help="Memory to use, such as 4G. Default: a quarter of what is free.",
    ),
]  # fmt: skip
SamplesOpt = Annotated[
    str,
    typer.Option(
        metavar="N", rich_help_panel=DATA, autocompletion=one_of(("auto", "all")),
        help="How many samples: a number, all, or auto (until the ranges settle).",
    ),
]  # fmt: skip
DeviceOpt = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel=MACHINE, autocompletion=one_of(DEVICES),
        help="Where calibration runs: cpu, cuda, openvino.",
    ),
]  # fmt: skip
SeedOpt = Annotated[int, typer.Option(metavar="N", rich_help_panel=DATA, help="Seed of random samples.")]
CacheOpt = Annotated[
    bool,
    typer.Option("--cache/--no-cache", rich_help_panel=MACHINE, help="Calibrate again, and leave the cache alone."),
]
JsonOpt = Annotated[
    bool, typer.Option("--json", rich_help_panel=MESSAGES, help="Print one JSON object on stdout, and nothing else.")
]
StatsOpt = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", rich_help_panel=DATA, help="Statistics of 'onnxshot calibrate', in place of calibration."
    ),
]  # fmt: skip
RecipeOpt = Annotated[
    Path | None,
    typer.Option(
        "--recipe", metavar="FILE", rich_help_panel=RESULT,
        help="What to do, as YAML, or a report that holds it. Options override it.",
    ),
]  # fmt: skip
SetOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", rich_help_panel=RESULT,
        help="An argument of the file, ${NAME:DEFAULT} there. Repeatable.",
    ),
]  # fmt: skip
ReportOpt = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", rich_help_panel=RESULT, parser=named_file,
        help="Also write a report: a page (.html), else JSON.",
    ),
]  # fmt: skip
LogOpt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND:WHERE", rich_help_panel=RESULT, autocompletion=one_of(("tensorboard:", "wandb:", "mlflow:")),
        help="Also log to tensorboard:FOLDER, wandb:PROJECT or mlflow:URI. Repeatable.",
    ),
]  # fmt: skip
SearchTimeOpt = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", rich_help_panel=ACCURACY,
        help="How long to try to mend a bad result. Default: as long as the run, 30 at least.",
    ),
]  # fmt: skip
AcceptOpt = Annotated[
    bool,
    typer.Option(
        "--accept", rich_help_panel=GOALS, help="Exit with 0 also for bad accuracy or a goal that is missed."
    ),
]  # fmt: skip
BundleOpt = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", rich_help_panel=RESULT,
        help="Also write a folder to deploy: results, samples and a manifest.",
    ),
]  # fmt: skip
ExcludeOpt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB", rich_help_panel=ACCURACY,
        help="Leave nodes in float, by node name, tensor name or op type. Repeatable.",
    ),
]  # fmt: skip
IncludeOpt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB", rich_help_panel=ACCURACY,
        help="Quantize nodes that a rule would leave in float. Repeatable.",
    ),
]  # fmt: skip
ModeOpt = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel=ACCURACY, autocompletion=one_of(MODES),
        help="static (calibrated); dynamic or weights (no data); auto (the faster).",
    ),
]  # fmt: skip
EffortOpt = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel=ACCURACY, autocompletion=one_of(EFFORTS),
        help="What is tried for accuracy: fast, balanced or best (slow).",
    ),
]  # fmt: skip
EvalOpt = Annotated[
    str | None,
    typer.Option(
        "--eval", metavar="CODE", rich_help_panel=GOALS,
        help="file.py:function that scores a model; higher is better.",
    ),
]  # fmt: skip
SparsityOpt = Annotated[
    str | None,
    typer.Option(metavar="SHARE", rich_help_panel=ZEROS, help="Share of the weights that become zero: 0.5, or 50%."),
]
ScopeOpt = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", rich_help_panel=ZEROS, autocompletion=one_of(SCOPES),
        help="Zeros over layers: layer, global, erk, auto. Default: auto with --calib, else layer.",
    ),
]  # fmt: skip
LayerOpt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB=SHARE", rich_help_panel=ZEROS, help="Sparsity of the layers that it matches. Repeatable."
    ),
]  # fmt: skip
VerifyOpt = Annotated[
    bool,
    typer.Option("--verify/--no-verify", rich_help_panel=RESULT, help="Do not compare the result with the input."),
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


def samples_of(text: str) -> int | Literal["auto", "all"]:
    """Parse the value of --samples. Raises UsageError if it is invalid."""
    if text in ("auto", "all"):
        return "auto" if text == "auto" else "all"
    if text.isdecimal() and len(text) < _DIGITS and int(text) > 0:
        return int(text)
    raise UsageError(f"--samples is {shown(text)}", "a number above 0, 'auto', or 'all'")


def place_of(given: str | None, usual: Path) -> tuple[Path, bool]:
    """Where a result goes by the value of -o, and whether that names the file.

    given: a file, or a folder, into which the result goes under its usual name: one that is there, or ends in a slash.
    usual: where it goes if nothing is given.
    """
    if given is None:
        return usual, False
    if given == "-":
        raise UsageError("-o is '-'", "a model goes to a file: name one, or a folder")
    folder = is_folder(given)
    return (Path(given) / usual.name if folder else Path(given)), not folder


def is_folder(given: str) -> bool:
    """Whether the value of an option is that of a folder: it ends in a slash, or the folder is there."""
    return names_folder(given) or os.path.isdir(given)  # noqa: PTH112  # false for names that are too long


def arguments_of(given: list[str] | None) -> dict[str, str]:
    """Parse the values of --set into {name: value}. Raises UsageError if one is malformed."""
    arguments = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not (name and sign):
            raise UsageError(f"--set is {shown(text)}", "NAME=VALUE, such as sparsity=0.6")
        arguments[name] = value
    return arguments


def share_of(option: str, text: str | None, example: str = "2% or 0.02") -> float | None:
    """A share given as 2% or 0.02; None if it is not given. Raises UsageError where it is malformed."""
    if text is None:
        return None
    share = _number(text)
    if share is None:
        raise UsageError(f"{option} is {shown(text)}", f"a share, such as {example}")
    return share


def _number(text: str) -> float | None:
    """A number, or percent; None for other text."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    with contextlib.suppress(ValueError):
        return float(number) / (100.0 if percent else 1.0)
    return None


def layer_sparsity(text: str) -> tuple[str, float]:
    """One value of --layer: (glob, sparsity). Raises UsageError where it is malformed."""
    glob, _, text_of_share = text.rpartition("=")
    share = _number(text_of_share)
    if share is None:
        raise UsageError(f"--layer is {text!r}", "GLOB=SPARSITY, such as 'conv1=0.3'")
    return glob, share


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
    from onnxshot.report.saving import no_report

    return Files(of_recipe(recipe, arguments_of(arguments))).writing(
        *(Write(follow_link(place), OUTPUT, foreign_artifact) for place in unnamed),
        *([Write(report, "the report", no_report, option="--report")] if report is not None else []),
        *map(of_bundle, bundle),
    )


def tell(as_json: bool, values: dict[str, Any], show: Callable[[], None], *, output: Path | None = None) -> None:
    """Print the values as one JSON object on stdout when the command ends, or call `show`, which prints for people.

    A quiet command prints the path of the result instead, on stdout; of several artifacts, one a line.
    output: the result, where the values do not name it.
    """
    if as_json:
        from onnxshot.report.values import stamped

        streams.tell(stamped(values))
    elif terminal.is_quiet():
        streams.write_paths(_written(values) if output is None else [str(output)])
    else:
        show()


def _written(values: dict[str, Any]) -> list[str]:
    """The paths that the values of a result name: of the one output, or of artifacts."""
    if isinstance(values.get("output"), str):
        return [values["output"]]
    return [artifact["path"] for artifact in values.get("outputs", ()) if "path" in artifact]
