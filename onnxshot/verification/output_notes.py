"""Notes on outputs that were compared: what their figures do not say, or hide."""

from __future__ import annotations

from onnxshot.comparison.class_scores import Scores
from onnxshot.comparison.output_matches import CLASSES
from onnxshot.report.values import GAP_DB
from onnxshot.verification.output_errors import OutputRow, Picks

_NOISE_FLOOR_DB = 60.0  # above it, rounding alone explains a difference between two runs


def answers_note(row: OutputRow, scores: Scores | None) -> str:
    """A note on class scores whose highest class is always the same, or mostly undecided; else empty."""
    if scores is not None and 2 * scores.undecided > scores.rows and (row.match is None or row.match.kind == CLASSES):
        what = f"in {scores.undecided} of {scores.rows} cases the float model's two highest classes are nearly equal"
        return f"output {row.name!r}: {what}: agreement does not count them; judge on samples that it knows"
    if scores is None or not scores.monotonous or row.match is None or row.match.kind != CLASSES:
        return ""
    what = f"the float model gives class {scores.answer} in all {scores.decided} cases"
    return f"output {row.name!r}: {what}: agreement shows little; judge on samples of several classes"


def part_note(row: OutputRow) -> str:
    """A note on an output with channels that are far quieter than others."""
    part = row.part
    assert part is not None
    where = f"{part.quiet} of {part.channels} channels along axis {part.axis} are over 30 times quieter"
    return f"output {row.name!r}: {where}: SQNR {part.quiet_db:.1f} dB there, {part.loud_db:.1f} dB in the others"


def pick_notes(picks: Picks) -> list[str]:
    """Describe what each ordering node picked, one note per node."""
    ordered = picks.setup.ordered_outputs
    return [
        f"{order.op} {order.node!r} orders {', '.join(map(repr, sorted(ordered[order.number])))}: compared in the "
        f"float model's order; {same / of:.1%} of the picks are the same"
        for order, same, of in picks.counts()
        if of
    ]


def optimizer_loses(fast: float | None, plain: float | None) -> bool:
    """Whether graph optimizations cost more of the SQNR than rounding explains. Both in dB; None if not measured."""
    if fast is None or plain is None:
        return False
    return plain - fast > GAP_DB and fast < _NOISE_FLOOR_DB


def optimizer_note(row: OutputRow) -> str:
    """A note on an output that ONNX Runtime's graph optimizations change; else empty."""
    if not optimizer_loses(row.optimized_db, row.unoptimized_db):
        return ""
    figures = f"SQNR {row.optimized_db:.1f} dB with ONNX Runtime's graph optimizations, {row.unoptimized_db:.1f} dB"
    return f"output {row.name!r}: {figures} without, on the first samples"
