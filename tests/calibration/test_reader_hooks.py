"""Readers of other files: registered for a suffix, or installed as entry points; what they may not do is refused."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest

from onnxshot.calibration import reader_hooks
from onnxshot.calibration.reader_hooks import register_reader
from onnxshot.calibration.readers import InputSpec, open_data
from onnxshot.errors import CalibrationError, UsageError

VECTOR = (InputSpec("x", np.dtype(np.float32), ("N", 4)),)
ROWS = np.arange(24, dtype=np.float32).reshape(6, 4)


def rows_of(path):
    return np.fromfile(path, np.float32).reshape(-1, 4)


def dicts_of(path):
    for row in rows_of(path):
        yield {"x": row}


@pytest.fixture(autouse=True)
def no_readers(monkeypatch):
    monkeypatch.setattr(reader_hooks, "_READERS", {})


def values(data):
    return np.concatenate([sample.feed["x"] for sample in data])


@pytest.mark.parametrize("reader", [rows_of, dicts_of])
def test_a_file_or_a_folder_of_a_registered_suffix(tmp_path, reader):
    register_reader(".RAW", reader)
    for i in range(2):
        ROWS[3 * i : 3 * i + 3].tofile(tmp_path / f"{i}.raw")
    (tmp_path / "notes.doc").write_text("not data")
    np.testing.assert_array_equal(values(open_data(tmp_path, VECTOR)), ROWS)
    np.testing.assert_array_equal(values(open_data(tmp_path / "1.raw", VECTOR)), ROWS[3:])


def test_a_reader_that_a_package_brings_along(tmp_path, monkeypatch):
    ROWS.tofile(tmp_path / "a.raw")
    assert "unknown kind" in refused(tmp_path / "a.raw")
    point = EntryPoint(".raw", f"{__name__}:rows_of", reader_hooks.GROUP)
    monkeypatch.setattr(reader_hooks, "entry_points", lambda group: [point] if group == point.group else [])
    monkeypatch.setattr(EntryPoint, "load", lambda self: rows_of)
    np.testing.assert_array_equal(values(open_data(tmp_path / "a.raw", VECTOR)), ROWS)


def refused(path):
    with pytest.raises(CalibrationError) as caught:
        open_data(path, VECTOR)
    return str(caught.value)


def test_a_reader_that_fails_is_named_with_its_file(tmp_path):
    ROWS.tofile(tmp_path / "a.raw")
    register_reader(".raw", lambda path: 1 / 0)
    assert f"the reader of {tmp_path / 'a.raw'} raised ZeroDivisionError" in refused(tmp_path / "a.raw")
    register_reader(".raw", lambda path: None)
    assert "returned None" in refused(tmp_path / "a.raw")


@pytest.mark.parametrize(("suffix", "reader"), [("raw", rows_of), (".npy", rows_of), (".PNG", rows_of), (".raw", 3)])
def test_what_is_no_suffix_or_no_reader_is_refused(suffix, reader):
    with pytest.raises(UsageError):
        register_reader(suffix, reader)
