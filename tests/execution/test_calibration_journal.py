"""A calibration pass that is killed goes on there: the same statistics, and nothing is run twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade.core import model, weight

import onnxshot
from onnxshot import memory
from onnxshot.calibration.readers import Sample
from onnxshot.cli import app as cli
from onnxshot.execution import calibration_journal, statistics_cache
from onnxshot.execution.calibration_journal import Journal, open_journal
from onnxshot.execution.collect import Collected, collect
from onnxshot.files.temporary_folders import Part
from onnxshot.graph import Model, shape_inference
from onnxshot.graph.load import load_model
from onnxshot.runtimes.ort_session import SessionRunner
from onnxshot.runtimes.spool import Spool

WIDTH, LAYERS = 48, 5
NET = (
    "g (float[N, 48] x) => (float[N, 48] y) {\n"
    + "\n".join(
        f"p{i} = MatMul({'x' if i == 0 else f'a{i - 1}'}, w{i})\n r{i} = Relu(p{i})\n"
        f"{'y' if i == LAYERS - 1 else f'a{i}'} = Add(r{i}, {'x' if i == 0 else f'a{i - 1}'})"
        for i in range(LAYERS)
    )
    + "}"
)
NAMES = ["y", "x", *(f"r{i}" for i in range(LAYERS)), "a0", "a3"]
KEY = "0" * 64


class Killed(BaseException):
    """Ends a run at a certain moment."""


def proto() -> onnx.ModelProto:
    return model(NET, {f"w{i}": weight(WIDTH, WIDTH) for i in range(LAYERS)})


def net() -> Model:
    ready = load_model(proto())
    shape_inference.infer(ready)
    return ready


def samples(n: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    given = (rng.standard_normal((3 + i % 4, WIDTH)).astype(np.float32) for i in range(n))
    return [Sample(f"s{i}", {"x": values}) for i, values in enumerate(given)]


@pytest.fixture(autouse=True)
def _in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "part_bytes", lambda: 4 * WIDTH * WIDTH)
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration_journal, "_kept", set())


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with each inference."""
    made: list[int] = []
    run = SessionRunner.run

    def counted(self: SessionRunner, feed: object, outputs: Sequence[str] | None = None) -> object:
        made.append(1)
        return run(self, feed, outputs)

    monkeypatch.setattr(SessionRunner, "run", counted)
    return made


def journal() -> Journal:
    found = open_journal(KEY, memory.part_bytes())
    assert found is not None
    return found


