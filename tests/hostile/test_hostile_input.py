"""No value of an option, no data, no text and no surrounding makes an internal error, a hang, or an unbounded run."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import invalid_options
import malformed_data
import numpy as np
import pytest

import onnxshot
from onnxshot.batch.manifest import load_manifest
from onnxshot.calibration.preset import load_preset
from onnxshot.cli import app as cli
from onnxshot.delivery.record import load_records
from onnxshot.errors import CalibrationError, OnnxshotError, UsageError
from onnxshot.files import cache_folder
from onnxshot.recipes.files import load_recipe, load_stages

SECONDS = 60
MEMORY = 2 << 30  # of a process on its own
REFUSED = {2, 3, 4, 5, 6}

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="files here are those of POSIX systems")


@contextlib.contextmanager
def bounded(seconds: int = SECONDS) -> Iterator[None]:
    """Raise an error where the block takes longer."""

    def late(*_: object) -> None:
        raise AssertionError(f"it has not ended after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------ options

OPTIONS = [case for case in invalid_options.cases() if case.command != "ui"]  # which would serve


def test_the_cases_are_many() -> None:
    assert len(OPTIONS) > 700
    assert len(malformed_data.DATA) >= 100
    assert len(malformed_data.TEXTS) > 25


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=f"{i} {c.name}", marks=() if i % 32 == 3 else pytest.mark.slow) for i, c in enumerate(OPTIONS)],
)
def test_an_option(
    case: invalid_options.Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    invalid_options.prepared(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["onnxshot", case.command, *case.arguments])
    with bounded(), pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err
    if ended.value.code == 0:
        return
    assert ended.value.code in REFUSED, told
    assert [line.startswith("error: ") for line in told.splitlines()].count(True) == 1, told
    assert told.splitlines()[-1].startswith("error: "), told
    assert "Traceback" not in told


# ------------------------------------------------------------------ data


@pytest.mark.parametrize("name", malformed_data.DATA)
def test_data(name: str, tmp_path: Path) -> None:
    make, words = malformed_data.DATA[name]
    net, settings = malformed_data.network(tmp_path), onnxshot.Settings(samples="all", use_cache=False, threads=1)
    with bounded(), pytest.raises(CalibrationError) as refused:
        onnxshot.calibrate(net, make(tmp_path), settings=settings, holdout=0)
    text = str(refused.value)
    assert all(word in text for word in words), text
    assert refused.value.exit_code == 5
    assert "\n" not in text


def test_what_is_no_input_is_dropped_and_told(tmp_path: Path) -> None:
    net = malformed_data.network(tmp_path)
    settings = onnxshot.Settings(use_cache=False, threads=1, samples="all", verify=False)
    plain = [malformed_data.row(i) for i in range(4)]
    more = [{**row, "mask": np.ones((1, 3)), "X": np.ones((1, 4), np.float32)} for row in plain]
    dropped = onnxshot.quantize(net, more, settings=settings)
    told = " ".join(dropped.report.notes)
    assert "mask" in told
    assert "'X'" in told or "X" in told.split("mask")[1]
    in_order = onnxshot.quantize(net, [(row["ids"], row["x"]) for row in plain], settings=settings)
    files = [made.model_proto.graph.SerializeToString() for made in (dropped, in_order)]
    files.append(onnxshot.quantize(net, plain, settings=settings).model_proto.graph.SerializeToString())
    assert files[0] == files[1] == files[2]


def test_good_data_of_odd_kinds_is_taken(tmp_path: Path) -> None:
    """Big-endian numbers, negative strides, Fortran order, no batch axis, lists of lists, subclasses of dict."""

    class Own(dict[str, Any]):
        pass

    net = malformed_data.network(tmp_path)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    rows = [
        malformed_data.row(0, x=x[::-1][:1]),
        malformed_data.row(1, x=x.astype(">f4")[:1]),
        malformed_data.row(2, x=np.asfortranarray(np.ones((1, 8), np.float32))[:, ::2]),
        malformed_data.row(3, x=[1.0, 2.0, 3.0, 4.0]),
        malformed_data.row(4, ids=[[1, 2, 3]]),
        Own(malformed_data.row(5)),
        malformed_data.row(6, ids=np.array([[1, 2, -10]], np.int8)),
    ]
    settings = onnxshot.Settings(use_cache=False, threads=1, samples="all")
    made = onnxshot.calibrate(net, rows, settings=settings, holdout=0)
    assert made.considered == len(rows)


# ------------------------------------------------------------------ texts

READERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "recipe": ("r.yaml", load_recipe),
    "stages": ("r.yaml", load_stages),
    "manifest": ("m.yaml", load_manifest),
    "preset": ("p.yaml", load_preset),
    "record": ("net.recipe.yaml", lambda path: load_records(Path(path))),
}


@pytest.mark.parametrize("name", malformed_data.TEXTS)
@pytest.mark.parametrize("reader", READERS)
def test_a_text(name: str, reader: str, tmp_path: Path) -> None:
    file, load = READERS[reader]
    if name == "nothing" and reader != "record":
        pytest.skip("an empty file may be told in many ways")
    path = tmp_path / file
    path.write_bytes(malformed_data.TEXTS[name])
    with bounded(), pytest.raises(UsageError) as refused:
        load(str(path))
    assert file in str(refused.value)
    assert len(str(refused.value)) < 2000
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "socket", "folder", "loop", "dangling", "a\0b"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file(kind: str, reader: str, tmp_path: Path) -> None:
    _, load = READERS[reader]
    invalid_options.prepared(tmp_path)
    path = kind if kind.startswith("/") else str(tmp_path / kind)
    if reader == "preset" and not kind.startswith("/") and "\0" not in kind:
        link = tmp_path / "p.yaml"
        link.symlink_to(path)
        path = str(link)
    with bounded(), pytest.raises(UsageError):
        load(path)


# ------------------------------------------------------------------ surroundings


def run(
    folder: Path, *arguments: str, code: int | None = 0, bound: bool = True, **environment: str | None
) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own, with a bound on time and, if asked for, on memory."""
    known = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-m", "onnxshot", *map(os.fsencode, arguments)],
        cwd=folder, env={k: v for k, v in known.items() if v is not None}, capture_output=True, timeout=2 * SECONDS,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))) if bound else None,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr
    assert code is None or done.returncode == code, done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    invalid_options.prepared(tmp_path)
    return tmp_path


