"""Batches: every cell is done once, whatever is killed, and with the bytes that a run alone gives."""

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from batch_examples import artifacts, manifest, two_models

from onnxshot import memory
from onnxshot.api.quantize import quantize
from onnxshot.batch import local_engine, memory_needs, ray_engine, run
from onnxshot.batch.cells import Cell
from onnxshot.batch.local_engine import Local
from onnxshot.batch.manifest import load_manifest
from onnxshot.batch.memory_needs import Needs, share_of
from onnxshot.batch.resume import CellKeys
from onnxshot.batch.store import LOG, ROW, Folder
from onnxshot.batch.worker import INTERNAL, run_cell, settings_of
from onnxshot.cli import app as cli
from onnxshot.delivery.write_results import peak_rss_mb
from onnxshot.errors import UsageError
from onnxshot.settings import Settings

BATCH = "from onnxshot.cli.app import entry; entry()"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
    return two_models(tmp_path)


def events(output: Path) -> list[dict[str, Any]]:
    """The lines of the log that are whole."""
    found = []
    for line in (output / LOG).read_text("utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def test_results_have_the_bytes_of_a_run_alone_however_many_workers_there_are(folder: Path) -> None:
    summary = run(folder / "m.yaml", workers=2)
    assert [(row["name"], row["target"], row["verdict"]) for row in summary.rows] == [
        ("one", "ort", "ok"), ("one", "tensorrt", "ok"), ("two", "ort", "ok"), ("two", "tensorrt", "ok"),
    ]  # fmt: skip
    assert summary.exit_code == 0
    together = artifacts(folder / "out")
    assert len(together) == 4
    run(manifest(folder, output="again"), workers=1, use_cache=False)
    assert artifacts(folder / "again") == together
    for (name, target), written in (((p.split("/")[0], p.split("/")[1]), b) for p, b in together.items()):
        path = folder / "alone.onnx"
        quantize(folder / f"{name}.onnx", str(folder / "calib.npz"), output=path, target=target, effort="fast")
        assert path.read_bytes() == written
    assert json.loads((folder / "out" / "summary.json").read_text())["ok"] == 4
    assert sorted(p.name for p in (folder / "out").iterdir()) == [LOG, "one", "summary.json", "two"]


def test_only_what_changed_is_done_again(folder: Path) -> None:
    def done(**changes: Any) -> list[str]:
        rows = run(manifest(folder, targets=["tensorrt"], **changes)).rows
        return [row["name"] for row in rows if not row["resumed"]]

    assert done() == ["one", "two"]
    assert done(thresholds={"min_sqnr": 99}) == []
    assert done(models=["one.onnx", {"model": "two.onnx", "method": "minmax"}]) == ["two"]
    (folder / "out" / "one" / "tensorrt" / "one.onnx").unlink()
    assert done(models=["one.onnx"]) == ["one"]
    model = onnx.load(folder / "one.onnx")
    model.doc_string = "another"
    onnx.save(model, str(folder / "one.onnx"))
    assert done(models=["one.onnx"]) == ["one"]
    assert done(models=["one.onnx"]) == []


def test_a_gate_tells_what_is_missed_and_what_failed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "score.py").write_text("def top(run):\n    return 1.0\ndef bad(run):\n    return 1 / 0\n")
    near = {"max_size": 1e-6, "min_sqnr": 200, "max_latency_ms": 1e9, "max_drop": 0, "eval": "score.py:top"}
    models = [
        {"model": "one.onnx", "thresholds": near},
        {"model": "two.onnx", "thresholds": {"eval": "score.py:bad"}},
        "nowhere.onnx",
    ]
    wanted = {"max_drop": 5, "eval": "score.py:top"}
    path = manifest(folder, models=models, targets=["ort"], thresholds=wanted)
    one, two, three = run(path).rows
    assert one["verdict"] == "missed"
    assert [text.split()[0] for text in one["missed"]] == ["min_sqnr", "max_size_mb"]
    assert one["drop"] == 0
    assert (two["verdict"], two["code"]) == ("failed", 2)
    assert "ZeroDivisionError" in two["error"]
    assert (three["verdict"], three["code"]) == ("failed", 4)
    for some, code in (([models[0]], 3), ([models[2], models[0]], 4)):
        path = manifest(folder, models=some, targets=["ort"], thresholds=wanted)
        monkeypatch.setattr(sys, "argv", ["onnxshot", "batch", str(path)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == code
        assert len(capsys.readouterr().err.splitlines()) == len(some) + 1


def test_stages_are_compressed(folder: Path) -> None:
    stages = {"stages": [{"prune": {"sparsity": 0.5}}, {"quantize": {"effort": "fast"}}]}
    path = manifest(folder, models=[{"model": "one.onnx", "recipe": stages}], targets=["ort"])
    (row,) = run(path).rows
    assert row["verdict"] == "ok"
    report = json.loads((folder / "out/one/ort/report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["input", "pruned", "quantized"]


def test_a_second_batch_is_refused_while_one_writes(folder: Path) -> None:
    store = Folder(folder / "out")
    with pytest.raises(UsageError, match="another batch writes to"):
        run(folder / "m.yaml")
    store.close()


def test_a_torn_line_of_the_log_stays_alone(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text('{"event": "done"}\n{"event": "sta')
    store = Folder(tmp_path)
    store.note({"event": "kept"})
    store.close()
    assert [event["event"] for event in events(tmp_path)] == ["done", "kept"]


FAKE = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    {body}
    print(json.dumps({{"key": "k", **row}}), flush=True)
"""


def faked(body: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """What an engine makes of four cells whose worker processes run `body`, which must set `row`."""
    script = folder / "fake.py"
    script.write_text(FAKE.format(body=body.replace("\n", "\n    ")))
    started = subprocess.Popen

    def popen(command: list[str], **how: Any) -> Any:
        return started([sys.executable, str(script)], **how)

    monkeypatch.setattr(local_engine.subprocess, "Popen", popen)

    def rows(engine: Local) -> list[dict[str, Any]]:
        found, store = load_manifest(folder / "m.yaml"), Folder(folder / "out")
        cells = [Cell(entry, target) for entry in found.entries for target in found.targets]
        made: list[dict[str, Any]] = []
        engine.run(cells, store, lambda cell, part, row: made.append(row))
        store.close()
        return made

    return rows


def test_a_worker_that_dies_is_tried_again_and_stops_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "if asked['cell']['entry']['name'] == 'one':\n    sys.exit('out of luck')\nrow = {}"
    rows = faked(body, folder, monkeypatch)(Local(2, {}, retries=2))
    assert Counter((row["name"], row.get("error")) for row in rows) == {
        ("one", "its process died: exit code 1: out of luck"): 2, ("two", None): 2,
    }  # fmt: skip
    tries = Counter(event["cell"] for event in events(folder / "out") if event["event"] == "started")
    assert tries == {"one/ort": 3, "one/tensorrt": 3, "two/ort": 1, "two/tensorrt": 1}


def test_what_nobody_has_foreseen_is_tried_again_and_a_mistake_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"row = {{'error': 'e', 'code': {INTERNAL} if asked['cell']['entry']['name'] == 'one' else 4}}"
    rows = faked(body, folder, monkeypatch)(Local(1, {}, retries=1))
    assert len(rows) == 4
    tries = Counter(event["cell"] for event in events(folder / "out") if event["event"] == "started")
    assert tries == {"one/ort": 2, "one/tensorrt": 2, "two/ort": 1, "two/tensorrt": 1}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is not told here")
def test_a_cell_above_the_bound_fails_alone_and_the_others_are_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "import time\nif asked['cell']['entry']['name'] == 'one':\n    held = b'x' * (600 << 20)\n    time.sleep(30)\n"
        "row = {}"
    )
    engine = Local(2, {}, retries=0, max_memory_mb=local_engine.rss_mb(os.getpid()) + 500)
    rows = faked(body, folder, monkeypatch)(engine)
    failed = [row for row in rows if "error" in row]
    assert [row["name"] for row in failed] == ["one", "one"]
    assert all("it takes more than" in row["error"] for row in failed)
    assert len(rows) == 4
    tries = Counter(event["cell"] for event in events(folder / "out") if event["event"] == "started")
    assert tries["two/ort"] == tries["two/tensorrt"] == 1 or max(tries.values()) == 2


def test_no_cell_is_begun_for_which_there_is_no_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import time\ntime.sleep(0.05)\nrow = {}"
    rows = faked(body, folder, monkeypatch)
    engine = Local(4, {}, max_memory_mb=local_engine.rss_mb(os.getpid()) + 1.5 * memory_needs.BASE_MB)
    assert len(rows(engine)) == 4
    log = [event["event"] for event in events(folder / "out")]
    assert log == ["started"] * 4  # by turns: rows are noted by the caller
    assert engine.peak_mb <= engine.max_memory_mb


def test_what_a_cell_took_decides_what_runs_beside_the_next_of_its_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "import time\nbegun = time.monotonic()\ntime.sleep(0.3)\n"
        "row = {'peak_rss_mb': 50.0, 'times': (begun, time.monotonic())}"
    )
    rows = faked(body, folder, monkeypatch)
    engine = Local(2, {}, max_memory_mb=local_engine.rss_mb(os.getpid()) + 1.5 * memory_needs.BASE_MB)
    times = {f"{row['name']}/{row['target']}": row["times"] for row in rows(engine)}

    def overlap(one: str, other: str) -> bool:
        return times[one][0] < times[other][1] and times[other][0] < times[one][1]

    first = min(times, key=lambda place: times[place])
    second = f"{first.split('/')[0]}/{'tensorrt' if first.endswith('/ort') else 'ort'}"
    others = set(times) - {first, second}
    assert not any(overlap(first, place) for place in others)  # both are estimated: they do not fit together
    assert any(overlap(second, place) for place in others)  # one is measured
    assert engine.needs.measured_mb == {"one": 50.0, "two": 50.0}


def test_cells_start_while_the_machine_has_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: int(1.5e6 * memory_needs.BASE_MB))
    body = "import time\nbegun = time.monotonic()\ntime.sleep(0.1)\nrow = {'times': (begun, time.monotonic())}"
    times = sorted(row["times"] for row in faked(body, folder, monkeypatch)(Local(4, {})))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))


def test_the_budget_of_a_cell_bounds_its_estimate(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one.onnx").write_bytes(bytes(100_000_000))  # no model, but of that size
    models = ["one.onnx", {"model": "two.onnx", "memory": "1G"}]
    one, two = load_manifest(manifest(folder, models=models)).entries
    (tmp_path / "two.onnx").write_bytes(bytes(100_000_000))
    needs = Needs(2 << 30)
    assert needs.mb(Cell(one, "ort")) == memory_needs.BASE_MB + (2 << 30) / 1e6
    assert needs.mb(Cell(two, "ort")) == memory_needs.BASE_MB + (1 << 30) / 1e6
    needs.learn(Cell(one, "ort"), {"error": "e", "peak_rss_mb": 7.0})
    needs.learn(Cell(one, "tensorrt"), {"peak_rss_mb": 700.0})
    needs.learn(Cell(one, "openvino"), {"peak_rss_mb": 600.0})
    assert needs.mb(Cell(one, "ort")) == 700.0


def test_each_cell_gets_a_share_of_the_memory_or_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 8 << 30)
    assert share_of(None, 4, math.inf) == share_of(None, 4)
    assert share_of("8G", 4) == share_of(None, 4) == share_of(None, 1) == 2 << 30
    assert share_of(None, 8) == share_of(None, 4, (4 << 30) / 1e6) == 1 << 30
    assert share_of("1G", 64) == memory.LEAST
    one, two = load_manifest(manifest(folder, models=["one.onnx", {"model": "two.onnx", "memory": "1G"}])).entries
    how = {"threads": 1, "memory": 2 << 30}
    assert settings_of(Cell(one, "ort"), how).memory_bytes == 2 << 30
    assert settings_of(Cell.from_dict(Cell(two, "ort").to_dict()), how).memory_bytes == 1 << 30
    keys = CellKeys()
    assert keys.key(Cell(two, "ort")) == keys.key(Cell(replace(two, memory=None), "ort"))


def test_a_cell_records_its_own_peak_and_not_that_of_the_cell_before(folder: Path) -> None:
    held = bytearray(400 << 20)
    del held
    before = peak_rss_mb()
    (entry, _) = load_manifest(folder / "m.yaml").entries
    row = run_cell(Cell(entry, "ort"), folder, Settings(verify=False, use_cache=False))
    assert 50 < row["peak_rss_mb"] < before - 100


def test_leftovers_of_a_killed_batch_are_removed(folder: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from onnxshot.batch.store import Folder; "
        "store = Folder(Path(sys.argv[1])); (store._parts / 'one.onnx').write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(folder / "out")])
    assert list((folder / "out" / ".parts").rglob("one.onnx"))
    run(folder / "m.yaml")
    assert not (folder / "out" / ".parts").exists()


def killed_and_resumed(folder: Path, times: int, seed: int) -> None:
    """Kill the whole process group at random moments, then let it finish: as if nothing had happened."""
    started = time.monotonic()
    run(manifest(folder, output="whole"), workers=2, use_cache=False)
    seconds, rng = time.monotonic() - started, random.Random(seed)
    command = [sys.executable, "-c", BATCH, "batch", str(manifest(folder)), "-j", "2", "--threads", "2"]
    for _ in range(times):
        with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as batch:
            time.sleep(rng.uniform(0.3, 1.0) * seconds)
            os.killpg(batch.pid, signal.SIGKILL)
        for row in (folder / "out").glob("*/*/" + ROW):  # what is seen is whole
            for made in json.loads(row.read_text())["outputs"]:
                assert (row.parent / made["file"]).stat().st_size == made["bytes"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert artifacts(folder / "out") == artifacts(folder / "whole")
    over: set[str] = set()
    for event in events(folder / "out"):
        if event["event"] in ("started", "done"):
            assert event["key"] not in over, "it was finished already"
        if event["event"] in ("done", "kept"):
            over.add(event["key"])
    assert len(over) == len({event["key"] for event in events(folder / "out")}) == 4
    assert not (folder / "out" / ".parts").exists()


@pytest.mark.skipif(os.name != "posix", reason="process groups are killed")
def test_a_batch_killed_at_any_moment_goes_on_where_it_was(folder: Path) -> None:
    killed_and_resumed(folder, 2, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups are killed")
def test_a_batch_killed_ten_times_goes_on_where_it_was(folder: Path) -> None:
    killed_and_resumed(folder, 10, seed=1)


class LostTasks:
    """A cluster as Ray's module shows it, every task of which is lost."""

    class exceptions:
        class RayError(Exception):
            pass

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2, "memory": 1e9}}]

    def remote(self, **how: Any) -> Any:
        return lambda work: type("Task", (), {"remote": lambda self, *given: object()})()

    def wait(self, tasks: list[object], num_returns: int) -> tuple[list[object], list[object]]:
        return tasks[:1], tasks[1:]

    def get(self, task: object) -> None:
        raise self.exceptions.RayError("its node died")


def test_a_task_that_is_lost_leaves_the_folder_alone_that_the_batch_was_started_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = folder / "here"
    here.mkdir()
    (here / "kept").touch()
    monkeypatch.chdir(here)
    monkeypatch.setattr(ray_engine, "_ray", LostTasks)
    summary = run(folder / "m.yaml", engine="ray")
    assert [(row["verdict"], row["code"]) for row in summary.rows] == [("failed", INTERNAL)] * 4
    assert (here / "kept").exists()
    assert not [p for p in (folder / "out").rglob("*") if p.is_dir()], "what the tries have left is removed"


def test_a_store_discards_only_what_it_has_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "kept").touch()
    monkeypatch.chdir(tmp_path / "here")
    store = Folder(tmp_path / "out")
    made = store._parts / "a"
    (made / "b").mkdir(parents=True)
    for other in (Path(), Path(".."), tmp_path, tmp_path / "out", store._parts, made / ".." / ".." / ".." / "here"):
        store.discard(other)
    assert (tmp_path / "here" / "kept").exists()
    assert (made / "b").exists()
    store.discard(made / "b")
    store.discard(made)
    assert not made.exists()
    store.close()


# ---------------------------------------------------------------------- nothing of the user's is lost


def as_model(folder: Path, name: str) -> dict[str, Any]:
    """A manifest whose first model lies where results of that cell go."""
    place = folder / "out" / name
    place.mkdir(parents=True)
    (folder / "one.onnx").rename(place / "one.onnx")
    return {"models": [f"out/{name}/one.onnx", "two.onnx"]}


def as_samples(folder: Path) -> dict[str, Any]:
    place = folder / "out" / "two" / "ort"
    place.mkdir(parents=True)
    (folder / "calib.npz").rename(place / "calib.npz")
    return {"defaults": {"calib": "out/two/ort/calib.npz", "emit": "onnx"}}


def as_recipe(folder: Path) -> dict[str, Any]:
    (folder / "out").mkdir()
    (folder / "out" / "summary.json").write_text('{"effort": "fast"}')
    return {"defaults": {"calib": "calib.npz", "recipe": "out/summary.json"}}


def as_link(folder: Path) -> dict[str, Any]:
    (folder / "out" / "one").mkdir(parents=True)
    (folder / "theirs").mkdir()
    (folder / "one.onnx").rename(folder / "theirs" / "one.onnx")
    (folder / "out" / "one" / "ort").symlink_to(folder / "theirs")
    return {"models": ["theirs/one.onnx", "two.onnx"]}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda folder: as_model(folder, "one/ort"), "would replace the folder of .*which is the model 'one'"),
        (lambda folder: as_model(folder, "two/tensorrt"), "the cell two/tensorrt .*which is the model 'one'"),
        (as_samples, "the cell two/ort .*which is one of the samples"),
        (as_recipe, "the summary .*summary.json is the manifest or a recipe itself"),
        (as_link, "the cell one/ort would go through a link, .*theirs"),
    ],
)
def test_no_file_that_a_cell_reads_lies_where_results_go(
    folder: Path, given: Callable[[Path], dict[str, Any]], said: str
) -> None:
    path = manifest(folder, **given(folder))
    before = sorted(folder.rglob("*"))
    with pytest.raises(UsageError, match=said):
        run(path)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("name", "text"), [("summary.json", '{"mine": 1}'), (LOG, "mine\n"), (LOG, "[]\n")])