def collected(given: list[Sample], kept: Journal | None = None, *, settle: bool = False, after: int = 0) -> Collected:
    """The statistics of all tensors, or a run that is killed after so many inferences."""
    left = [after]

    def step(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    return collect(net(), NAMES, given, channels=["a0"], settle=settle, progress=step, journal=kept)


@pytest.mark.parametrize("settle", [False, True])
@pytest.mark.parametrize("after", [1, 70, 130, 259, 400])
def test_a_killed_pass_goes_on_where_it_was(runs: list[int], settle: bool, after: int) -> None:
    given = samples(100)
    wanted = collected(given, settle=settle)
    alone = len(runs)
    assert alone == 100 * LAYERS
    runs.clear()
    with pytest.raises(Killed):
        collected(given, journal(), settle=settle, after=after)
    finished = 0
    for size in (48, 16, 32, 4) if settle else (64, 36):  # samples that go through the parts together
        parts = min((after - 1 - finished) // size, LAYERS)
        finished += parts * size
        if parts < LAYERS:
            break
    runs.clear()
    kept = journal()
    found = collected(given, kept, settle=settle)
    assert found == wanted
    assert len(runs) + kept.restored == alone
    assert kept.restored == finished


def test_each_part_that_was_finished_counts_when_a_pass_is_killed_again_and_again(runs: list[int]) -> None:
    given = samples(20)
    wanted = collected(given)
    runs.clear()
    for part in range(LAYERS - 1):
        kept = journal()
        with pytest.raises(Killed):
            collected(given, kept, after=21)
        assert kept.restored == 20 * part
    kept = journal()
    assert collected(given, kept) == wanted
    assert kept.restored == 20 * (LAYERS - 1)


def test_steps_go_on_too() -> None:
    given, seen = samples(10), list[tuple[str, int, int]]()
    with pytest.raises(Killed):
        collected(given, journal(), after=25)
    collect(net(), NAMES, given, channels=["a0"], progress=lambda *step: seen.append(step), journal=journal())
    assert seen[0] == ("calibrating, part 3 of 5, sample 1 of 10", 21, 50)
    seen.clear()
    collect(net(), NAMES, given, channels=["a0"], progress=lambda *step: seen.append(step), journal=journal())
    assert seen == [("calibrating, part 5 of 5, sample 10 of 10", 50, 50)]


def damage(kind: str, path: Path) -> None:
    data = bytearray(path.read_bytes())
    if kind == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "an array":
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    elif kind == "the list":
        data[-40] ^= 1
        path.write_bytes(data)
    elif kind == "the end":
        data[-1] = 255
        path.write_bytes(data)
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("kind", ["cut short", "empty", "an array", "the list", "the end", "a folder"])
@pytest.mark.parametrize("name", ["0.1.seen", "0.crossing", "pass.json"])
def test_a_damaged_file_is_as_one_that_is_missing(kind: str, name: str) -> None:
    given = samples(6)
    wanted = collected(given)
    kept = journal()
    with pytest.raises(Killed):
        collected(given, kept, after=22)
    damage(kind, kept.place / name)
    if kind == "a folder" and name == "pass.json":
        return  # it is not ours
    again = journal()
    assert collected(given, again) == wanted
    assert again.restored == 0


def test_other_samples_other_cuts_and_other_versions_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    given = samples(6)
    for change in ("samples", "smaller parts", "version"):
        with pytest.raises(Killed):
            collected(given, journal(), after=20)
        if change == "samples":
            given = given[:5]
        elif change == "smaller parts":
            monkeypatch.setattr(memory, "part_bytes", lambda: WIDTH * WIDTH)
        else:
            monkeypatch.setattr(calibration_journal, "__version__", "another")
        kept = journal()
        collected(given, kept)
        assert kept.restored == 0, change
        kept.remove()


def test_a_budget_that_is_a_little_smaller_goes_on_with_the_cuts_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    given = samples(6)
    wanted = collected(given)
    with pytest.raises(Killed):
        collected(given, journal(), after=20)
    monkeypatch.setattr(memory, "part_bytes", lambda: 3 * WIDTH * WIDTH)
    kept = journal()
    assert collected(given, kept).stats == wanted.stats
    assert kept.restored == 18


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    given = samples(6)
    wanted = collected(given)
    monkeypatch.setattr(calibration_journal, "MOST_BYTES", 60_000)
    kept = journal()
    assert collected(given, kept) == wanted
    size = sum(path.stat().st_size for path in kept.place.iterdir())
    assert 10_000 < size < 70_000  # the bound, and a few lists
    other = open_journal("1" * 64, memory.part_bytes())
    assert other is not None
    assert kept.place.exists()
    monkeypatch.setattr(calibration_journal, "MOST_BYTES", 5_000)
    open_journal("2" * 64, memory.part_bytes())
    assert not kept.place.exists()


def test_foreign_files_stay_and_the_cache_is_cleared(tmp_path: Path) -> None:
    kept = journal()
    with pytest.raises(Killed):
        collected(samples(6), kept, after=20)
    foreign = [kept.place / "notes.txt", kept.place.parent / "mine" / "0.1.seen"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert statistics_cache.clear() > 1000
    assert all(path.read_text() == "mine" for path in foreign)
    assert [path.name for path in kept.place.iterdir()] == ["notes.txt"]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "file"))
    assert open_journal(KEY, 1 << 20) is None


def test_arrays_of_every_type_come_back() -> None:
    import ml_dtypes

    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3), np.array(5, np.int64), np.zeros((0, 4), np.float16),
        np.array([1.5, -2], ml_dtypes.bfloat16), np.array([True, False]), np.array([1 + 2j]),
    ]  # fmt: skip
    with Spool() as spool, Spool() as other:
        for i, array in enumerate(arrays):
            spool.put((i, "t"), array)
        journal().chunk(0, [4, 2]).save_crossing(3, [(i, "t") for i in range(len(arrays))], spool)
        assert journal().chunk(0, [4, 2]).load_crossing(other) == 3
        assert journal().chunk(0, [4, 3]).load_crossing(Spool()) == 0
        for i, array in enumerate(arrays):
            found = other.get((i, "t"))
            assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
        spool.put((9, "t"), np.array(["text"]))
        journal().chunk(1, [0]).save_crossing(1, [(9, "t")], spool)
    assert journal().chunk(1, [0]).load_crossing(Spool()) == 0


