"""Killed at any moment, a reader finds the old result whole or the new one whole, and the next run puts all right."""

import os
from collections.abc import Callable
from pathlib import Path

import kills
import numpy as np
import onnx
import onnxruntime
import pytest
from handmade.core import model

from onnxshot.graph.load import load_model
from onnxshot.graph.save import Draft, write
from onnxshot.writing.places import aside

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are forked and killed")

TEXT = "net (float[1, 64] x) => (float[1, 64] y) { t = MatMul(x, w) y = Add(t, b) }"
X = np.linspace(-1, 1, 64, dtype=np.float32)[None]


def net(seed: int, rows: int = 64) -> onnx.ModelProto:
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


@pytest.mark.parametrize("before", ["nothing", "inline", "external", "larger"])
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_a_model_and_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, external: bool, links: bool
) -> None:
    if not links:
        def refused(*_: object, **__: object) -> None:
            raise PermissionError(1, "no links here")

        monkeypatch.setattr(os, "link", refused)
    template, place = tmp_path / "before", tmp_path / "place"
    strangers(template)
    final = place / "net.onnx"
    if before != "nothing":
        save(template / "net.onnx", 1, external=before != "inline")
    kills.anew(template, place)
    old = answers(final)
    work: Callable[[], None] = lambda: save(final, 2, external=external)  # noqa: E731  # it is handed to forks
    kills.run(work)
    new, whole = answers(final), kills.contents(place)
    assert not same(old, new)
    seen = []
    for at in kills.every_moment(work, template, place):
        found = answers(final)
        assert same(found, old) or same(found, new), at
        seen.append(same(found, new))
        kills.run(work)
        assert kills.contents(place) == whole, at
    assert seen == sorted(seen)  # once new, always new
    assert len(seen) >= 12
    assert before == "nothing" or seen[0] is False
