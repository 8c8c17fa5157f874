"""Statistics as files: what calibrate writes, quantize uses, and several machines join."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from array_statistics import observe
from handmade import HANDMADE
from handmade.core import samples
from typer.testing import CliRunner

import onnxshot
import onnxshot.api.calibrate
from onnxshot import Settings, quantize
from onnxshot.api import calibrate
from onnxshot.api.calibrate import merge_files
from onnxshot.calibration.sample_parts import parts_of
from onnxshot.calibration.statistics_file import Statistics, data_hash, join, load_statistics
from onnxshot.calibration.stats import to_arrays
from onnxshot.cli.app import app
from onnxshot.errors import CalibrationError, UsageError
from onnxshot.execution import statistics_cache, statistics_source
from onnxshot.report import advice

FAST = Settings(samples="all", verify=False, use_cache=False, threads=1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()  # of its own: `cache clear` frees what killed runs have left in the system's
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache"


@pytest.fixture
def net(tmp_path: Path) -> Path:
    onnx.save(HANDMADE["resnet_block"]().model, str(tmp_path / "net.onnx"))
    return tmp_path / "net.onnx"


def feeds(n: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    shape = next(iter(HANDMADE["resnet_block"]().feeds[0].values())).shape
    name = next(iter(HANDMADE["resnet_block"]().feeds[0]))
    return samples([{name: rng.standard_normal(shape).astype(np.float32)} for _ in range(n)])


def save(folder: Path, given: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    for i, feed in enumerate(given):
        np.savez(folder / f"{i:03}.npz", **feed)
    return folder


def some() -> Statistics:
    rng = np.random.default_rng(0)
    tensors = {name: observe(rng.standard_normal((2, 3, 50)).astype(np.float32)) for name in "ab"}
    return Statistics(tensors, "1" * 64, "2" * 64, ("3" * 64, "4" * 64), 7, ("odd",))


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path = some().save(tmp_path / "deep" / "s.npz")
    assert load_statistics(path) == some()
    assert [p.name for p in path.parent.iterdir()] == ["s.npz"]
    with pytest.raises(UsageError, match="npz"):
        some().save(tmp_path / "s.json")


@pytest.mark.parametrize("what", ["missing", "other arrays", "another format", "not an archive", "cut", "no samples"])
def test_what_is_no_statistics_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / "s.npz"
    if what == "other arrays":
        np.savez(path, x=np.zeros(3))
    elif what != "missing":
        some().save(path)
        arrays = dict(np.load(path))
        if what in ("another format", "no samples"):
            head = json.loads(arrays["meta"].tobytes())
            head["format"] = 99 if what == "another format" else head["format"]
            head["samples"] = head["samples"] if what == "another format" else 5
            arrays["meta"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
        elif what == "cut":
            arrays["counts"] = arrays["counts"][:-3]
        np.savez(path, **arrays)
        if what == "not an archive":
            path.write_bytes(b"onnx")
    with pytest.raises(CalibrationError) as caught:
        load_statistics(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_shards_of_several_machines_are_one_run(net: Path, tmp_path: Path) -> None:
    given = feeds(20)
    whole = onnxshot.calibrate(net, given, settings=FAST, holdout=0)
    parts = [(0, 7), (7, 12), (12, 20)]
    for i, (start, end) in enumerate(parts):
        shard = given[start:end][::-1]  # the order on each machine is its own
        onnxshot.calibrate(net, shard, output=tmp_path / f"{i}.npz", settings=FAST, holdout=0)
    joined = merge_files([tmp_path / f"{i}.npz" for i in (2, 0, 1)], tmp_path / "all.npz")
    assert joined == load_statistics(tmp_path / "all.npz")
    assert joined.tensors == whole.tensors
    assert (joined.data, joined.model, joined.samples) == (whole.data, whole.model, whole.samples)
    assert joined.considered == 20
    whole.save(tmp_path / "whole.npz")
    models = [quantize(net, stats=tmp_path / f"{s}.npz", settings=FAST).model.to_proto() for s in ("whole", "all")]
    assert models[0] == models[1]


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    mine = some()
    other = replace(mine, samples=("5" * 64,))
    for changed, message in (
        (replace(other, model="9" * 64), "another model: 111111111111 and 999999999999"),
        (replace(other, preset="9" * 64), "another preset: 222222222222 and 999999999999"),
        (mine, "sample 333333333333 is in a and in b"),
        (replace(other, tensors={"a": mine.tensors["a"]}), "b has no statistics of tensor 'b'"),
    ):
        with pytest.raises(CalibrationError, match=message):
            join([mine, changed], ["a", "b"])
    mine.save(tmp_path / "a.npz")
    with pytest.raises(UsageError, match="two or more"):
        merge_files([tmp_path / "a.npz"], tmp_path / "c.npz")
    other.save(tmp_path / "b.npz")
    with pytest.raises(UsageError, match="one of the files to merge"):
        merge_files([tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "b.npz")


def test_quantize_with_statistics_runs_nothing_and_gives_the_same_bytes(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = save(tmp_path / "data", feeds(16))
    direct = quantize(net, data, method="percentile", settings=FAST, effort="fast")
    stats = tmp_path / "s.npz"
    onnxshot.calibrate(net, data, output=stats, settings=FAST)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr(statistics_source, "collect", never)
    for calib in (None, data):
        result = quantize(net, calib, stats=stats, method="percentile", settings=FAST, effort="fast")
        assert result.model.to_proto() == direct.model.to_proto()
        assert (result.report.samples["calibration"], result.report.samples["inferences"]) == (12, 0)
    assert result.report.samples["held_out"] == 4, "the quarter that calibrate has left alone"


def test_statistics_of_something_else_are_refused_with_both_hashes(net: Path, tmp_path: Path) -> None:
    data, stats = save(tmp_path / "data", feeds(8)), tmp_path / "s.npz"
    known = onnxshot.calibrate(net, data, output=stats, settings=FAST)
    changed = onnx.load(str(net))
    weight = changed.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name))
    with pytest.raises(CalibrationError, match=f"another model: {known.model[:12]} and [0-9a-f]{{12}} "):
        quantize(changed, stats=stats, settings=FAST)
    other = save(tmp_path / "other", feeds(8, seed=1))
    expected = data_hash([d for d in _digests(other)])[:12]
    with pytest.raises(CalibrationError, match=f"another data set: {known.data[:12]} and {expected} "):
        quantize(net, other, stats=stats, settings=FAST)
    preset = onnxshot.Preset("mine", size=(8, 8))
    with pytest.raises(CalibrationError, match=r"another preset: e3b0c44298fc and [0-9a-f]{12}"):
        quantize(net, data, stats=stats, preset=preset, settings=FAST)
    with pytest.raises(CalibrationError, match="no statistics of tensor"):
        quantize(net, stats=replace(known, tensors={}).save(tmp_path / "none.npz"), settings=FAST)


def _digests(folder: Path) -> list[str]:
    from onnxshot.calibration.readers import open_data
    from onnxshot.graph.load import load_model
    from onnxshot.rewriting.model_inputs import input_specs

    return open_data(folder, input_specs(load_model(HANDMADE["resnet_block"]().model))).digests()


def test_calibrated_on_everything_it_is_judged_on_the_same_and_says_so(net: Path, tmp_path: Path) -> None:
    data, stats = save(tmp_path / "data", feeds(8)), tmp_path / "s.npz"
    onnxshot.calibrate(net, data, output=stats, settings=FAST, holdout=0)
    report = quantize(net, data, stats=stats, settings=FAST).report
    assert report.samples["held_out"] == 0, "nothing was held out of the statistics"
    assert any("measured on samples that were calibrated on" in note for note in report.notes)


def test_calibrate_and_quantize_find_in_the_cache_what_the_other_has_stored(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although `quantize` leaves samples for choices, and `calibrate` keeps the statistics of all."""
    data, settings = save(tmp_path / "data", feeds(40)), Settings(samples="all", verify=False, threads=1)
    onnxshot.calibrate(net, data, settings=settings)
    made = quantize(net, data, settings=settings, effort="fast")
    assert (made.report.samples["calibration"], made.report.samples["inferences"]) == (30, 0)
    statistics_cache.clear()
    assert quantize(net, data, settings=settings, effort="fast").report.samples["inferences"] == 30

    def never(*_: object, **__: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr(statistics_source, "collect", never)
    onnxshot.calibrate(net, data, output=tmp_path / "s.npz", settings=settings)
    given = quantize(net, data, stats=tmp_path / "s.npz", settings=settings, effort="fast")
    assert given.model.to_proto() == made.model.to_proto()
    assert given.report.samples["considered"] == made.report.samples["considered"] == 30


def test_statistics_of_a_file_are_those_of_one_pass_over_all_samples(net: Path) -> None:
    given = feeds(40)
    kept = onnxshot.calibrate(net, given, settings=FAST)
    model, plan = _planned(net)
    with calibrate.open_calib(given, model, None, FAST) as opened:
        once = statistics_source.from_data(model, plan, onnxshot.Recipe(), opened, FAST).statistics
    assert (kept.samples, kept.considered, len(kept.samples)) == (once.samples, once.considered, 30)
    assert _arrays(kept) == _arrays(once)


def test_unusual_samples_among_those_that_choose_are_told_too(net: Path) -> None:
    given, choosing = feeds(40), parts_of(40).choosing
    given[choosing[0]] = {"x": np.zeros_like(given[0]["x"])}
    given[choosing[1]] = {"x": given[0]["x"] * 30}
    given = samples(given)
    told = quantize(net, given, settings=FAST).report.notes
    for notes in (told, onnxshot.calibrate(net, given, settings=FAST).notes):
        assert f"blank samples, one value throughout: '#{choosing[0]}'" in notes
        assert any(f"'#{choosing[1]}' is an outlier" in note for note in notes), notes


def _arrays(statistics: Any) -> dict[str, bytes]:
    return {name: values.tobytes() for name, values in to_arrays(statistics.tensors).items()}


def test_new_cached_and_given_statistics_are_of_the_same_samples(net: Path, tmp_path: Path) -> None:
    """The plans are tried on some of them: a cache must not change which."""
    data, stats = save(tmp_path / "data", feeds(200)), tmp_path / "s.npz"
    settings = Settings(use_cache=True, threads=1, verify=False)
    model, plan = _planned(net)
    with calibrate.open_calib(data, model, None, settings) as opened:
        new, kept = (
            statistics_source.from_data(model, plan, onnxshot.Recipe(), opened, settings) for _ in range(2)
        )
        new.statistics.save(stats)
        given = statistics_source.from_file(stats, model, plan, opened)
    assert (new.inferences, kept.inferences, given.inferences) == (len(new.calibrated), 0, 0)
    assert 32 <= len(new.calibrated) < 150, "it stopped early"
    assert new.calibrated == kept.calibrated == given.calibrated
    assert new.held_out == kept.held_out == given.held_out


def _planned(net: Path) -> tuple[Any, Any]:
    from planned_models import normalized

    from onnxshot.planning.make_plan import make_plan
    from onnxshot.targets import target_named

    model = normalized(onnx.load(str(net)), onnxshot.Recipe())
    return model, make_plan(model, target_named("ort"), onnxshot.Recipe())


def test_the_same_sample_twice_is_told_and_counts_once_in_the_hash(net: Path) -> None:
    given = feeds(8)
    found = onnxshot.calibrate(net, [*given, given[2]], settings=FAST, holdout=0)
    assert len(found.samples) == 8
    assert any("1 calibration sample is a copy of another: 'list #8' equals 'list #2'" in note for note in found.notes)


def test_auto_looks_at_so_many_samples_and_no_more(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxshot.settings, "AUTO_LIMIT", 40)
    auto = Settings(verify=False, use_cache=False, threads=1)
    report = quantize(net, feeds(60), settings=auto).report
    assert report.samples["considered"] == 30
    assert report.samples["held_out"] == 10
    assert "40 of 60 samples, evenly spaced" in report.notes

    def endless() -> Any:
        while True:
            yield from feeds(1)

    assert quantize(net, endless(), settings=auto).report.samples["considered"] == 30
    with pytest.raises(UsageError, match="samples is 'many'"):
        Settings(samples="many")
    with pytest.raises(UsageError, match="samples is 0"):
        Settings(samples=0)


# ---------------------------------------------------------------------- the command line


def run(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_commands_calibrate_merge_and_quantize(net: Path, tmp_path: Path) -> None:
    for i in range(2):
        data = save(tmp_path / f"part{i}", feeds(6, seed=i))
        told = run("calibrate", net, "--calib", data, "--holdout", 0, "--samples", "all", "-o", tmp_path / f"{i}.npz")
        assert (told["samples"], told["considered"]) == (6, 6)
        assert told["data"] == load_statistics(tmp_path / f"{i}.npz").data
    told = run("calibrate", "--merge", tmp_path / "0.npz", tmp_path / "1.npz", "-o", tmp_path / "all.npz")
    assert told["samples"] == 12
    out = tmp_path / "out.onnx"
    told = run("quantize", net, "--stats", tmp_path / "all.npz", "-o", out)
    assert told["samples"]["inferences"] == 0
    assert told["samples"]["calibration"] == 12
    assert out.is_file()
    assert told["sqnr_db"] is None
    assert told["on_random_data"]["sqnr_db"] > 20


def test_the_cache_is_shown_and_cleared(net: Path, tmp_path: Path, folder: Path) -> None:
    data = save(tmp_path / "data", feeds(6))
    run("calibrate", net, "--calib", data, "-o", tmp_path / "s.npz")
    shown = run("cache", "show")
    assert (shown["folder"], shown["entries"]) == (str(folder), 1)
    assert shown["bytes"] == sum(p.stat().st_size for p in folder.iterdir()) > 0
    told = run("quantize", net, "--calib", data, "--no-verify", "-o", tmp_path / "q.onnx")
    assert told["samples"]["inferences"] == 0, "calibrate has filled the cache"
    assert run("cache", "clear")["bytes"] == shown["bytes"]
    assert run("cache", "show")["entries"] == 0
    assert statistics_cache.clear() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("a.npz", "--calib", "x", "--merge", "-o", "c.npz"), 2, "takes no --calib"),
        (("a.onnx", "b.onnx", "--calib", "x", "-o", "c.npz"), 2, "one at a time"),
        (("a.npz", "b.npz", "--merge", "-o", "c.npz"), 5, "a.npz are not there"),
    ],
)
def test_wrong_usage_of_calibrate(arguments: tuple[str, ...], code: int, told: str) -> None:
    command = [sys.executable, "-m", "onnxshot", "calibrate", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


ENDLESS = """
import numpy as np, time
def samples():
    rng = np.random.default_rng(0)
    for i in range(100000):
        if i == 3:
            open({flag!r}, "w").close()
        time.sleep(0.02)
        yield {{{name!r}: rng.standard_normal({shape}).astype(np.float32)}}
"""
SLOW = """
import numpy as np, time
class Samples:
    def __len__(self): return 100000
    def __getitem__(self, i):
        if i > 40:
            open({flag!r}, "w").close()
        time.sleep(0.01)
        return {{{name!r}: np.random.default_rng(i).standard_normal({shape}).astype(np.float32)}}
from collections.abc import Sequence
Sequence.register(Samples)
def samples(): return Samples()
"""


@pytest.mark.parametrize("text", [ENDLESS, SLOW], ids=["while the stream is read", "while samples run"])
def test_ctrl_c_leaves_nothing_behind_and_the_cache_usable(net: Path, tmp_path: Path, folder: Path, text: str) -> None:
    data = save(tmp_path / "data", feeds(6))
    run("calibrate", net, "--calib", data, "-o", tmp_path / "s.npz")
    kept = sorted(p.name for p in folder.iterdir())
    name, x = next(iter(feeds(1)[0].items()))
    flag, temporary, out = tmp_path / "running", tmp_path / "tmp", tmp_path / "out"
    temporary.mkdir()
    out.mkdir()
    (tmp_path / "slow.py").write_text(text.format(flag=str(flag), name=name, shape=x.shape))
    command = [sys.executable, "-m", "onnxshot", "quantize", str(net), "--calib", f"{tmp_path}/slow.py:samples"]
    process = subprocess.Popen(
        [*command, "--samples", "all", "-o", str(out / "q.onnx")],
        env={**os.environ, "TMPDIR": str(temporary)}, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it for what it runs behind
    )  # fmt: skip
    while not flag.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.strip() == "error: interrupted; nothing is half written"
    assert [path.name for path in temporary.iterdir() if path.name != ".ses"] == []  # ONNX Runtime's own
    assert list(out.iterdir()) == []
    assert sorted(p.name for p in folder.iterdir()) == kept
    again = run("quantize", net, "--calib", data, "--no-verify", "-o", out / "q.onnx")
    assert again["samples"]["inferences"] == 0


def test_what_statistics_do_not_reach_is_said_and_not_searched_for(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, proven = HANDMADE["resnet_block"]().feeds, replace(FAST, verify=True, bench_seconds=0.02)
    onnxshot.calibrate(net, data, output=tmp_path / "s.npz", settings=FAST)
    for floor, told in ((15.0, False), (200.0, True)):
        monkeypatch.setattr(advice, "FLOOR_DB", floor)
        report = quantize(net, data, stats=tmp_path / "s.npz", settings=proven).report
        assert (report.verdict.level == "bad") is told
        assert any(note.startswith("nothing better was searched for") for note in report.notes) is told
