"""The job of the page: its folder, uploaded files, worker process and outputs. There is at most one job."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnxshot import source_tree, system
from onnxshot.calibration.sound_files import SOUNDS
from onnxshot.calibration.text_files import TEXTS
from onnxshot.calibration.tokenizer import FILE as TOKENIZER
from onnxshot.files.atomic_write import scratch_part
from onnxshot.files.temporary_folders import clear_dead, listed
from onnxshot.ui.refused import CONFLICT, NO_ROOM, NOT_FOUND, TOO_LARGE, Refused
from onnxshot.ui.request import OWN_PRESET, Asked
from onnxshot.ui.uploads import safe_name, safe_path, unpack

KINDS = ("model", "calib", "preset")
_TEMPORARY = "tmp"
_UPLOADING, _RUNNING, _DONE, _FAILED = "uploading", "running", "done", "failed"
_PAUSE_SECONDS = 3.0  # between two files of an upload that goes on


class Job:
    """A model, its samples and its outputs, in a folder that is removed when the job is closed.

    state: uploading, running, done or failed.
    """

    def __init__(self, limit: int, memory: int | str | None = None) -> None:
        self.key = secrets.token_hex(8)
        self.limit, self.used, self.memory = limit, 0, memory
        self._counting = threading.Lock()  # archives are unpacked in other threads
        self.state = _UPLOADING
        self._made = scratch_part()
        self.folder = self._made.path
        for name in (*KINDS, "out", _TEMPORARY):
            (self.folder / name).mkdir()
        self._step: list[Any] = []
        self._error, self._hint, self._missed = "", "", list[str]()
        self._asked: dict[str, Any] = {}
        self._began, self._ended = 0.0, 0.0  # of the run, in seconds of the monotonic clock
        self._heard = time.monotonic()  # when a file last came
        self._incoming = 0  # number of files that are being written
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @contextlib.contextmanager
    def receiving(self, kind: str, name: str) -> Iterator[Path]:
        """Yield the path for a file that is being uploaded. If the upload is incomplete, the job fails.

        Raises Refused for a file that the job does not accept.
        """
        path = self._place(kind, name)
        self._incoming += 1
        self._heard = time.monotonic()
        try:
            yield path
        except BaseException as e:
            self.state, self._error = _FAILED, f"{name} was not received completely"
            self._hint = str(e) or "the page was left or the connection lost: give the files again"
            path.unlink(missing_ok=True)
            if isinstance(e, OSError):  # the disk is full, or the job was closed meanwhile
                raise Refused(f"{name} cannot be written: {e.strerror}", status=NO_ROOM) from e
            raise
        finally:
            self._incoming -= 1
            self._heard = time.monotonic()

    @property
    def busy(self) -> str:
        """What goes on, so that no other job may begin; empty if nothing does."""
        if self.state == _RUNNING:
            return "a job is running"
        heard = self._incoming or time.monotonic() - self._heard < _PAUSE_SECONDS
        return "files of another run are being sent" if self.state == _UPLOADING and self.used and heard else ""

    def take(self, count: int) -> None:
        """Count bytes that are about to be written. Raises Refused if they exceed the limit."""
        with self._counting:
            if self.used + count > self.limit:
                more = f"the files are larger than {self.limit / 1e6:.1f} MB in all"
                raise Refused(more, "start with a larger --max-upload, or give fewer samples", TOO_LARGE)
            self.used += count

    def arrived(self, path: Path) -> None:
        """Unpack an uploaded file if it is a zip of samples. Raises Refused as `unpack` does."""
        if path.is_relative_to(self.folder / "calib") and path.suffix.lower() == ".zip":
            try:
                unpack(path, path.parent, self.take)
            finally:
                path.unlink()

    def start(self, asked: Asked) -> None:
        """Start the worker process. Raises Refused if files are missing, too many, or the run has already begun."""
        if self.state != _UPLOADING or self._incoming:
            raise Refused("the run cannot begin: it has already, or files are still being uploaded", status=CONFLICT)
        request = json.dumps(self._described(asked))
        # A session of its own, so that its child processes end with it.
        self._process = subprocess.Popen(
            source_tree.command("onnxshot.ui.worker"), env=self._environment(), cwd=self.folder,
            start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
        self.state, self._began = _RUNNING, time.monotonic()
        self._asked = {**asdict(asked), "model": Path(json.loads(request)["model"]).name}
        self._reader = threading.Thread(target=self._follow, args=(self._process, request), daemon=True)
        self._reader.start()

    def tell(self) -> dict[str, Any]:
        """Return the state of the job as the page shows it."""
        outputs = sorted(p for p in (self.folder / "out").iterdir() if p.is_file()) if self.state == _DONE else []
        return {
            "key": self.key, "state": self.state, "step": self._step, "error": self._error, "hint": self._hint,
            "missed": self._missed, "asked": self._asked, "seconds": self._seconds(),
            "outputs": [{"name": p.name, "bytes": p.stat().st_size} for p in outputs],
        }  # fmt: skip

    def _seconds(self) -> float:
        """How long the run has taken."""
        return round((self._ended or time.monotonic()) - self._began, 1) if self._began else 0.0

    def output(self, name: str) -> Path:
        """Return the path of an output or of the report. Raises Refused if there is no such file."""
        places = {"report.html": self.folder, "report.json": self.folder}
        path = places.get(name, self.folder / "out") / safe_name(name)
        if self.state != _DONE or not path.is_file():
            raise Refused(f"there is no {name}", "the outputs of the job are listed", NOT_FOUND)
        return path

    def close(self) -> None:
        """Kill the worker process and remove the folder."""
        if self._process is not None and self._reader is not None:
            system.end_tree(self._process)
            self._reader.join()
        self._made.close()
        clear_dead(Path(tempfile.gettempdir()))  # temporary files of the killed process
        listed()

    def _environment(self) -> dict[str, str]:
        """Environment of the worker. Its temporary files lie in the folder of the job and are removed with it."""
        return {**source_tree.environment(), "TMPDIR": str(self.folder / _TEMPORARY)}

    def _place(self, kind: str, name: str) -> Path:
        if self.state != _UPLOADING:
            raise Refused("this job accepts no more files", "begin another", CONFLICT)
        if kind not in KINDS:
            raise Refused(f"there is no place for {kind!r}", f"one of {', '.join(KINDS)}", NOT_FOUND)
        path = self.folder / kind / safe_path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as e:
            raise Refused(f"{name} lies below a file", "give that or this one", CONFLICT) from e
        if path.exists():
            raise Refused(f"{name} was uploaded already", "upload every file once", CONFLICT)
        return path

    def _described(self, asked: Asked) -> dict[str, Any]:
        """Build the request for the worker. Paths are relative to the folder, so reports do not name it."""
        models = sorted(p for p in (self.folder / "model").rglob("*") if p.is_file() and p.suffix.lower() == ".onnx")
        if len(models) != 1:
            raise Refused(f"{len(models)} .onnx files were given", "give one, and its external data if any")
        place = self.folder / "calib"
        samples = list(place.iterdir())
        if not any(path.is_file() for path in place.rglob("*")):
            kinds = "pictures, sounds, texts, .npz or .npy files"
            raise Refused("no calibration files were given", f"give {kinds}, or a zip of them")
        preset = asked.preset
        if preset == OWN_PRESET:
            files = sorted(p.name for p in (self.folder / "preset").iterdir())
            if len(files) != 1 or Path(files[0]).suffix.lower() not in (".yaml", ".yml"):
                raise Refused("the preset is a file, but not exactly one .yaml file was given")
            preset = f"preset/{files[0]}"
        while len(samples) == 1 and samples[0].is_dir():  # descend into the folder that was uploaded
            place = samples[0]
            samples = list(place.iterdir())
        tokenizers = sorted(place.rglob(TOKENIZER))
        if len(tokenizers) > 1:
            raise Refused(f"{len(tokenizers)} files {TOKENIZER} were given", "give that of the model")
        alone = [path for path in samples if path not in tokenizers]
        if len(alone) == 1 and alone[0].suffix.lower() in (".npz", ".npy", *TEXTS, *SOUNDS):
            place = alone[0]
        ending = "small" if asked.level else "int8"
        return {
            "model": str(models[0].relative_to(self.folder)), "calib": str(place.relative_to(self.folder)),
            "preset": preset, "target": asked.target, "level": asked.level, "length": asked.length,
            "effort": asked.effort, "goals": asked.goals(), "searched": asked.searched(),
            "tokenizer": str(tokenizers[0].relative_to(self.folder)) if tokenizers else None,
            "output": f"out/{models[0].stem}.{ending}.onnx", "report": "report.json", "page": "report.html",
            "memory": self.memory, "search_seconds": asked.search_seconds, "accept": asked.accept,
        }  # fmt: skip

    def _follow(self, process: subprocess.Popen[str], request: str) -> None:
        """Send the request to the worker and read its messages until it ends."""
        assert process.stdin is not None
        assert process.stdout is not None
        done = False
        with process, contextlib.suppress(OSError):
            process.stdin.write(request + "\n")
            process.stdin.flush()
            for line in process.stdout:
                message = json.loads(line)
                self._step = message.get("progress", self._step)
                self._error, self._hint = message.get("error", self._error), message.get("hint", self._hint)
                self._missed = message.get("missed", self._missed)
                done = message.get("done", done)
        if not done and not self._error:
            why = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
            self._error = f"the run ended with {why} before it was done"
            self._hint = "memory may have run out: close other programs, or start onnxshot ui with a lower --memory"
        self._ended = time.monotonic()
        self.state = _DONE if done else _FAILED


class Desk:
    """Holds the current job, if any.

    limit: most bytes that the files of a job may have. memory: memory budget of a run, as in `Settings`.
    """

    def __init__(self, limit: int, memory: int | str | None = None) -> None:
        self.limit, self.memory = limit, memory
        self.current: Job | None = None

    def begin(self) -> Job:
        """Begin a new job and remove the previous one. Raises Refused with CONFLICT if that one is busy."""
        if self.current is not None and self.current.busy:
            raise Refused(self.current.busy, "wait for it, or cancel it", CONFLICT)
        self.close()
        self.current = Job(self.limit, self.memory)
        return self.current

    def job(self, key: str) -> Job:
        """Return the job with this key. Raises Refused if it is gone."""
        if self.current is None or not secrets.compare_digest(self.current.key.encode(), key.encode()):
            raise Refused("that job is gone", "it was cancelled, or another job was begun", NOT_FOUND)
        return self.current

    def close(self) -> None:
        """Remove the job, and end it if it is running."""
        if self.current is not None:
            self.current.close()
            self.current = None