def test_a_log_or_summary_of_somebody_else_is_left(folder: Path, name: str, text: str) -> None:
    (folder / "out").mkdir()
    (folder / "out" / name).write_text(text)
    with pytest.raises(UsageError, match=f"{name} would replace a file that is there"):
        run(folder / "m.yaml")
    assert [p.name for p in (folder / "out").iterdir()] == [name]
    assert (folder / "out" / name).read_text() == text


@pytest.mark.parametrize("name", ["one.onnx", "report.json"])
def test_a_file_of_a_cell_that_somebody_has_changed_is_left(folder: Path, name: str) -> None:
    """Whether the cell would be done again or not."""
    path = manifest(folder, targets=["tensorrt"], models=["one.onnx"])
    assert run(path).exit_code == 0
    mine = folder / "out" / "one" / "tensorrt" / name
    text = mine.read_bytes()
    mine.write_bytes(b"mine")
    for models in (["one.onnx"], [{"model": "one.onnx", "method": "minmax"}]):
        with pytest.raises(UsageError, match=f"{name} was changed after a batch wrote it"):
            run(manifest(folder, targets=["tensorrt"], models=models))
        assert mine.read_bytes() == b"mine"
    mine.write_bytes(text)
    assert [row["resumed"] for row in run(manifest(folder, targets=["tensorrt"], models=["one.onnx"])).rows] == [True]


