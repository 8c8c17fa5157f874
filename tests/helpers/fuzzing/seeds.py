"""The models that mutants are made of: fixtures, graphs made by hand, and those of a folder that is given."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fixture_data import facts, fixture, heldout
from handmade import HANDMADE
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from fuzzing.core import rng_of

Feed = dict[str, NDArray[Any]]
SAMPLES = 4
_DIM = 2  # of a dimension that the model leaves open, where no sample says how large it is


def seeds(folder: Path | None = None) -> dict[str, Callable[[], tuple[ModelProto, list[Feed]]]]:
    """Name -> what gives the model and samples of it. folder: of .onnx files, at any depth, with calib/*.npz beside."""
    if folder is not None:
        files = sorted(folder.rglob("*.onnx"))
        return {str(path.relative_to(folder)): functools.partial(_of_file, path) for path in files}
    found: dict[str, Callable[[], tuple[ModelProto, list[Feed]]]] = {}
    for name in facts():
        found[name] = functools.partial(_fixture, name)
    for name, build in HANDMADE.items():
        found[name] = functools.partial(_handmade, build)
    return found


def _fixture(name: str) -> tuple[ModelProto, list[Feed]]:
    return onnx.load(fixture(name)), heldout(name)[0][:SAMPLES]


def _handmade(build: Callable[[], Any]) -> tuple[ModelProto, list[Feed]]:
    made = build()
    return made.model, made.feeds[:SAMPLES]


def _of_file(path: Path) -> tuple[ModelProto, list[Feed]]:
    proto = onnx.load(path)
    samples: list[Feed] = []
    for file in sorted((path.parent / "calib").glob("*.npz"))[:SAMPLES]:
        with np.load(file) as data:
            samples.append({name: data[name] for name in data.files})
    return proto, samples


def feeds_of(proto: ModelProto, known: list[Feed]) -> list[Feed]:
    """Samples of a mutant: those of its seed where they fit its inputs, else random ones. Open dimensions agree."""
    weights = {t.name for t in proto.graph.initializer}
    made: list[Feed] = []
    for number in range(max(1, len(known) or SAMPLES)):
        rng, feed = np.random.default_rng([7, number]), {}
        for info in proto.graph.input:
            if info.name in weights:
                continue
            value = known[number].get(info.name) if known else None
            feed[info.name] = value if value is not None and _fits(info, value) else _random(info, rng, value)
        made.append(feed)
    return made


def _fits(info: onnx.ValueInfoProto, value: NDArray[Any]) -> bool:
    kind = info.type.tensor_type
    if not kind.HasField("shape"):
        return True
    dims = kind.shape.dim
    sizes = [d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in dims]
    same = len(dims) == value.ndim and all(s in (None, v) for s, v in zip(sizes, value.shape, strict=True))
    return same and value.dtype == _dtype(kind.elem_type)


def _dtype(kind: int) -> Any:
    if kind in (TensorProto.UNDEFINED, TensorProto.STRING) or kind not in TensorProto.DataType.values():
        return np.dtype(np.float32)
    return helper.tensor_dtype_to_np_dtype(kind)


def _random(info: onnx.ValueInfoProto, rng: np.random.Generator, like: NDArray[Any] | None) -> NDArray[Any]:
    dims = info.type.tensor_type.shape.dim
    open_ = like.shape if like is not None and like.ndim == len(dims) else (_DIM,) * len(dims)
    shape = [d.dim_value if d.dim_value > 0 or d.HasField("dim_value") else o for d, o in zip(dims, open_, strict=True)]
    shape = [min(max(0, size), 64) for size in shape]
    dtype = np.dtype(_dtype(info.type.tensor_type.elem_type))
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.normal(0, 1, shape).astype(dtype)


def numbered(count: int, names: list[str], mutations: list[str]) -> list[tuple[str, str, int]]:
    """(seed, mutation, number) of so many mutants: every mutation in turn, each on models drawn for it."""
    drawn = []
    for number in range(count):
        mutation = mutations[number % len(mutations)]
        drawn.append((rng_of("seed", number, len(names)).choice(names), mutation, number))
    return drawn
