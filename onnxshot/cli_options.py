"""What commands of the command line share: options, and how a result is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxshot.errors import UsageError

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
TargetOpt = Annotated[str, typer.Option(help="Where the model will run: ort, ort-avx2, tensorrt.")]
ThreadsOpt = Annotated[int, typer.Option(help="CPU threads of every inference.", min=1)]
SamplesOpt = Annotated[
    str, typer.Option(help="auto: until the ranges have settled. all, or a number: that many, evenly spaced.")
]
DeviceOpt = Annotated[str, typer.Option(help="Where calibration runs: cpu, cuda, openvino.")]
CacheOpt = Annotated[bool, typer.Option("--cache/--no-cache", help="Keep and reuse calibration statistics.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
StatsOpt = Annotated[
    Path | None, typer.Option(help="Statistics that 'onnxshot calibrate' wrote: nothing is run to calibrate.")
]
ExcludeOpt = Annotated[
    list[str] | None,
    typer.Option(help="Leave in float: a glob over node names, tensor names and op types. May be repeated."),
]
IncludeOpt = Annotated[
    list[str] | None, typer.Option(help="Quantize although a rule of thumb says no: a glob as in --exclude.")
]


def samples_of(text: str) -> int | str:
    """The value of --samples. Raises UsageError for what is none."""
    if text in ("auto", "all"):
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UsageError(f"--samples is {text!r}", "a number above 0, 'auto', or 'all'")


def tell(as_json: bool, values: dict[str, Any], show: Callable[[], None]) -> None:
    """One JSON object on stdout, or what `show` prints for people."""
    if as_json:
        sys.stdout.write(json.dumps(values, ensure_ascii=False) + "\n")
    else:
        show()