QUICK = ("--effort=fast", "--threads=1")


def test_names_that_are_not_utf8(folder: Path) -> None:
    """They are read and written, and stand in reports as JSON can hold them."""
    name = os.fsdecode(b"caf\xe9")
    (folder / name).mkdir()
    for i in range(3):
        np.savez(folder / name / f"{name}{i}.npz", x=np.full((1, 8), i + 1, np.float32))
    told = run(
        folder, "quantize", "net.onnx", f"--calib={name}", *QUICK, "--json", f"--report={name}.html",
        f"--output={name}.onnx", PYTHONIOENCODING="ascii", LC_ALL="C",
    )  # fmt: skip
    assert json.loads(told.stdout)["samples"]["source"] == name
    assert (folder / f"{name}.onnx").is_file()
    assert (folder / f"{name}.html").read_text("utf-8")
    run(folder, "replay", "net.onnx", f"{name}.recipe.yaml", f"--calib={name}", "-o", "again.onnx", code=None)
    assert (folder / "again.onnx").read_bytes() == (folder / f"{name}.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["empty", "loop", "dangling", "fifo", "/dev/null", "/proc"])
def test_a_cache_that_is_none(folder: Path, cache: str) -> None:
    place = cache if cache.startswith("/") else str(folder / cache)
    run(folder, "quantize", "net.onnx", "--calib=calib.npz", *QUICK, ONNXSHOT_CACHE=None, XDG_CACHE_HOME=place)
    run(folder, "cache", "show", code=None, ONNXSHOT_CACHE=place)
    run(folder, "cache", "clear", code=None, ONNXSHOT_CACHE=place)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "dangling", "fifo", "loop"])
def test_something_else_in_the_place_of_a_cache_entry(folder: Path, kind: str) -> None:
    place = folder / "cache"
    ran = ("quantize", "net.onnx", "--calib=calib.npz", *QUICK)
    run(folder, *ran, ONNXSHOT_CACHE=str(place))
    (entry,) = place.glob("*.npz")
    entry.unlink()
    (folder / kind).rename(entry)
    run(folder, *ran, ONNXSHOT_CACHE=str(place))
    run(folder, "cache", "show", ONNXSHOT_CACHE=str(place))
    run(folder, "cache", "clear", ONNXSHOT_CACHE=str(place))
    assert entry.exists() or kind in ("dangling", "loop"), "it is somebody's"


