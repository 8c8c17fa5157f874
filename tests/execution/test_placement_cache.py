"""Decisions by time are kept, checked when they are read, and bounded in number."""

import json
from pathlib import Path

import pytest

from onnxshot.execution import placement_cache as cache
from onnxshot.execution import statistics_cache
from onnxshot.execution.placement_cache import Decision


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path))


def file_of(name: str, tmp_path: Path) -> Path:
    return tmp_path / "placed" / f"{name}.json"


def test_a_decision_comes_back() -> None:
    name, one = cache.key("model", "recipe"), Decision(("a", "b"), 10.0, 12.5, 1.2, {"a": -0.5, "c": 3.0})
    assert cache.load(name, ("a", "b", "c")) is None
    cache.store(name, one)
    assert cache.load(name, ("a", "b", "c")) == one
    assert cache.key("model", "recipe") == name != cache.key("model", "other")


def test_the_time_of_nodes_in_float_is_told_from_that_of_kernels() -> None:
    one = Decision((), 30.0, 20.0, saved={"a": -1.0, "b": 5.0})
    assert one.percent(("a", "b", "unknown")) == pytest.approx(100 * 4 / 20)
    assert Decision().percent(("a",)) == 0.0


def test_one_about_other_nodes_is_none() -> None:
    name = cache.key("model")
    cache.store(name, Decision(("a", "b")))
    assert cache.load(name, ("a",)) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"floats": 3}', "[" * 100_000, json.dumps({"floats": [1], "in_float": 0}),
     json.dumps({"floats": [[]], "in_float": 0, "in_int8": 0, "gain": 1, "saved": {}}),
     json.dumps({"floats": [], "in_float": 0, "in_int8": 0, "gain": 1, "saved": 3}), "x" * (2 << 20)],
)  # fmt: skip
def test_a_damaged_file_is_none(text: str, tmp_path: Path) -> None:
    name = cache.key("model")
    cache.store(name, Decision(("a",)))
    file_of(name, tmp_path).write_text(text)
    assert cache.load(name, ("a",)) is None


def test_the_number_is_bounded_and_other_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_ENTRIES", 3)
    (tmp_path / "placed").mkdir()
    (tmp_path / "placed" / "notes.txt").write_text("mine")
    for number in range(5):
        cache.store(cache.key(str(number)), Decision())
    assert len(list((tmp_path / "placed").glob("*.json"))) == 3
    assert statistics_cache.clear() > 0
    assert [path.name for path in (tmp_path / "placed").iterdir()] == ["notes.txt"]
