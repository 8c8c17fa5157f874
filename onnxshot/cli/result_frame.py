"""The framed table of a result: the given model beside what was written, figure by figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxshot.cli.terminal import STYLES, say
from onnxshot.delivery.input_files import of_model_file
from onnxshot.report.advice import (
    BAD,
    FLOOR_AGREEMENT,
    FLOOR_DB,
    READY,
    bits_before,
    decibels,
    int8_share,
    is_slower,
    level_of,
    megabytes,
    sizes,
)
from onnxshot.report.counts import counts
from onnxshot.report.html.figures import milliseconds
from onnxshot.report.report import Report
from onnxshot.report.token_figures import perplexities, rise_of, rises
from onnxshot.report.values import Artifact
from onnxshot.targets import RUNTIMES
from onnxshot.wording import counted

_SAME_SIZE = 0.005  # sizes that differ by less are the same
_ONNX = "onnx"


@dataclass(frozen=True, slots=True)
class Line:
    """One figure, before and after, and what that means in words.

    level: of a verdict; it colours the line, whose words say the same.
    gain: whether the words tell of a gain; it colours them alone.
    """

    what: str
    before: str = ""
    after: str = ""
    change: str = ""
    level: str = READY
    gain: bool = False


def print_frame(console: Console, lines: Iterable[Line], before: str = "before", after: str = "after") -> None:
    """Print the lines in a frame; columns without text are left out. Where figures do not fit, each line is a row."""
    rows = list(lines)
    columns = [
        ("", True, [row.what for row in rows]), (before, True, [row.before for row in rows]),
        (after, True, [row.after for row in rows]), ("", False, [row.change for row in rows]),
    ]  # fmt: skip
    kept = [column for column in columns if any(column[2])]
    if console.is_terminal and console.width < _least_width(kept):
        for row in rows:
            figures = " -> ".join(filter(None, (row.before, row.after)))
            told = ", ".join(filter(None, (f"{row.what}: {figures}", row.change)))
            say(console, told, STYLES[row.level] if row.level != READY else "")
        return
    table = Table(box=box.ROUNDED, show_edge=True, show_lines=False, border_style="dim" if console.is_terminal else "")
    for header, whole, _ in kept:
        table.add_column(header, justify="right" if header else "left", no_wrap=whole)
    for number, row in enumerate(rows):
        style = STYLES[row.level] if row.level != READY else ""
        cells = [Text(column[2][number], style=style) for column in kept]
        if row.gain:
            cells[-1].stylize(STYLES[READY])
        table.add_row(*cells)
    console.print(table)


def _least_width(columns: Sequence[tuple[str, bool, Sequence[str]]]) -> int:
    """The least width of a frame, by the header of each column, whether its texts stay whole, and its texts.

    A text that need not stay whole is wrapped at its words.
    """
    parts = [[header, *(texts if whole else " ".join(texts).split())] for header, whole, texts in columns]
    return sum(max(map(cell_len, part)) for part in parts) + 3 * len(columns) + 1


def lines_of(report: Report, artifact: Artifact | None = None) -> list[Line]:
    """The figures of a result; with an artifact that is no .onnx file, those that its own runtime gave."""
    own = artifact is None or artifact.format == _ONNX
    written = artifact.bytes if artifact is not None else _candidate_bytes(report)
    found = [size_line(report.input_bytes, written)] if written else []
    latency = report.latency if artifact is None or own else artifact.latency
    found += [line for line in [speed_line("time", latency)] if line is not None]
    values = report.to_dict()
    share = int8_share(values, None if artifact is None or own else asdict(artifact))
    if share is not None:
        target = report.recipe.get("target")
        where = f"in ONNX Runtime, not in {target}" if own and target in RUNTIMES else ""
        found.append(Line("MACs in int8", "", f"{100 * share:.0f} %", where))
    if own:
        found += [*_of_the_file(report, bits_before(values)), *_decoding(report.decoding)]
        sqnr_db, agreement = report.sqnr_db, report.agreement
    else:
        sqnr_db, agreement = (artifact.sqnr_db, artifact.agreement) if artifact is not None else (None, None)
    # Else the perplexity says whether they are good enough, or the user does.
    judged = rise_of({"tokens": report.tokens}) is None and not report.accepted
    return found + accuracy_lines(sqnr_db, agreement, report.samples, judged=judged)


def _candidate_bytes(report: Report) -> int:
    """Size of the candidate of a comparison, which has no artifact; 0 where it is not known."""
    return round((report.bits_per_weight or 0) * report.parameters / 8) if report.parameters else 0


def _of_the_file(report: Report, bits: float | None) -> list[Line]:
    """Bits of a weight, perplexity, and what is counted in outputs."""
    found = []
    if bits is not None:
        found.append(Line("bits a weight", f"{bits:.2f}", f"{report.bits_per_weight:.2f}", "of the whole file"))
    tokens = report.tokens
    if perplexities({"tokens": tokens}):
        found.append(
            Line(
                "perplexity", f"{tokens['float_perplexity']:.4g}", f"{tokens['perplexity']:.4g}",
                f"{rises(tokens['perplexity_rise'])}",
            )
        )  # fmt: skip
    found += [Line(what, "", figure) for what, figure in map(_split, counts(report.matches))]
    return found


def _split(text: str) -> tuple[str, str]:
    """A count in words as its name and its figure."""
    first = next(i for i, c in enumerate(text) if c.isdigit())
    return text[:first].strip(), text[first:]


def _decoding(decoding: Mapping[str, Any]) -> list[Line]:
    """Time of a token and of a prompt."""
    if not decoding:
        return []
    names = {"token": "a token", "prompt": f"{decoding['prompt_tokens']} tokens"}
    return [line for key, name in names.items() if (line := speed_line(name, decoding[key])) is not None]


def size_line(before: int, after: int) -> Line:
    """Sizes in bytes."""
    if not before or not after:
        return Line("size", megabytes(before) if before else "", megabytes(after) if after else "")
    ratio = before / after
    words = f"{ratio:.2f}x smaller" if ratio > 1 + _SAME_SIZE else f"{1 / ratio:.2f}x larger"
    same = abs(ratio - 1) <= _SAME_SIZE
    level = READY if ratio > 1 - _SAME_SIZE else "caution"
    gain = ratio > 1 + _SAME_SIZE
    return Line("size", *sizes(before, after), "the same" if same else words, level, gain)


def speed_line(what: str, latency: Mapping[str, Any]) -> Line | None:
    """Milliseconds of an inference; None where they were not measured."""
    if "speedup" not in latency:
        return None
    speedup = latency["speedup"]
    words = f"{speedup:.2f}x as fast"
    level = READY
    if not latency.get("sure", True):
        words, level = f"{words} (runs scatter)", "caution"
    elif is_slower(speedup):
        words, level = f"{words}: slower", BAD
    gain = level == READY and speedup > 1
    return Line(what, milliseconds(latency["float_ms"]), milliseconds(latency["ms"]), words, level, gain)


def accuracy_lines(
    sqnr_db: float | None, agreement: float | None, samples: Mapping[str, Any], *, judged: bool = True
) -> list[Line]:
    """SQNR and agreement, whichever there is, and on how many samples."""
    found = []
    if sqnr_db is not None:
        bad = judged and level_of(sqnr_db) == BAD
        count = samples.get("judged")
        held = "held-out " if samples.get("held_out") else ""
        on = f"on {counted(count, f'{held}sample')}" if count else ""
        below = f"below {FLOOR_DB:g} dB" if bad else ""
        found.append(Line("SQNR", "", decibels(sqnr_db), ", ".join(filter(None, (below, on))), BAD if bad else READY))
    if agreement is not None and not math.isnan(agreement):
        bad = judged and level_of(None, agreement, samples.get("cases")) == BAD
        cases = samples.get("cases")
        words = f"below {100 * FLOOR_AGREEMENT:.0f} %" if bad else f"of {counted(cases, 'case')}" if cases else ""
        found.append(Line("agreement", "", f"{100 * agreement:.1f} %", words, BAD if bad else READY))
    return found


def bytes_of(model: Path) -> int:
    """Size of a model, including external data; 0 where it is no file."""
    return sum(read.path.stat().st_size for read in of_model_file(model))


def print_written(console: Console, paths: Sequence[str]) -> None:
    """Print the paths of what was written, whole, one a line."""
    for path in paths:
        console.print(Text(f"wrote {path}"))
