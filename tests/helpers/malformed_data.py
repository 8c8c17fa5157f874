"""Data that no model can be calibrated on, and texts that are no recipe: what each is refused with.

DATA: name -> (what makes it, words that the error holds). The model has inputs ids int64 [N,T], below 10, and
x float32 [N,4]. TEXTS: name -> bytes of a file that is no recipe, no manifest and no preset.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

Words = tuple[str, ...]
Maker = Callable[[Path], object]
DATA: dict[str, tuple[Maker, Words]] = {}


def network(folder: Path) -> Path:
    """A table of 10 rows that ids are looked up in, beside a product."""
    head = '<ir_version: 8, opset_import: ["": 17]> net (int64[N, T] ids, float[N, 4] x) => (float[N, 256] y) '
    first = "e = Gather(table, ids) m = ReduceMean<axes = [1], keepdims = 0>(e) h = MatMul(x, w) "
    proto = parser.parse_model(f"{head} {{ {first} s = Add(m, h) y = MatMul(s, v) }}")
    rng = np.random.default_rng(0)
    for name, shape in (("table", (10, 256)), ("w", (4, 256)), ("v", (256, 256))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    onnx.save(proto, folder / "net.onnx")
    return folder / "net.onnx"


def row(i: int = 0, **other: Any) -> dict[str, Any]:
    """A sample that fits, with some values replaced."""
    rng = np.random.default_rng(i)
    return {"ids": rng.integers(0, 10, (1, 3)), "x": rng.standard_normal((1, 4)).astype(np.float32), **other}


class Refusing:
    """What a tensor on a GPU is to numpy."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        raise self.error


class Broken(Mapping[str, Any]):
    """A mapping whose values cannot be had."""

    def __getitem__(self, key: str) -> Any:
        raise LookupError(f"no {key} today")

    def __iter__(self) -> Iterator[str]:
        return iter(("ids", "x"))

    def __len__(self) -> int:
        return 2


def data(name: str, *words: str) -> Callable[[Maker], Maker]:
    """Register what makes calibration data."""

    def add(make: Maker) -> Maker:
        assert name not in DATA
        DATA[name] = (make, words)
        return make

    return add


def sample(name: str, *words: str, **other: Any) -> None:
    """Register data whose third sample has these values in place of good ones."""
    data(name, "#2", *words)(lambda _: [row(0), row(1), row(2, **other), row(3)])


def stream(name: str, *words: str, error: BaseException) -> None:
    """Register a generator that raises this behind its second sample."""

    def generator() -> Iterator[dict[str, Any]]:
        yield from (row(0), row(1))
        raise error

    data(f"a generator that raises {name}", "sample 2", *words, "malformed_data.py:")(lambda _: generator())


