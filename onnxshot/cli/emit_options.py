"""Options of `emit` that `quantize` and `compress` share: formats, shapes, and the paths of artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from onnxshot.cli.completion import FORMATS, one_of
from onnxshot.cli.help import RUNTIMES, TENSORRT
from onnxshot.cli.options import place_of
from onnxshot.errors import UsageError
from onnxshot.files.messages import shown

if TYPE_CHECKING:
    from onnxshot.report.report import Report
    from onnxshot.runtimes.base import EmitOptions

EmitOpt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FORMAT", rich_help_panel=RUNTIMES, autocompletion=one_of(FORMATS),
        help="onnx, openvino, tensorrt; several with commas. Default: by -o, else by TARGET.",
    ),
]  # fmt: skip
ShapesOpt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=RANGE", rich_help_panel=TENSORRT,
        help="Least, usual and most sizes of an input, such as x=1x3x64x64:4x3x64x64:8x3x64x64.",
    ),
]  # fmt: skip
_Given = TypeVar("_Given")
_DIGITS = 19  # most digits of a size; dimensions are int64
BatchOpt = Annotated[
    int | None, typer.Option(metavar="N", rich_help_panel=RUNTIMES, help="Fix the batch dimension at N.", min=1)
]
ShapeOpt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=SIZES", rich_help_panel=RUNTIMES, help="Fix an input, such as x=1x3x224x224. Repeatable."
    ),
]  # fmt: skip
HardwareOpt = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", rich_help_panel=TENSORRT, help="GPU to compile for, such as sm89. Repeatable."),
]
HalfOpt = Annotated[
    bool, typer.Option("--half-weights", rich_help_panel=RUNTIMES, help="OpenVINO: store float weights as float16.")
]
TimingOpt = Annotated[
    Path | None, typer.Option(metavar="FILE", rich_help_panel=TENSORRT, help="A timing cache to read and extend.")
]
MinutesOpt = Annotated[
    float, typer.Option(metavar="MINUTES", rich_help_panel=TENSORRT, help="Time limit for building.", min=0.1)
]


def split_commas(values: Sequence[str] | None) -> tuple[str, ...] | None:
    """Split the values of a repeatable option at commas; None if the option was not given."""
    return tuple(part.strip() for value in values for part in value.split(",")) if values else None


def options_from(
    shapes: Sequence[str] | None,
    hardware: Sequence[str] | None,
    half: bool,
    timings: Path | None,
    minutes: float,
    threads: int,
) -> EmitOptions:
    """Build EmitOptions from command-line values. Raises UsageError for malformed sizes."""
    from onnxshot.runtimes.base import EmitOptions

    return EmitOptions(
        shapes=_once("--shapes", map(_sizes, shapes or ())), hardware=split_commas(hardware) or (), half=half,
        timing_cache=timings, minutes=minutes, threads=threads,
    )  # fmt: skip


def output_paths(
    model: Path, output: str | None, emit: Sequence[str] | None, targets: Sequence[str], precision: str
) -> tuple[dict[str, Path], bool]:
    """Return the output path for each target, and whether the output names that file.

    Without an output the path lies beside the model and ends in the precision, with the suffix of the first requested
    format or of the target's own format. If there are several targets, the name of each is added.
    """
    from onnxshot.targets import RUNTIMES, target_named

    found, named = {}, len(set(targets)) == 1
    for name in dict.fromkeys(targets):
        first = (split_commas(emit) or (target_named(name).emits,))[0]
        suffix = RUNTIMES[first].suffix if first in RUNTIMES else ".onnx"
        place, by_name = place_of(output, model.parent / f"{model.stem}.{precision}{suffix}")
        found[name] = place.with_name(f"{place.stem}.{name}{place.suffix}") if len(set(targets)) > 1 else place
        named = named and by_name
    return found, named


def joint_report(reports: Mapping[str, Report]) -> dict[str, Any]:
    """Return the report of one target, or of several targets all artifacts and the reports by target."""
    from onnxshot.report.values import stamped

    if len(reports) == 1:
        return next(iter(reports.values())).to_dict()
    every = {name: report.to_dict() for name, report in reports.items()}
    first = next(iter(every.values()))
    outputs = [artifact for values in every.values() for artifact in values["outputs"]]
    return stamped({"input": first["input"], "outputs": outputs, "reports": every})


def parse_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Parse the values of --shape into {input name: sizes}. Raises UsageError where one is malformed."""
    every = []
    for text in texts or ():
        name, _, given = text.rpartition("=")
        sizes = tuple(map(_whole, given.split("x")))
        if not name or not all(sizes):
            raise UsageError(f"--shape is {shown(text)}", "give NAME=SIZES, such as x=1x3x224x224")
        every.append((name, sizes))
    return _once("--shape", every)


def _once(option: str, given: Iterable[tuple[str, _Given]]) -> dict[str, _Given]:
    """Collect (input name, value) pairs into a dict. Raises UsageError if an input appears twice."""
    found: dict[str, _Given] = {}
    for name, sizes in given:
        if name in found:
            raise UsageError(f"{option} is given twice for input {shown(name)}", "give it once for each input")
        found[name] = sizes
    return found


def _sizes(text: str) -> tuple[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    name, _, sizes = text.rpartition("=")
    found = [tuple(map(_whole, part.split("x"))) for part in sizes.split(":")]
    if not name or len(found) not in (1, 3) or any(0 in part for part in found) or len(set(map(len, found))) > 1:
        hint = "give NAME=LEAST:USUAL:MOST, such as x=1x3x224x224:8x3x224x224:32x3x224x224"
        raise UsageError(f"--shapes is {shown(text)}", hint)
    return name, (found[0], found[len(found) // 2], found[-1])


def _whole(text: str) -> int:
    """Parse a size that fits into int64; 0 for any other text."""
    return int(text) if text.isdecimal() and len(text) < _DIGITS else 0
