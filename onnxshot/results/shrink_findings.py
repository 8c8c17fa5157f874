"""What a search for channels to remove has found, as rows and notes of the report of `shrink`."""

from __future__ import annotations

import numpy as np

from onnxshot.channels.allocation import Allocation
from onnxshot.channels.target_search import Found
from onnxshot.recipes.stages import MULTIPLES, ShrinkStage
from onnxshot.results.shrunk import GroupRow, ShrinkReport
from onnxshot.runtimes.ort_bench import NOISE
from onnxshot.wording import worded

_BLOCKED = ("Conv", "ConvTranspose")  # operators whose kernels compute blocks of channels
_NOT_FASTER = "not faster than before: convolutions of ONNX Runtime run on blocks of 8 or 16 channels, try multiple=16"


def add_missed(report: ShrinkReport, note: str) -> None:
    """Report that the target was missed, and why."""
    report.notes.append(note)
    report.reached = False


def add_found(report: ShrinkReport, found: Found, asked: ShrinkStage) -> None:
    """Report what is removed, the score, and why the target was missed or exceeded."""
    allocation = found.allocation
    report.score, report.drop = found.score, found.drop
    report.notes += found.refused
    if found.missed:
        add_missed(report, found.missed)
    else:
        _add_overshoot(report, allocation, asked)
    report.branches = [branch.name for branch in allocation.branches]
    for curve, removed in zip(allocation.curves, allocation.cut, strict=True):
        group = curve.group
        layers = tuple(node.label for node, _ in group.makers)
        after = int(np.count_nonzero(allocation.alive[group.ids]))
        row = GroupRow(group.name, group.kind, layers, len(group.ids), after, float(curve.loss[removed]))
        report.groups.append(row)


def _add_overshoot(report: ShrinkReport, allocation: Allocation, asked: ShrinkStage) -> None:
    """Note that much more was removed than the target requires."""
    ((name, share),) = asked.targets.items()
    if name not in ("target_flops", "target_params") or not allocation.is_far(share):
        return
    what = "work" if name == "target_flops" else "parameters"
    hint = worded("; a smaller [[multiple]] comes closer") if asked.multiple > 1 else ""
    report.notes.append(
        f"{name} is {share:g}, but only {allocation.share:.1%} of the {what} remain: channels are removed in steps "
        f"(of {asked.multiple} where a layer has as many), and one step less misses the target{hint}"
    )


def add_latency(report: ShrinkReport, latency: float, allocation: Allocation, asked: ShrinkStage) -> None:
    """Report the measured latency, as a share of the given model's, and whether it meets the target."""
    report.latency = latency
    wanted = asked.target_latency
    if report.reached and wanted is not None and latency > wanted + NOISE:
        add_missed(report, f"the final model was measured at {latency:.1%} of the latency")
    if latency > 1 - NOISE and asked.multiple < max(MULTIPLES) and _removes_convolutions(allocation):
        report.notes.append(_NOT_FASTER)


def _removes_convolutions(allocation: Allocation) -> bool:
    """Whether any convolution loses channels."""
    rows = zip(allocation.curves, allocation.cut, strict=True)
    return any(node.op in _BLOCKED for curve, removed in rows if removed for node, _ in curve.group.makers)