GPU = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
sample("a tensor on a GPU", "'x'", "TypeError", ".detach().cpu().numpy()", x=Refusing(TypeError(GPU)))
sample("a tensor that wants a gradient", "'x'", "RuntimeError", "detach", x=Refusing(RuntimeError("requires grad")))
sample("an array that exits", "'x'", "SystemExit", x=Refusing(SystemExit(0)))
sample("an array that interrupts", "'x'", "KeyboardInterrupt", x=Refusing(KeyboardInterrupt()))
sample("ragged rows", "'ids'", "differ in length", ids=[[1, 2], [3]])
sample("rows of different depth", "'x'", x=[[1.0, [2.0]], 3.0])
sample("an id beyond the table", "'ids'", "10", ids=np.array([[1, 10, 2]]))
sample("an id far below the table", "'ids'", "-11", ids=np.array([[1, 2, -11]]))
sample("an id of 63 bits", "'ids'", ids=np.array([[1, 1 << 62]]))
sample("an id that is too large for int64", "'ids'", "uint64", ids=np.array([[1, (1 << 64) - 1]], np.uint64))
sample("an integer of Python's without end", "'ids'", ids=[[10**30]])
sample("floats as ids", "'ids'", "int64", ids=np.ones((1, 3), np.float32))
sample("text as ids", "'ids'", ids=[["one", "two"]])
sample("None", "'x'", x=None)
sample("an object", "'x'", x=object())
sample("a set", "'x'", x={1.0, 2.0})
sample("a dict inside", "'x'", x={"values": [1.0]})
sample("complex numbers", "'x'", "complex128", x=np.ones((1, 4), complex))
sample("dates", "'x'", "datetime64", x=np.zeros((1, 4), "datetime64[s]"))
sample("time spans", "'x'", "timedelta64", x=np.zeros((1, 4), "timedelta64[s]"))
sample("a structured array", "'x'", x=np.zeros((1, 4), [("a", np.float32), ("b", np.float32)]))
sample("raw bytes", "'x'", x=np.zeros((1, 4), "V4"))
sample("a truth value", "'x'", x=np.ones((1, 4), bool))
sample("whole numbers for floats", "'x'", x=np.ones((1, 4), np.int64))
sample("text", "'x'", x="hello")
sample("a scalar", "'x'", x=np.float32(1))
sample("one axis too many", "'x'", x=np.ones((1, 1, 1, 4), np.float32))
sample("another width", "'x'", "4", x=np.ones((1, 5), np.float32))
sample("nothing in it", "'x'", x=np.ones((1, 0), np.float32))
sample("batches that do not go together", "'x'", x=np.ones((2, 4), np.float32), ids=np.ones((3, 3), np.int64))
sample("NaN", x=np.full((1, 4), np.nan, np.float32))
sample("infinity", x=np.full((1, 4), np.inf, np.float32))
sample("float64 beyond float32", "'x'", x=np.full((1, 4), 1e300))
data("a key less", "#2", "'x'")(lambda _: [row(0), row(1), {"ids": row()["ids"]}])
data("keys that are no text", "#0")(lambda _: [{1: row()["ids"], 2: row()["x"]}])
data("samples without names", "#0", "arrays without names", "'ids', 'x'")(lambda _: [np.ones((1, 4), np.float32)])
data("tuples that are too short", "#0", "'ids', 'x'")(lambda _: [(row()["ids"],)])
data("numbers as samples", "#0")(lambda _: [3.5, 4.5])
data("tuples in another order", "#0", "'ids'")(lambda _: [(row()["x"], row()["ids"])])
data("text in place of samples", "'x'", "a text does not tell it")(lambda _: ["ids", "x"])
data("a mapping that raises", "LookupError", "malformed_data.py:")(lambda _: [Broken()])
data("columns that raise", "LookupError", "malformed_data.py:")(lambda _: Broken())
data("columns of different shapes", "'ids'", "[1, 2]", "[1, 3]")(
    lambda _: {"ids": [np.ones((1, 3), int), np.ones((1, 2), int)], "x": [row()["x"], row()["x"]]}
)
data("an empty list", "no samples")(lambda _: [])
data("an empty generator", "no samples")(lambda _: iter(()))
data("an empty dict", "nothing")(lambda _: {})
data("a number", "int")(lambda _: 3)
data("an array alone", "2 inputs")(lambda _: np.ones((3, 4), np.float32))
data("an array of no samples", "no samples")(lambda _: {"ids": np.ones((0, 3), int), "x": np.ones((0, 4), np.float32)})
data("bytes", "bytes")(lambda _: b"abc")
data("a type", "type")(lambda _: dict)
_ERRORS = (ValueError("bad"), SystemExit(0), SystemExit("done"), GeneratorExit(), KeyboardInterrupt(), OSError(2, "x"))
for _error in _ERRORS:
    stream(f"{type(_error).__name__} {_error}".strip(), type(_error).__name__, error=_error)
stream("MemoryError", "MemoryError", error=MemoryError())
stream("RecursionError", "RecursionError", error=RecursionError("deep"))
stream("StopAsyncIteration", "StopAsyncIteration", error=StopAsyncIteration())


class Sequence(list[Any]):
    """A data set of torch's kind, whose third item fails."""

    def __getitem__(self, index: Any) -> Any:
        if index == 2:
            sys.exit(0)
        return row(index)


data("a data set that exits", "#2", "SystemExit", "malformed_data.py:")(lambda _: Sequence([None] * 6))


class Endless(Sequence):
    """A data set that does not know how long it is."""

    def __len__(self) -> int:
        raise TypeError("no length")


data("a data set without a length", "TypeError: no length")(lambda _: Endless())


class Reader:
    """A reader of onnxruntime's kind that fails."""

    def __init__(self) -> None:
        self._left = 2

    def get_next(self) -> Any:
        self._left -= 1
        if self._left < 0:
            raise EOFError("no more")
        return row(self._left)


data("a reader that raises", "EOFError", "malformed_data.py:")(lambda _: Reader())

# ------------------------------------------------------------------ files


def _header(shape: str, descr: str = "<f4", fortran: bool = False) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin-1")


def _npz(folder: Path, compress: bool = False, **members: bytes) -> Path:
    import zipfile

    path = folder / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


IDS = _header("(2, 3)", "<i8") + bytes(48)
HEADERS = {
    "more than is there": ("(2, 400)", "<f4"), "a negative size": ("(-2, -4)", "<f4"), "no tuple": ("7", "<f4"),
    "sizes of 30 digits": (f"({10**30}, 4)", "<f4"), "code": ("__import__('os').system('true')", "<f4"),
    "a dtype without bytes": ("(1000000000000,)", "S0"), "objects": ("(2, 4)", "|O"), "no dtype": ("(2, 4)", "nope"),
    "fewer than is there": ("(2, 2)", "<f4"), "a float as size": ("(2.0, 4)", "<f4"),
    "70 axes": (str((1,) * 70), "<f4"), "text of a gigabyte": ("(2,)", "<U1000000000"),
}  # fmt: skip
for _name, (_shape, _descr) in HEADERS.items():
    for _compress in (False, True):
        _kind = "compressed" if _compress else "stored"
        _content = _header(_shape, _descr) + bytes(32)
        data(f"{_kind}: a header that says {_name}", "data.npz", "cannot be read")(
            lambda folder, c=_content, z=_compress: _npz(folder, z, ids=IDS, x=c)
        )


