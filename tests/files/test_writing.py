"""Killed at any moment, a reader finds the old result whole or the new one whole, and the next run puts all right."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

import kill_points
import numpy as np
import onnx
import onnxruntime
import pytest
from handmade.core import model

from onnxshot.cli import app as cli
from onnxshot.errors import UsageError
from onnxshot.files import atomic_write, temporary_folders
from onnxshot.files.atomic_write import aside, put_folder, scratch, take_along, write_file
from onnxshot.files.model_and_data import publish
from onnxshot.files.temporary_folders import MARK, Part, clear_dead
from onnxshot.graph.load import load_model
from onnxshot.graph.save import Draft, write

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are forked and killed")

TEXT = "net (float[1, 64] x) => (float[1, 64] y) { t = MatMul(x, w) y = Add(t, b) }"
X = np.linspace(-1, 1, 64, dtype=np.float32)[None]


@pytest.fixture(autouse=True)
def _own_temporary_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other processes do among the temporary files of all would change at which moment a run is killed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


def net(seed: int) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    return model(TEXT, {"w": rng.normal(size=(64, 64)).astype(np.float32), "b": np.full(64, seed, np.float32)})


def save(path: Path, seed: int, *, external: bool) -> None:
    """As runs do: aside, then at its place."""
    with aside(path) as folder:
        files = write(load_model(net(seed)), folder / path.name, external=external)
        Draft(folder, path, files).publish()


def answers(path: Path) -> np.ndarray | None:
    """What a reader finds: None where there is no model."""
    if not path.exists():
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": X})[0])


def same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return (one is None) == (other is None) and (one is None or np.array_equal(one, other))


def strangers(folder: Path) -> None:
    """Files of the user's that look like ours."""
    folder.mkdir()
    (folder / "net.onnx.part").write_text("mine")
    (folder / ".net.abcd1234.part").mkdir()
    (folder / ".net.onnxshot-abcd1234.part").mkdir()
    (folder / ".net.onnxshot-abcd1234.part" / "notes").write_text("mine")


def killed_at_each(tmp_path: Path, before: str, external: bool, step: int) -> list[bool]:
    """Save over what is there, killed at every step-th moment; whether the new model was there then, kill by kill."""
    template, place = tmp_path / "before", tmp_path / "place"
    strangers(template)
    final = place / "net.onnx"
    if before != "nothing":
        save(template / "net.onnx", 1, external=before == "external")
    kill_points.anew(template, place)
    old = answers(final)

    def work() -> None:
        save(final, 2, external=external)

    kill_points.run(work)
    new, whole = answers(final), kill_points.contents(place)
    assert not same(old, new)
    seen = []
    for at in kill_points.every_moment(work, template, place, step):
        found = answers(final)
        assert same(found, old) or same(found, new), at
        seen.append(same(found, new))
        kill_points.run(work)
        assert kill_points.contents(place) == whole, at
    assert seen == sorted(seen)  # once new, always new
    return seen


@pytest.mark.parametrize("before", ["inline", "external"])
@pytest.mark.parametrize("external", [False, True])
def test_a_model_and_its_data_are_those_of_one_run(tmp_path: Path, before: str, external: bool) -> None:
    seen = killed_at_each(tmp_path, before, external, 4)
    assert set(seen) == {False, True}


@pytest.mark.slow
@pytest.mark.parametrize("before", ["nothing", "inline", "external"])
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, external: bool, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", _refused)
    assert len(killed_at_each(tmp_path, before, external, 1)) >= 12


def _refused(*_: object, **__: object) -> None:
    raise PermissionError(1, "not here")


def weights_of(xml: Path) -> list[bytes]:
    """The constants of an IR as its reader takes them: so many bytes at an offset of the file of the same stem."""
    data = xml.with_suffix(".bin").read_bytes()
    found = re.findall(r'<data element_type="f32" shape="[^"]*" offset="(\d+)" size="(\d+)"', xml.read_text())
    return [data[int(offset) : int(offset) + int(size)] for offset, size in found]


def publish_ir(final: Path, *constants: bytes) -> None:
    with aside(final) as folder:
        layers, data = [], b""
        for i, values in enumerate(constants):
            layers.append(
                f'<layer id="{i}" name="offset=&quot;1&quot;" type="Const" version="opset1">\n'
                f'\t<data element_type="f32" shape="{len(values) // 4}" offset="{len(data)}" size="{len(values)}" />\n'
                "</layer>"
            )
            data += values
        layers.append('<layer id="9" name="pad" type="Pad"><data offset="3" pad_mode="edge" /></layer>')
        (folder / final.name).write_text("\n".join(layers))
        (folder / final.with_suffix(".bin").name).write_bytes(data)
        publish(folder, final, (final.name, final.with_suffix(".bin").name))