QUANTIZE = """
import sys, onnxshot
from onnxshot import memory
memory.part_bytes = lambda: 4 * 48 * 48
done = 0
def step(text, *_):
    global done
    done += text.startswith("calibrating")
    if done == int(sys.argv[1]):
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
settings = onnxshot.Settings(verify=False, progress=step)
how = {"effort": "fast", "include": ("MatMul",), "settings": settings}
made = onnxshot.quantize("net.onnx", "calib.npz", output=sys.argv[2], **how)
print("\\n".join(made.report.notes))
"""


def test_ctrl_c_says_that_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(proto(), str(tmp_path / "net.onnx"))
    np.savez(tmp_path / "calib.npz", x=np.stack([s.feed["x"][:3] for s in samples(8)]))
    monkeypatch.chdir(tmp_path)
    words = ["calibrate", "net.onnx", "--calib", "calib.npz", "--include", "MatMul", "-o", "s.npz", "--json"]
    monkeypatch.setattr(sys, "argv", ["onnxshot", *words])
    run, left = SessionRunner.run, [0]

    def interrupted(self: SessionRunner, feed: Any, outputs: Sequence[str] | None = None) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return run(self, feed, outputs)

    monkeypatch.setattr(SessionRunner, "run", interrupted)
    for runs, said in ((3, ""), (10, ", and the next run goes on with what was calibrated")):
        left[0] = runs
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 130
        assert capsys.readouterr().err == f"error: interrupted; nothing is half written{said}\n"
    left[0] = 0
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert left[0] == -(LAYERS - 1) * 6  # six samples are not held out
    assert not calibration_journal.goes_on()


@pytest.mark.slow
def test_after_kill_9_the_next_run_gives_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    onnx.save(proto(), str(tmp_path / "net.onnx"))
    np.savez(tmp_path / "calib.npz", x=np.stack([s.feed["x"][:3] for s in samples(24)]))  # ranges: 12

    def run(after: int, name: str, cache: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "ONNXSHOT_CACHE": str(tmp_path / cache)}
        command = [sys.executable, "-c", QUANTIZE, str(after), name]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    assert run(10**6, "alone.onnx", "one").returncode == 0
    assert run(40, "killed.onnx", "two").returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.onnx").exists()
    again = run(10**6, "killed.onnx", "two")
    assert "calibration went on where an earlier run was ended: 36 runs" in again.stdout, again
    assert (tmp_path / "killed.onnx").read_bytes() == (tmp_path / "alone.onnx").read_bytes()
    assert not list((tmp_path / "two" / "unfinished").iterdir())
    assert onnxshot.__version__


def test_half_written_files_of_a_dead_run_go_when_any_model_is_calibrated() -> None:
    journal = open_journal("1" * 64, 100)
    assert journal is not None
    left = Part(journal.place, "0.6")
    (left.path / "file").write_bytes(b"x")
    os.close(left._held[1].pop())  # as if its process had died
    assert open_journal(KEY, 100) is not None
    assert [path.name for path in journal.place.iterdir()] == ["pass.json"]
