"""What long work tells: the step, the part, the sample, and about how long the rest will take."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pseudo_terminal
import pytest
from handmade.core import model, weight

import onnxshot
from onnxshot import memory, progress
from onnxshot.graph.lean_model import LeanModel
from onnxshot.progress import PartSteps, doing, telling
from onnxshot.report.report import Report
from onnxshot.runtimes.ort_runtime import Runner

WIDTH = 48
NET = f"g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }}"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BARS = """
import time, onnxshot.progress as p, onnxshot.cli.terminal as t
t.SHOWN_AFTER = p._SECONDS_KNOWN = 0
with t.progress(True) as show:
    show("normalizing", 1, 2)
    time.sleep(0.6)
    steps = p.PartSteps(show, "calibrating", [48, 1024])
    for part in range(1, 13):
        for sample in range(1, 33):
            steps(part, 12, sample, 32)
            time.sleep(0.001)
"""


def test_items_are_samples_in_parts_over_several_walks() -> None:
    seen: list[tuple[str, int, int]] = []
    steps = PartSteps(lambda *step: seen.append(step), "calibrating", [48, 64])
    for part, parts, done, samples in ((1, 2, 1, 32), (2, 2, 32, 32), (1, 2, 16, 16), (2, 2, 16, 16), (1, 2, 4, 16)):
        steps(part, parts, done, samples)
    assert seen == [
        ("calibrating, part 1 of 2, sample 1 of 48 or more", 1, 96),
        ("calibrating, part 2 of 2, sample 32 of 48 or more", 64, 96),
        ("calibrating, part 1 of 2, sample 48 of 48 or more", 80, 96),
        ("calibrating, part 2 of 2, sample 48 of 48 or more", 96, 96),
        ("calibrating, part 1 of 2, sample 52 of 64", 100, 128),
    ]


def test_what_is_left_follows_from_what_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    seen: list[str] = []
    steps = PartSteps(lambda text, done, total: seen.append(text.partition("about ")[2]), "calibrating")
    for part, seconds in (
        (5, 1.0),
        (6, 60.0),
        (7, 120.0),
        (9, 36000.0),
        (10, 36060.0),
    ):  # an earlier run did four parts
        clock[0] = seconds
        steps(part, 10, 10, 10)
    assert seen == ["", "4 min left", "3 min left", "2.4 h left", ""]
    assert [progress.duration(seconds) for seconds in (0.2, 59, 61, 3599, 5400)] == [
        "1 s",
        "59 s",
        "1 min",
        "60 min",
        "1.5 h",
    ]


def test_whatever_walks_over_parts_tells_it_under_the_name_of_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "part_bytes", lambda: 4 * WIDTH * WIDTH)
    runner = Runner(LeanModel.of(model(NET, {f"w{i}": weight(WIDTH, WIDTH) for i in range(2)})))
    feeds = [{"x": np.ones((2, WIDTH), np.float32)}] * 3
    seen: list[str] = []
    report = Report("x.onnx", {})
    with telling(lambda text, done, total: seen.append(text)), report.timed("verify"):
        list(runner.run_all(feeds, 1))
    assert seen[-1] == "comparing, part 2 of 2, sample 3 of 3"
    assert len(seen) == 6
    with telling(None), doing("verify"):
        list(runner.run_all(feeds, 1))
    list(runner.run_all(feeds, 1))
    assert len(seen) == 6


def test_a_verb_tells_its_callback_and_one_without_keeps_still(tmp_path: Path) -> None:
    heard: list[progress.Progress | None] = []

    @onnxshot.settings.budgeted
    def verb(*, settings: onnxshot.Settings | None = None) -> None:
        heard.append(progress._told.get())

    def callback(step: str, done: int, total: int) -> None: ...

    with telling(callback):
        verb()
        verb(settings=onnxshot.Settings())
    verb(settings=onnxshot.Settings(progress=callback))
    assert heard == [callback, None, callback]


def test_a_bar_says_it_all_in_80_columns(tmp_path: Path) -> None:
    shown = pseudo_terminal.run([sys.executable, "-c", BARS], tmp_path, dict(os.environ))
    assert shown.code == 0, shown.text
    lines = [ESCAPES.sub("", line) for line in re.split(r"[\r\n]|\x1b\[1A|\x1b\[2K", shown.text)]
    assert any(re.match(r"normalizing +\S+ 1/2 ", line) for line in lines)
    told = [line for line in lines if line.startswith("calibrating")]
    whole = r"calibrating, part \d+ of 12, sample \d+ of 48 or more(, about \d+ s left)? \S+"
    assert told
    assert all(re.fullmatch(whole, line.rstrip()) for line in told), told
    assert max(map(len, lines)) <= pseudo_terminal.COLUMNS
