"""`doctor`: list runtimes and devices of this machine, and measure what int8 gains in each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Column, Table

import onnxshot
from onnxshot.cli import terminal
from onnxshot.cli.options import JsonOpt, ThreadsOpt, tell

if TYPE_CHECKING:
    from onnxshot.api.doctor import Diagnosis


def doctor(threads: ThreadsOpt = 2, as_json: JsonOpt = False) -> None:
    """List runtimes and devices, and what each gains by int8.

    A small model runs in each of them, in int8 and in float.
    """
    found = onnxshot.doctor(threads=threads)
    tell(as_json, found.to_dict(), lambda: _show(found))


def _show(found: Diagnosis) -> None:
    console, cpu = terminal.stderr_console(), found.processor
    table = Table("part", Column("version", overflow="fold"), Column("what it has", overflow="fold"), box=None)
    table.add_row("onnxshot", found.version, "")
    table.add_row("CPU", escape(cpu.name), escape(f"{cpu.cores} cores, {' '.join(cpu.flags) or 'no known flags'}"))
    for gpu in found.gpus:
        table.add_row("GPU", escape(gpu), "")
    for package in found.packages:
        table.add_row(
            package.name, escape(package.version or "-"), escape(package.problem or ", ".join(package.devices))
        )
    for extra in found.extras:
        missing = f"without {', '.join(extra.missing)}: pip install 'onnxshot[{extra.name}]'"
        table.add_row(f"extra {extra.name}", "-" if extra.missing else "here", escape(missing if extra.missing else ""))
    console.print(table)
    for target, verdict in found.verdicts.items():
        terminal.say(console, f"{target}: {verdict}")