@pytest.mark.parametrize("sizes", [(100, 40), (40, 100)])
def test_an_ir_and_its_weights_are_those_of_one_run(tmp_path: Path, sizes: tuple[int, int]) -> None:
    """The file of weights is found by its name alone: it holds both weights until the model is the new one."""
    template, place = tmp_path / "before", tmp_path / "place"
    template.mkdir()
    old, new = ([bytes([i]) * size * 4, bytes([i + 1]) * 16] for i, size in zip((1, 7), sizes, strict=True))
    publish_ir(template / "net.xml", *old)
    final, seen = place / "net.xml", []

    def work() -> None:
        publish_ir(final, *new)

    kill_points.anew(template, place)
    kill_points.run(work)
    whole = kill_points.contents(place)
    assert 'offset="3" pad_mode' in final.read_text()
    for at in kill_points.every_moment(work, template, place, 3):
        assert weights_of(final) in (old, new), at
        seen.append(weights_of(final) == new)
        kill_points.run(work)
        assert kill_points.contents(place) == whole, at
    assert seen == sorted(seen)
    assert set(seen) == {False, True}


@pytest.mark.parametrize("kind", ["onnx", "ir"])
def test_told_to_end_a_run_leaves_one_result_and_nothing_else(tmp_path: Path, kind: str) -> None:
    """At whatever moment it is: what a reader sees already is put in its last form, and else taken back."""
    template, place = tmp_path / "before", tmp_path / "place"
    template.mkdir()

    def make(folder: Path, seed: int) -> None:
        if kind == "onnx":
            save(folder / "net.onnx", seed, external=True)
        else:
            publish_ir(folder / "net.xml", bytes([seed]) * 80, bytes([seed + 1]) * 16 * seed)

    make(template, 1)
    old, found = kill_points.contents(template), []
    kill_points.anew(template, place)
    make(place, 2)
    new = kill_points.contents(place)
    for at in kill_points.every_moment(lambda: make(place, 2), template, place, 2, told=True):
        clear_dead(place)  # it may have been told while it removed what is half made
        assert kill_points.contents(place) in (old, new), at
        found.append(kill_points.contents(place) == new)
    assert set(found) == {False, True}


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_folder_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    """Where folders cannot be exchanged in one step, the next run brings the old one back."""
    if not exchanged:
        monkeypatch.setattr(atomic_write, "exchange", _refused)
    template, place = tmp_path / "before", tmp_path / "place"
    for name in ("a", "b"):
        (template / "made").mkdir(parents=True, exist_ok=True)
        (template / "made" / name).write_text("old")
    (template / "made" / "notes.txt").write_text("mine")
    final = place / "made"

    def work() -> None:
        with aside(final) as home:
            (home / "new").mkdir()
            for name in ("b", "c"):
                (home / "new" / name).write_text("new")
            take_along(final, home / "new", {"a", "b", "c"})
            put_folder(home / "new", final, home)

    old = kill_points.contents(template)
    kill_points.anew(template, place)
    kill_points.run(work)
    whole = kill_points.contents(place)
    assert whole == {"made/b": b"new", "made/c": b"new", "made/notes.txt": b"mine"}
    for at in kill_points.every_moment(work, template, place, 2):
        if not exchanged and not final.exists():
            clear_dead(place)
        assert {n: d for n, d in kill_points.contents(place).items() if n.startswith("made/")} in (old, whole), at
        kill_points.run(work)
        assert kill_points.contents(place) == whole, at


