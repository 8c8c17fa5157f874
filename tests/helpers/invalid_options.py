"""Invalid values for every option of the command line, made from its own list, and the error that each must give.

CASES: every option of every command with bad values of its type. A case is refused with one line and an exit code of
errors.py, or is harmless, and then ends well; none is an internal error (exit code 1) and none hangs.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import onnx
from onnx import numpy_helper, parser
from typer.models import ArgumentInfo, OptionInfo

from onnxshot.cli.app import app

LONG = "9" * 5000
WHOLE = ("-1", "0", "x", "1.5", "", "1e3", "nan", LONG, "99999999999999999999", "100000", "١")
NUMBERS = ("nan", "inf", "-inf", "-1", "x", "", LONG, "1e400", f"0.{'0' * 5000}1", "-0.0", "1e-320")
TEXTS = (
    "", " ", "x" * 5000, "\udcff", "a\nb", "\x1b[2J", "*" * 300, "[", "=", "a=", "=1", ":", f"a={LONG}", "a=-1x2",
)  # fmt: skip
READ = (
    "missing", "folder", "fifo", "/dev/zero", "socket", "empty", "latin", "zeros", "", "x" * 300, "loop", "dangling",
)  # fmt: skip
WRITTEN = ("folder", "/dev/full", "/proc/none/x.onnx", "empty/x.onnx", "", "x" * 300, "loop/x.onnx", "/dev/zero")
BASES = {
    "quantize": ["net.onnx", "--calib", "calib.npz"],
    "prune": ["net.onnx", "--sparsity", "0.5"],
    "compress": ["net.onnx", "--optim-level", "0.1", "--calib", "calib.npz"],
    "calibrate": ["net.onnx", "-o", "s.npz", "--calib", "calib.npz"],
    "inspect": ["net.onnx"],
    "sensitivity": ["net.onnx", "--calib", "calib.npz"],
    "compare": ["net.onnx", "net.onnx"],
    "diff": ["net.onnx", "net.onnx"],
    "bench": ["net.onnx"],
    "emit": ["net.onnx"],
    "replay": ["net.onnx", "r.recipe.yaml"],
    "batch": ["m.yaml"],
    "verify": ["folder"],
    "ui": [],
    "doctor": [],
}
"""The fewest arguments that a command needs, in a folder that `prepared` has filled."""


@dataclass(frozen=True, slots=True)
class Case:
    """One bad value of one option; option is '' for an argument without a name."""

    command: str
    option: str
    value: str
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        shown = self.value if len(self.value) < 30 else f"{self.value[:8]}... of {len(self.value)}"
        return f"{self.command} {self.option or 'argument'} {shown!a}"


def prepared(folder: Path) -> None:
    """Fill a folder with a small model, its samples, and what READ and WRITTEN name."""
    head = '<ir_version: 8, opset_import: ["": 17]> net (float[N, 8] x) => (float[N, 4] y) '
    proto = parser.parse_model(head + "{ h = Gemm(x, v, a) r = Relu(h) m = MatMul(r, u) y = Gemm(m, w, b) }")
    rng = np.random.default_rng(0)
    shapes = {"v": (8, 256), "a": (256,), "u": (256, 256), "w": (256, 4), "b": (4,)}
    for name, values in ((name, rng.standard_normal(shape) / 16) for name, shape in shapes.items()):
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(proto, folder / "net.onnx")
    np.savez(folder / "calib.npz", x=rng.standard_normal((8, 8)).astype(np.float32))
    (folder / "m.yaml").write_text("models: [{model: net.onnx, calib: calib.npz}]\noutput: out\n", encoding="utf-8")
    (folder / "r.recipe.yaml").write_text("runs: 3\n", encoding="utf-8")
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "latin").write_bytes(b"effort: \xe9\xff\n")
    (folder / "zeros").write_bytes(bytes(1000))
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket is at most 108 bytes long
        made.bind("socket")
        os.chdir(here)


def cases() -> Iterator[Case]:
    """All of them, in the order of the help pages."""
    for registered in app.registered_commands:
        function = registered.callback
        assert function is not None
        base = BASES[function.__name__]
        for name, hint in get_type_hints(function, include_extras=True).items():
            notes = getattr(hint, "__metadata__", ())
            told = next((one for one in notes if isinstance(one, OptionInfo | ArgumentInfo)), None)
            kinds = {int, float, str, Path} & {*_flat(hint)}
            if told is None or not kinds:
                continue
            (kind,) = kinds
            if isinstance(told, ArgumentInfo):  # the first argument; what else the command needs stays
                for value in _values(name, kind):
                    yield Case(function.__name__, name, value, (*base[1:], "--", value))
                continue
            spelled = [one for one in told.param_decls or () if one.startswith("--")]
            option = (spelled or [f"--{name.replace('_', '-')}"])[0]
            for value in _values(name, kind):
                yield Case(function.__name__, option, value, (*base, f"{option}={value}"))


def _flat(hint: Any) -> Iterator[Any]:
    """A type hint and all that it is made of."""
    yield hint
    for part in get_args(hint):
        yield from _flat(part)


def _values(name: str, kind: object) -> tuple[str, ...]:
    if kind is int:
        return WHOLE
    if kind is float:
        return NUMBERS
    if kind is Path:
        return WRITTEN if name in ("output", "report", "bundle", "keep_stages", "timing_cache") else READ
    return (*TEXTS, *READ[2:]) if name in ("calib", "preset", "evaluation") else TEXTS
