"""Other systems than Linux: what Windows and macOS lack, and what Windows forbids, as far as Linux can show it."""

import ast
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fixture_data import facts, fixture

from onnxshot import memory, system
from onnxshot.errors import UsageError
from onnxshot.files import interrupted_writes, temporary_folders
from onnxshot.files.conflicts import Files, Write
from onnxshot.files.temporary_folders import Part, clear

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "helpers" / "foreign_system.py"
KNOWN = facts()["digits_mobile"]
ASKED = ("fcntl", "msvcrt", "resource", "pwd", "grp", "termios", "select", "selectors", "multiprocessing")
OF_POSIX = ("killpg", "fork", "setsid", "sysconf", "pread", "uname", "sched_getaffinity", "O_NOFOLLOW", "statvfs")


def test_only_one_module_asks_for_what_systems_do_not_share() -> None:
    """Calls by `getattr` and behind `hasattr` have the name as text, and are no attributes."""
    found = []
    for path in [*(ROOT / "onnxshot").rglob("*.py"), *(ROOT / "calibration").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(path.name, name) for name in imported if name.partition(".")[0] in ASKED]
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("os", "signal"):
                found += [(path.name, node.attr)] if node.attr in (*OF_POSIX, "SIGKILL", "SIGHUP") else []
    assert {name for name, _ in found} == {"system.py"}, found


def foreign(temporary: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command as on Windows, where the lock of a folder is a file among temporary files."""
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
    )  # fmt: skip


@pytest.mark.parametrize("more", [("--no-verify",), pytest.param(("--bundle", "bundle"), marks=pytest.mark.slow)])
def test_a_command_runs_where_open_files_are_held(
    more: tuple[str, ...], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every file is closed and unmapped before it is renamed or removed; a second run replaces what the first wrote."""
    out = tmp_path / "out" / "net.onnx"
    calib = ("--calib", fixture(KNOWN["calib"]), "--preset", fixture(KNOWN["preset"]), "--samples", 2)
    options = [tmp_path / word if word == "bundle" else word for word in more]
    options += ["-o", out, "--report", tmp_path / "r.html", "--effort", "fast", "--accept"]
    for _ in range(1 if "--no-verify" in more else 2):
        done = foreign(tmp_path_factory.mktemp("temporary"), "quantize", fixture("digits_mobile"), *calib, *options)
        assert done.returncode == 0, done.stderr
        assert "refused" not in done.stderr
    assert out.stat().st_size
    assert not [path for path in tmp_path.rglob("*onnxshot-*")]  # no folder of unfinished files is left


def test_the_stand_in_holds_open_files(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})
import foreign_system, os, pathlib
foreign_system.become_windows()
path = pathlib.Path({str(tmp_path / "a")!r}); file = path.open("w")
for act in (path.unlink, lambda: path.replace(path.with_name("b"))):
    try:
        act()
    except PermissionError:
        print("held")
file.close(); path.unlink(); print(path.exists(), hasattr(os, "killpg"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["held", "held", "False", "False"], done.stderr


def test_locks_without_fcntl_are_those_of_msvcrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[tuple[int, int], int] = {}

    def locking(file: int, mode: int, size: int) -> None:
        key = os.fstat(file).st_ino, os.lseek(file, 0, os.SEEK_CUR)
        if held.setdefault(key, file) != file:
            raise PermissionError

    msvcrt: Any = ModuleType("msvcrt")
    msvcrt.LK_LOCK, msvcrt.LK_NBLCK, msvcrt.locking = 1, 2, locking
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the lock of a folder is a file
    part = Part(tmp_path, "net")
    (part.path / "file").write_text("unfinished")
    folder = part.path.parent
    assert clear(folder) == 0  # its process lives
    assert (part.path / "file").exists()
    part.close()
    assert not folder.exists()
    with interrupted_writes.alone_in(tmp_path):
        assert len(held) == 2
        assert len(list(tmp_path.glob("onnxshot-*.lock"))) == 1
    assert not list(tmp_path.glob("onnxshot-*.lock"))
    monkeypatch.setitem(sys.modules, "msvcrt", None)
    assert system.lock(0) is None


def test_a_folder_beside_a_relative_path_has_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mkdtemp` returns an absolute one from Python 3.12 on; reports name files as the user did."""
    monkeypatch.chdir(tmp_path)
    make = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **how: os.path.abspath(make(**how)))  # noqa: PTH100
    Path("out").mkdir()
    part = Part(Path("out"), "net")
    assert not part.path.is_absolute()
    assert part.path.is_dir()
    part.close()


def test_a_file_is_closed_before_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "WINDOWS", True)
    unlink = Path.unlink

    def held(path: Path, missing_ok: bool = False) -> None:
        open_files = {os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()}
        if os.path.realpath(path) in open_files:
            raise PermissionError(13, "it is used", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", held)
    part = Part(tmp_path, "net")
    folder = part.path.parent
    part.close()
    assert not folder.exists()
    assert folder not in temporary_folders.listed()


@pytest.mark.parametrize("name", ["nul.onnx", "CON", "com1.engine", "aux .onnx", "net.onnx.", "lpt9.tar.gz"])
def test_names_of_devices_are_refused_on_windows_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(writes=(Write(tmp_path / name, "the result"),))
    files.check()
    monkeypatch.setattr(system, "WINDOWS", True)
    with pytest.raises(UsageError, match="Windows has no file of that name"):
        files.check()
    for fine in ("null.onnx", "console.onnx", "com.onnx", "net.con"):
        Files(writes=(Write(tmp_path / fine, "the result"),)).check()


def test_names_that_differ_in_case_are_one_file_where_the_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(writes=(Write(tmp_path / "net.onnx", "the result"), Write(tmp_path / "NET.onnx", "the record")))
    monkeypatch.setattr(system, "CASE_BLIND", False)
    files.check()
    monkeypatch.setattr(system, "CASE_BLIND", True)
    with pytest.raises(UsageError, match=r"the record and the result are both .*NET\.onnx"):
        files.check()


def test_memory_is_known_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert system.physical_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(memory, "_field", lambda name: None)
    assert memory.machine_bytes() <= (system.physical_bytes() or 0)
    assert system.available_bytes() == (system.physical_bytes() or 0) // 2
    monkeypatch.delattr(os, "sysconf")
    assert system.physical_bytes() is None
    assert memory.machine_bytes() > 0

    def status(reference: Any) -> int:
        reference._obj.physical, reference._obj.available = 8 << 30, 3 << 30
        return int(reference._obj.length == 64)  # as the call demands

    kernel = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=status))
    monkeypatch.setattr(importlib.import_module("ctypes"), "windll", kernel, raising=False)
    assert (system.physical_bytes(), system.available_bytes()) == (8 << 30, 3 << 30)


def test_the_largest_memory_of_the_process_is_known_where_resource_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 << 20 < system.peak_bytes() < 1 << 42
    monkeypatch.setitem(sys.modules, "resource", None)
    assert system.peak_bytes() == 0


def test_children_end_with_their_process(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE); "
    code += "print(p.pid, flush=True); input()"
    made = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert made.stdout is not None
    assert int(made.stdout.readline())
    system.end_tree(made)
    assert made.wait() < 0
    assert made.stdout.read() == ""  # the end of the pipe, which its child, waiting for input, would hold open
    asked: list[list[str]] = []
    monkeypatch.delattr(os, "killpg")
    monkeypatch.setattr(subprocess, "run", lambda command, **how: asked.append(command))
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    system.end_tree(living)
    living.wait()
    assert asked == [["taskkill", "/F", "/T", "/PID", str(living.pid)]]