def test_a_file_that_was_added_and_has_the_name_of_a_new_one_is_not_replaced(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x").write_text(name)
    with pytest.raises(FileExistsError, match="was added to it"):
        take_along(tmp_path / "old", tmp_path / "new", {"other"})
    assert (tmp_path / "new" / "sub" / "x").read_text() == "new"


def test_only_what_is_marked_and_dead_is_removed(tmp_path: Path) -> None:
    strangers(tmp_path / "place")
    place = tmp_path / "place"
    (place / "net.onnxshot-abcd1234.part").mkdir()
    (place / ".x.onnxshot-abcd1234.part").mkdir()
    (place / ".x.onnxshot-abcd1234.part" / MARK).write_text('{"format": "mine"}')
    mine = kill_points.contents(place)
    with aside(place / "net.onnx") as alive:
        (alive / "half").write_text("half")
        assert clear_dead(place) == 0
        assert (alive / "half").read_text() == "half"

    def die() -> None:
        part = Part(place, "net")
        (part.path / "half").write_bytes(b"h" * 1000)
        os.kill(os.getpid(), signal.SIGKILL)

    kill_points.run(die, 10**9)
    assert len(kill_points.contents(place)) > len(mine)
    assert clear_dead(place) > 1000
    assert kill_points.contents(place) == mine
    assert (place / ".net.abcd1234.part").is_dir()


def test_cache_clear_removes_what_killed_runs_have_left_beside_their_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
    for name in ("tmp", "out", "cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "cache" / "photos.npz").write_bytes(b"mine")
    (tmp_path / "cache" / ("a" * 64 + ".npz")).write_bytes(b"mine")

    def die() -> None:
        parts = [Part(tmp_path / name, "net") for name in ("out", "cache")]
        for part in parts:
            (part.path / "half").write_bytes(b"half")
        with scratch() as folder:
            (folder / "half").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    kill_points.run(die, 10**9)
    assert len(list(tmp_path.rglob("half"))) == 3
    cli.app(["cache", "clear", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["bytes"] > 12
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a" * 64 + ".npz", "photos.npz"]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="it is asked which file is open")
def test_what_is_renamed_is_on_the_disk_before_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not where it lies in a folder of ours, which does not outlive a loss of power."""
    done: list[tuple[str, str]] = []
    monkeypatch.setattr(os, "fsync", lambda file: done.append(("sync", Path(f"/proc/self/fd/{file}").readlink().name)))
    real = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: (done.append(("rename", path.name)), real(path, to)))
    home = tmp_path / "home"
    save(home / "net.onnx", 1, external=True)
    renames = [i for i, (what, _) in enumerate(done) if what == "rename"]
    assert [done[i][1] for i in renames] == ["net.onnx.data", "net.onnx"]
    for i in renames:
        assert ("sync", done[i][1]) in done[:i]
        assert done[i + 1] == ("sync", "home")
    done.clear()
    with scratch() as folder:
        save(folder / "net.onnx", 1, external=False)
    assert [what for what, _ in done] == ["rename"]


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "pipe").mkdir()
    with pytest.raises(OSError, match="is not a file"):
        write_file(tmp_path / "pipe", lambda part: part.write_text("x"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="is not a file"):
        write_file(tmp_path / "fifo", lambda part: part.write_text("x"))
    assert (tmp_path / "fifo").is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "pipe"]
    with pytest.raises(UsageError, match="cannot write to"):
        write_file(tmp_path / "fifo" / "x.json", lambda part: part.write_text("x"))


SLEEPY = """
import pathlib, time
def samples():
    pathlib.Path({flag!r}).touch()
    try:
        time.sleep(60)
    finally:
        time.sleep({stubborn})
    yield {{}}
"""


@pytest.mark.parametrize(
    ("name", "code", "again"), [("SIGTERM", 143, False), ("SIGHUP", 129, False), ("SIGTERM", 143, True)]
)
def test_told_to_end_a_command_leaves_nothing(tmp_path: Path, name: str, code: int, again: bool) -> None:
    """A second signal ends it while what is half made is removed; the next run removes it then."""
    temporary, out, flag = tmp_path / "tmp", tmp_path / "out", tmp_path / "flag"
    temporary.mkdir()
    out.mkdir()
    onnx.save(net(1), tmp_path / "net.onnx")
    (tmp_path / "slow.py").write_text(SLEEPY.format(flag=str(flag), stubborn=60 if again else 0))
    command = [sys.executable, "-m", "onnxshot", "quantize", str(tmp_path / "net.onnx"), "--calib"]
    process = subprocess.Popen(
        [*command, f"{tmp_path}/slow.py:samples", "-o", str(out / "q.onnx")], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(temporary), "ONNXSHOT_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    while not flag.exists():
        assert process.poll() is None
        time.sleep(0.02)
    sign = getattr(signal, name)
    process.send_signal(sign)
    if again:
        time.sleep(1)
        process.send_signal(sign)
    _, told = process.communicate(timeout=30)
    assert process.returncode == code
    assert told.strip() == ("" if again else f"error: stopped by {name}; nothing is half written")
    assert list(out.iterdir()) == []
    clear_dead(temporary)
    assert [path.name for path in temporary.iterdir() if path.name != ".ses"] == []  # ONNX Runtime's own


def test_an_interrupt_at_any_line_leaves_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception of a signal is raised at each line that makes or removes a temporary folder in turn."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    final = tmp_path / "out" / "file"
    for folder in (tmp_path / "tmp", final.parent):
        folder.mkdir()

    def save() -> None:
        part = Part(final.parent, "0.6")
        (part.path / "file").write_bytes(b"x")
        part.close()

    def interrupted_at(number: int) -> bool:
        left = number

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename != temporary_folders.__file__:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            save()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    line = 1
    while interrupted_at(line):
        gc.collect()  # a folder that is not in use any more goes away, as it does when the process ends
        assert not list(final.parent.iterdir()), line
        assert not list((tmp_path / "tmp").iterdir()), line
        line += 1
    assert line > 40