def test_no_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without HOME, and without an entry in the list of users, as containers have them."""
    import pwd

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "ONNXSHOT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    onnxshot.quantize("net.onnx", "calib.npz", effort="fast", output="q.onnx")
    assert (folder / "q.onnx").is_file()
    with pytest.raises(UsageError, match="ONNXSHOT_CACHE"):
        cache_folder.folder()


def test_standard_streams_that_are_closed_full_or_broken(folder: Path) -> None:
    command = f"{sys.executable} -m onnxshot inspect net.onnx"
    for redirected, code in (("--json >&-", 2), (">&- 2>&-", 0), ("--json >/dev/full", 2), ("--json | :", 141)):
        line = f"{command} {redirected}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == code, (redirected, done.stderr)
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == (code == 2)


USERS = """
import ctypes, os, sys
import numpy as np
print("imported")
def feeds():
    print("printed"); os.system("echo a child"); ctypes.CDLL(None).puts(b"from C"); ctypes.CDLL(None).fflush(None)
    for i in range(4):
        yield {"x": np.full((1, 8), i + 1, np.float32)}
def score(run):
    print("scored")
    return 1.0
def leaves(run=None): sys.exit(0)
"""


def test_stdout_is_ours_alone_under_json(folder: Path) -> None:
    """What the user's code prints, its children and what it calls in C, goes to stderr."""
    (folder / "user.py").write_text(USERS)
    done = run(folder, "quantize", "net.onnx", "--calib=user.py:feeds", "--eval=user.py:score", "--max-drop=1", *QUICK,
               "--json", bound=False)  # fmt: skip
    assert json.loads(done.stdout)["input"] == "net.onnx"
    for word in (b"imported", b"printed", b"a child", b"from C", b"scored"):
        assert word in done.stderr
        assert word not in done.stdout


@pytest.mark.parametrize(("option", "code"), [("--calib=user.py:leaves", 5), ("--eval=user.py:leaves", 2)])
def test_a_users_function_that_exits(folder: Path, option: str, code: int) -> None:
    (folder / "user.py").write_text(USERS)
    given = ("--calib=calib.npz", "--eval=user.py:score", "--max-drop=1", option)
    done = run(folder, "quantize", "net.onnx", *given, *QUICK, code=code, bound=False)
    assert b"SystemExit" in done.stderr
    assert b"user.py:12" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "codes"), [("1000000", {2}), ("10000000", {2}), ("100000000000", {2})])
def test_a_vast_batch_is_told_before_memory_is_taken(folder: Path, batch: str, codes: set[int]) -> None:
    started = time.monotonic()
    done = run(folder, "quantize", "net.onnx", "--calib=calib.npz", f"--batch={batch}", code=None)
    assert done.returncode in codes, done.stderr
    assert b"GB" in done.stderr or b"copies" in done.stderr
    assert time.monotonic() - started < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_sample_that_is_cut_short_while_it_is_read(folder: Path, order: Any) -> None:
    """A mapped file would end the process by SIGBUS."""
    from onnxshot.calibration.readers import InputSpec, open_data

    values = np.ones((4000, 1000), np.float32, order=order)
    np.save(folder / "x.npy", values)
    with open_data(folder / "x.npy", (InputSpec("x", np.dtype(np.float32), ("N", 1000)),)) as data:
        os.truncate(folder / "x.npy", 5000)
        if order == "F":  # it was turned before
            assert data[3999].feed["x"].shape == (1, 1000)
            return
        with pytest.raises(CalibrationError, match=r"x\.npy\[3999\]"):
            data[3999]


def test_a_picture_of_many_pixels_is_refused_by_its_header(folder: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((12_000, 9_000), np.uint8)).save(folder / "large.png")
    with bounded(), pytest.raises(OnnxshotError, match="9000 x 12000 pixels"):
        from onnxshot.calibration.preprocess import image
        from onnxshot.calibration.preset import Preset

        image(folder / "large.png", Preset(size=(32, 32)))