@pytest.mark.parametrize("place", ["one", "one/ort"])
def test_no_cell_goes_through_a_link(folder: Path, place: str) -> None:
    (folder / "theirs").mkdir()
    (folder / "theirs" / "sample.npy").write_bytes(b"theirs")
    link = folder / "out" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(folder / "theirs")
    with pytest.raises(UsageError, match=f"the cell one/ort would go through a link, .*{place} -> "):
        run(manifest(folder, targets=["ort"], models=["one.onnx"]))
    assert link.is_symlink()
    assert [path.name for path in (folder / "theirs").iterdir()] == ["sample.npy"]


def test_what_somebody_keeps_beside_results_survives_all_runs(folder: Path) -> None:
    """Files of any name in the output, in a cell that is done again, and at the place of one that is not there yet."""
    kept = [".lock", ".parts-of-mine/x", "notes.txt", "one/notes.txt", "one/ort/notes.txt", "one/ort/deep/x.onnx",
            "two/ort/readme.md"]  # fmt: skip
    for name in kept:
        place = folder / "out" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(name)
    path = manifest(folder, targets=["ort"])
    assert run(path).exit_code == 0
    first = {path: path.read_bytes() for path in folder.glob("out/*/ort/*.onnx")}
    path = manifest(folder, targets=["ort"], defaults={"calib": "calib.npz", "emit": "onnx", "effort": "balanced"})
    assert run(path).exit_code == 0
    again = {path: path.read_bytes() for path in folder.glob("out/*/ort/*.onnx")}
    assert again.keys() == first.keys()
    assert again != first, "they were made anew"
    assert [(folder / "out" / name).read_text() for name in kept] == kept


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="its workers are asked for")
def test_told_to_end_a_batch_takes_its_workers_along(folder: Path) -> None:
    temporary = folder / "tmp"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "onnxshot", "batch", str(folder / "m.yaml"), "-j", "2"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as batch:
        assert batch.stderr is not None
        while not list(temporary.glob("onnxshot-????????")):  # a worker is at work
            assert batch.poll() is None
            time.sleep(0.02)
        workers = [int(pid) for pid in Path(f"/proc/{batch.pid}/task/{batch.pid}/children").read_text().split()]
        batch.send_signal(signal.SIGTERM)
        told = batch.stderr.read()
    assert (batch.returncode, told) == (143, "error: stopped by SIGTERM; nothing is half written\n")
    assert workers
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert [path.name for path in temporary.iterdir() if path.name != ".ses"] == []  # ONNX Runtime's own
    assert not (folder / "out" / ".parts").exists()


def test_a_folder_of_the_users_that_is_called_like_ours_is_left(folder: Path) -> None:
    mine = folder / "out" / ".parts" / "photo.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UsageError, match="cannot write to"):
        run(folder / "m.yaml")
    assert mine.read_text() == "mine"
