"""The worker process: runs one job, so that a crash or a cancelled run does not affect the server.

The job is one line of JSON on stdin: the paths model, calib, tokenizer, preset, output, report and page; target; level;
length; memory, search_seconds and accept, as in `Settings`.
Lines of JSON go to stdout: `progress` (step, done, total), and at the end `done` or `error`. When stdin closes, the
server has ended, and the worker ends too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import onnxshot
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.delivery.artifacts import ONNX
from onnxshot.errors import OnnxshotError
from onnxshot.progress import Progress
from onnxshot.recipes.sparsity_level import at_level
from onnxshot.recipes.stages import EmitStage, Stage, Stages
from onnxshot.report.report import Report
from onnxshot.targets import target_named


def make(job: dict[str, Any], settings: onnxshot.Settings) -> Report:
    """Do what `onnxshot quantize` does at level 0, and `onnxshot compress --optim-level` above it."""
    preset = job["preset"]
    if preset == "none" and (job["tokenizer"] or job["length"]):
        preset = TextPreset(job["tokenizer"], job["length"], implied=not job["length"])
    how: dict[str, Any] = {"output": job["output"], "preset": preset, "settings": settings}
    calib, target = Path(job["calib"]), target_named(job["target"])
    if not job["level"]:
        return onnxshot.quantize(job["model"], calib, target=target.name, emit=(target.emits,), **how).report
    stages: tuple[Stage, ...] = at_level(job["level"], {"target": target.name}).stages
    if target.emits != ONNX:
        stages += (EmitStage((target.emits,)),)
    return onnxshot.compress(job["model"], calib, recipe=Stages(stages), **how).report


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
        tell(done=True)
    except OnnxshotError as error:
        tell(error=str(error))
    except Exception as error:
        traceback.print_exc()  # to the terminal of the server
        tell(error=f"internal error: {type(error).__name__}: {error}")


def _end_with_stdin() -> None:
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
