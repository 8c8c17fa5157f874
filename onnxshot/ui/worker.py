"""The worker process: runs one job, so that a crash or a cancelled run does not affect the server.

The job is one line of JSON on stdin: the paths model, calib, tokenizer, preset, output, report and page; target; level;
effort; length; goals and searched, as in `Asked`; memory, search_seconds and accept, as in `Settings`.
Lines of JSON go to stdout: `progress` (step, done, total), and at the end `done` with `missed`, the goals that the
result misses, in words; or `error` with `hint`. When stdin closes, the server has ended, and the worker ends too.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import onnxshot
from onnxshot import system
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.delivery.artifacts import ONNX
from onnxshot.errors import OnnxshotError
from onnxshot.progress import Progress
from onnxshot.recipes.sparsity_level import at_level
from onnxshot.recipes.stages import EmitStage, Stage, Stages
from onnxshot.report.report import Report
from onnxshot.search.goal import missed_limit
from onnxshot.targets import target_named
from onnxshot.ui.words import page_words

_GOALS = {"min_sqnr": "the least SQNR", "max_size": "the largest size", "max_latency": "the longest run"}


def make(job: dict[str, Any], settings: onnxshot.Settings) -> Report:
    """Do what `onnxshot quantize` does at level 0, and `onnxshot compress --optim-level` above it."""
    preset = job["preset"]
    if preset == "none" and (job["tokenizer"] or job["length"]):
        preset = TextPreset(job["tokenizer"], job["length"], implied=not job["length"])
    how: dict[str, Any] = {"output": job["output"], "preset": preset, "settings": settings}
    calib, target = Path(job["calib"]), target_named(job["target"])
    options = {"target": target.name} | ({"effort": job["effort"]} if job["effort"] else {})
    if job["searched"]:
        return onnxshot.tune(job["model"], calib, onnxshot.Goal(**job["searched"]), **options, **how).report
    if not job["level"]:
        return onnxshot.quantize(job["model"], calib, emit=(target.emits,), **options, **how).report
    stages: tuple[Stage, ...] = at_level(job["level"], options).stages
    if target.emits != ONNX:
        stages += (EmitStage((target.emits,)),)
    return onnxshot.compress(job["model"], calib, recipe=Stages(stages), **how).report


def missed(job: dict[str, Any], report: Report) -> list[str]:
    """The goals that the result misses, in words."""
    if job["searched"]:
        found = list(report.goal["missed"])
    else:
        size = sum(artifact.bytes for artifact in report.outputs) / 1e6
        values = {"min_sqnr": report.sqnr_db, "max_size": size, "max_latency": report.latency.get("ms")}
        units = {"min_sqnr": " dB", "max_size": " MB", "max_latency": " ms"}
        goals = [(name, goal) for name, goal in job["goals"].items() if name in values]
        found = [text for name, goal in goals if (text := missed_limit(name, goal, values[name], units[name]))]
    least = job["goals"].get("min_agreement")
    if least is not None and (report.agreement is None or report.agreement < least):
        text = "is not measured: no output looks like class scores"
        had = text if report.agreement is None else f"is {100 * report.agreement:.1f} %"
        found.append(f"agreement {had}, and {100 * least:g} % was the goal")
    return [functools.reduce(lambda text, name: text.replace(name, _GOALS[name]), _GOALS, text) for text in found]


def settings_of(job: dict[str, Any], progress: Progress) -> onnxshot.Settings:
    """The settings of a job."""
    return onnxshot.Settings(**{name: job[name] for name in ("memory", "search_seconds", "accept")}, progress=progress)


def main() -> None:
    """Read the job, run it, and report progress and the outcome."""
    # What libraries print goes to stderr; messages use a copy of stdout.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()

    def tell(**values: Any) -> None:
        channel.write(json.dumps(values) + "\n")

    try:
        made = make(job, settings_of(job, lambda *step: tell(progress=step)))
        made.save(job["report"])
        made.save(job["page"])
        tell(done=True, missed=missed(job, made))
    except OnnxshotError as error:
        tell(error=page_words(error.message), hint=page_words(error.hint))
    except Exception as error:
        traceback.print_exc()  # to the terminal of the server
        tell(error=f"internal error: {type(error).__name__}: {error}")


def _end_with_stdin() -> None:
    sys.stdin.read()
    system.end_own_tree()


if __name__ == "__main__":
    main()