@data("an archive that unpacks to 160 MB", "data.npz", "x.npy")
def _bomb(folder: Path) -> Path:
    x = _header("(10000000, 4)") + bytes(160_000_000)
    return _npz(folder, True, ids=IDS, x=x)


@data("a sample that unpacks to 80 MB for an input of 16 bytes", "'x'", "[1,5000000]")
def _large(folder: Path) -> Path:
    (folder / "samples").mkdir()
    values = np.random.default_rng(0).integers(0, 256, 20_000_000, np.uint8).tobytes()
    _npz(folder / "samples", True, ids=_header("(1, 3)", "<i8") + bytes(24), x=_header("(1, 5000000)") + values)
    return folder / "samples"


def _in_folder(name: str, *words: str) -> Callable[[Callable[[Path], object]], None]:
    """Register a folder that holds a good sample and something else."""

    def add(make: Callable[[Path], object]) -> None:
        def folder_of(folder: Path) -> Path:
            inner = folder / "samples"
            inner.mkdir()
            np.savez(inner / "a.npz", **row())
            make(inner / "b.npz")
            return inner

        data(f"a folder with {name}", "b.npz", *words)(folder_of)

    return add


_in_folder("a FIFO", "FIFO")(os.mkfifo)
_in_folder("a link to a device", "device")(lambda path: path.symlink_to("/dev/zero"))
_in_folder("a dangling link", "cannot be read")(lambda path: path.symlink_to("nowhere"))
_in_folder("a link to itself", "cannot be read")(lambda path: path.symlink_to(path.name))
_in_folder("an empty file", "cannot be read")(lambda path: path.touch())
_in_folder("text", "cannot be read")(lambda path: path.write_text("PK hello"))
for _name in ("/dev/zero", "/dev/null", "/proc/self/mem"):
    data(_name, _name)(lambda _, place=_name: Path(place))


@data("a FIFO", "FIFO")
def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "data.npz")
    return folder / "data.npz"


@data("an empty folder", "no samples")
def _empty(folder: Path) -> Path:
    (folder / "samples").mkdir()
    return folder / "samples"


# ------------------------------------------------------------------ texts

_LAUGHS = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghijkl"))
_MERGED = "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in itertools.pairwise("abcdefghijkl"))
TEXTS: dict[str, bytes] = {
    "nothing": b"",
    "a list": b"[1, 2]\n",
    "a word": b"hello\n",
    "not UTF-8": b"effort: \xe9\xff\n",
    "UTF-16 without a mark": "effort: best\n".encode("utf-16-le"),
    "zeros": bytes(1000),
    "a tab": b"effort:\n\t- best\n",
    "a billion laughs": f"a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n{_LAUGHS}".encode(),
    "a billion merges": f"a: &a {{x: 1}}\n{_MERGED}".encode(),
    "an alias of itself": b"a: &a [*a]\n",
    "an alias of nothing": b"a: *nothing\n",
    "brackets": b"a: " + b"[" * 100_000,
    "JSON brackets": b'{"a": ' + b"[" * 100_000,
    "braces": b"{a: " * 5_000,
    "dashes": b"- " * 100_000,
    "an integer of 5000 digits": b"batch: " + b"9" * 5000,
    "JSON of 5000 digits": b'{"batch": ' + b"9" * 5000 + b"}",
    "a float of 5000 digits": b"concat_ratio: 0." + b"0" * 5000 + b"1",
    "a number to the base 60": b"batch: " + b":".join([b"59"] * 100_000),
    "a key twice": b"effort: best\neffort: fast\n",
    "a key twice in JSON": b'{"effort": "best", "effort": "fast"}',
    "two documents": b"effort: best\n---\neffort: fast\n",
    "a date that is none": b"batch: 2001-99-99\n",
    "a Python object": b"effort: !!python/object/apply:os.system [true]\n",
    "an unknown tag": b"effort: !secret best\n",
    "an unknown key": b"colour: red\n",
    "a key that is a list": b"? [a, b]\n: 1\n",
    "binary": b"effort: !!binary aGVsbG8=\n",
    "blank lines": b"\n" * 200_000 + b"colour: red\n",
    "an argument without a value": b"effort: ${missing}\n",
    "more than a megabyte": b"# " + b"x" * (20 << 20) + b"\n",
}
"""Refused by all three: what is a recipe alone is not among them."""
