"""Assertions for the tests of people who ship models: a candidate is held against its float model.

import onnxshot.testing

def test_the_int8_model_is_as_good_as_the_float_model():
onnxshot.testing.assert_accuracy("net.int8.onnx", "samples/", reference="net.onnx", min_sqnr=25)
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxshot.api.compare import compare
from onnxshot.arguments import checked
from onnxshot.calibration.given import Transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.errors import UsageError
from onnxshot.report.counts import counts
from onnxshot.report.digits import apart
from onnxshot.report.report import Report
from onnxshot.report.token_figures import rise_of
from onnxshot.results.model_source import ModelSource
from onnxshot.results.quantized import Result
from onnxshot.settings import Settings
from onnxshot.wording import counted

__all__ = ["assert_accuracy"]

_WORST = 5  # outputs and tensors in a message


@checked
def assert_accuracy(
    model: ModelSource,
    calib: Any,
    *,
    reference: ModelSource | None = None,
    min_sqnr: float | None = None,
    min_agreement: float | None = None,
    max_perplexity_rise: float | None = None,
    min_int8_share: float | None = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    settings: Settings | None = None,
) -> Report:
    """Assert that a model answers as its float model does, on all samples.

    Args:
        model: the model that is tested, such as a file or the result of `quantize`.
        calib: samples, as `quantize` takes them. Give others than the model was calibrated on.
        reference: the float model. It may be left out for a result of this process whose input was a file.
        min_sqnr: least SQNR in dB, of all outputs together and of each.
        min_agreement: least share 0..1 of equal answers.
        max_perplexity_rise: largest share by which the perplexity of a language model may rise: 0.02 for 2 %.
        min_int8_share: least share 0..1 of the multiply-accumulates of the model that ONNX Runtime runs in int8. Work
            that stays in float for any reason counts too, so that few models reach 1.0.
        preset: how samples become inputs.
        transform: called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        settings: threads and the like. Speed is not judged.

    Returns:
        The report of the comparison.

    Raises:
        AssertionError: a limit is missed, or a figure that it limits cannot be measured. The message has the figures,
            and tables of the worst outputs and tensors.
        UsageError: no limit is given, a share is not one from 0 to 1, or there is no reference.
        ModelError, CalibrationError: as for `compare`.

    Example:
        >>> onnxshot.testing.assert_accuracy("net.int8.onnx", "samples/", reference="net.onnx", min_sqnr=25)
    """
    __tracebackhide__ = True  # pytest shows the caller's line
    shares = {"min_agreement": min_agreement, "min_int8_share": min_int8_share}
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise UsageError(f"{name} is {share}", "give a share from 0 to 1, such as 0.95")
    for name, number in {"min_sqnr": min_sqnr, "max_perplexity_rise": max_perplexity_rise}.items():
        if number is not None and math.isnan(number):
            raise UsageError(f"{name} is nan", "give a number: nothing is below a NaN")
    asked = (min_sqnr, min_agreement, max_perplexity_rise, min_int8_share)
    if all(limit is None for limit in asked):
        hint = "give min_sqnr, min_agreement, max_perplexity_rise or min_int8_share"
        raise UsageError("there is nothing to assert", hint)
    settings = replace(settings or Settings(), bench_seconds=0.0)
    report = compare(
        _reference_of(model) if reference is None else reference, model, calib, preset=preset, transform=transform,
        settings=settings,
    )  # fmt: skip
    rise = rise_of(report.to_dict())
    rows = [
        _row("SQNR", min_sqnr, report.worst_db, " dB"),
        _row("agreement", min_agreement, report.agreement, " %", scale=100),
        _row("perplexity", max_perplexity_rise, rise, " % more", scale=100, most=True),
        _row("MACs in int8", min_int8_share, report.int8_macs_share, " %", scale=100),
    ]
    if any(missed for _, missed in rows):
        lines = [line for line, _ in rows if line]
        floats = _in_float(report) if rows[-1][1] else []
        raise AssertionError("\n".join([_headline(report), *lines, *floats, *_worst(report)]))
    return report


def _reference_of(model: ModelSource) -> Path:
    """The file that a result was made from. Raises UsageError where it is not known, or is gone."""
    if isinstance(model, Result) and Path(model.report.input).is_file():
        return Path(model.report.input)
    raise UsageError("there is no float model to compare with", "give reference=, the model this one was made from")


def _row(
    name: str, limit: float | None, found: float | None, unit: str, *, scale: float = 1.0, most: bool = False
) -> tuple[str, bool]:
    """A line of the message, and whether the limit is missed; no line without a limit."""
    if limit is None:
        return "", False
    missed = found is None or math.isnan(found) or (found > limit if most else found < limit)
    text = "not measured" if found is None else f"{apart(scale * found, scale * limit, 2)}{unit}"
    least = "at most" if most else "at least"
    return f"  {'MISSED' if missed else 'ok':6}  {name:12}  {text:>14}   {least} {scale * limit:g}{unit}", missed


def _in_float(report: Report) -> list[str]:
    """The shares of the work that are not in int8, by operator."""
    most = sorted(report.float_macs.items(), key=lambda pair: -pair[1])[:_WORST]
    return ["  not in int8", *(f"    {100 * share:8.2g} %  {op}" for op, share in most)] if most else []


def _headline(report: Report) -> str:
    samples = report.samples
    count = counted(samples.get("judged", 0), "sample")
    random = " of random numbers" if samples.get("random") else ""
    name = "the model" if report.input.startswith("(") else report.input
    return f"{name} is not as asked, on {count}{random}:"


def _worst(report: Report) -> list[str]:
    """Tables of the outputs and tensors that are furthest from the float model."""
    lines = [f"  the same as float: {text}" for text in counts(report.to_dict().get("matches") or {})]
    outputs = sorted(report.output_sqnr_db.items(), key=lambda pair: pair[1])[:_WORST]
    if outputs:
        lines += ["  worst outputs", *(f"    {db:8.1f} dB  {name}" for name, db in outputs)]
    if report.worst:
        lines.append("  worst tensors")
        lines += [f"    {row.sqnr_db:8.1f} dB  {row.tensor} ({row.op})" for row in report.worst[:_WORST]]
    if report.contract:
        lines.append(f"  inputs and outputs differ: {report.contract}")
    return lines
