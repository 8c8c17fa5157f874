"""A run whose model changes on the disk meanwhile ends with an error, and writes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade.core import model, weight

import onnxshot
from onnxshot import memory
from onnxshot.api import quantize as quantize_module
from onnxshot.errors import ModelError
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.load import load_model
from onnxshot.runtimes.mapped_weights import serialized
from onnxshot.runtimes.ort_session import SessionRunner

WIDTH, LAYERS = 48, 3
NET = (
    "g (float[N, 48] x) => (float[N, 48] y) {\n"
    + "\n".join(f"{'y' if i == LAYERS - 1 else f'a{i}'} = MatMul({f'a{i - 1}' if i else 'x'}, w{i})" for i in range(3))
    + "}"
)
SAID = "model.onnx(.data)? was changed while its weights were in use"


def in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(WIDTH * WIDTH)
        file.write(b"\x3f" * WIDTH)


def by_rename(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    other.replace(path)


def shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CHANGES: list[Callable[[Path], None]] = [in_place, by_rename, shorter]


@pytest.fixture(params=[False, True], ids=["whole", "parts"])
def parted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if request.param:
        monkeypatch.setattr(memory, "part_bytes", lambda: 4 * WIDTH * WIDTH)
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    proto = model(NET, {f"w{i}": weight(WIDTH, WIDTH) for i in range(LAYERS)})
    onnx.save(proto, str(path), save_as_external_data=True, location="model.onnx.data", size_threshold=64)
    return path


def data_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def samples() -> dict[str, Any]:
    return {"x": np.random.default_rng(0).standard_normal((6, 1, WIDTH)).astype(np.float32)}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_are_not_read_from_a_changed_data_file(given: Path, change: Callable[[Path], None]) -> None:
    both = LeanModel.of(given), LeanModel.of(load_model(given))
    assert [loaded.array("w1").shape for loaded in both] == [(WIDTH, WIDTH)] * 2
    change(data_of(given))
    for loaded in both:
        with pytest.raises(ModelError, match=SAID):
            loaded.array("w1")


def test_a_removed_data_file_is_named(given: Path) -> None:
    loaded = LeanModel.of(given)
    data_of(given).unlink()
    with pytest.raises(ModelError, match="was removed while its weights were in use"):
        loaded.array("w1")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", [True, False])
def test_no_session_is_made_of_a_changed_data_file(
    given: Path, change: Callable[[Path], None], before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "part_bytes", lambda: 4 * WIDTH * WIDTH)
    loaded = LeanModel.of(given)
    if before:
        change(data_of(given))
    with pytest.raises(ModelError, match=SAID), serialized(loaded) as (_, folder):
        assert folder == given.parent, "the weights are mapped from the user's file"
        change(data_of(given))


@pytest.mark.usefixtures("parted")
@pytest.mark.parametrize("which", ["data", "model"])
@pytest.mark.parametrize("change", [in_place, by_rename])
def test_a_run_whose_model_changes_writes_nothing(
    given: Path, which: str, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is made after an early run of a session, after one in the middle, and when the proof has ended."""
    at, calls, run, proven = [0], [0], SessionRunner.run, quantize_module.prove_quantized

    def changed() -> None:
        if which == "data":
            change(data_of(given))
        elif change is in_place:
            os.utime(given, ns=(at[0], at[0]))
        else:
            shutil.copy(given, given.with_name("other")).replace(given)

    def counted(self: SessionRunner, *args: Any, **how: Any) -> Any:
        found = run(self, *args, **how)
        calls[0] += 1
        if calls[0] == at[0]:
            changed()
        return found

    def prove(*args: Any, **how: Any) -> Any:
        judged = proven(*args, **how)
        if calls[0] < at[0]:
            changed()
        return judged

    monkeypatch.setattr(SessionRunner, "run", counted)
    monkeypatch.setattr(quantize_module, "prove_quantized", prove)
    data, out = data_of(given).read_bytes(), given.parent / "out.onnx"
    for moment in (2, 8, 1_000_000):
        data_of(given).write_bytes(data)
        calls[0], at[0] = 0, moment
        with pytest.raises(ModelError, match=SAID):
            onnxshot.quantize(given, samples(), output=out)
        assert calls[0] >= min(moment, 8)
        assert not list(given.parent.glob("*out*"))
    data_of(given).write_bytes(data)
    at[0] = 0
    assert onnxshot.quantize(given, samples(), output=out).report.outputs, "the cache holds nothing of other weights"
