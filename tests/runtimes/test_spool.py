"""Arrays wait in memory or in a file, and come back as they were."""

from __future__ import annotations

import errno
import tempfile

import ml_dtypes
import numpy as np
import pytest

from onnxshot.errors import UsageError
from onnxshot.runtimes.spool import Spool


@pytest.mark.parametrize("limit", [0, 100, 1 << 30])
def test_arrays_come_back(limit: int) -> None:
    rng = np.random.default_rng(0)
    given = {
        "matrix": rng.standard_normal((5, 7)).astype(np.float32),
        "scalar": np.int64(3) + np.zeros((), np.int64),
        "empty": np.zeros((0, 4), np.float16),
        "half": rng.standard_normal(9).astype(ml_dtypes.bfloat16),
        "flags": np.array([True, False]),
        "texts": np.array(["a", "bc"], object),
        "strided": rng.standard_normal((6, 6))[::2, 1::3],
    }
    with Spool(limit) as spool:
        for name, array in given.items():
            spool.put(name, array)
        for name, array in given.items():
            found = spool.get(name)
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
        spool.put("matrix", given["matrix"] + 1)
        np.testing.assert_array_equal(spool.get("matrix"), given["matrix"] + 1)


def test_the_file_shrinks_when_nothing_in_it_is_kept() -> None:
    with Spool(0) as spool:
        for _ in range(3):
            spool.put("one", np.zeros(1000))
            path = spool.path
            assert path is not None
            assert path.stat().st_size == 8000
            spool.drop("one")
            assert "one" not in spool
            assert path.stat().st_size == 0
    assert not path.exists()
    with pytest.raises(KeyError):
        spool.get("one")


def test_places_of_dropped_arrays_are_used_again() -> None:
    """While something is always kept, the file does not grow beyond what was kept at once."""
    rng = np.random.default_rng(1)
    with Spool(0) as spool:
        kept: dict[int, np.ndarray] = {}
        for key in range(60):
            kept[key] = rng.standard_normal(int(rng.integers(1, 5)) * 25)
            spool.put(key, kept[key])
            if key >= 4:
                spool.drop(key - 4)
                del kept[key - 4]
            for name, array in kept.items():
                np.testing.assert_array_equal(spool.get(name), array)
        path = spool.path
        assert path is not None
        assert path.stat().st_size <= 3 * 5 * 800  # five arrays of at most 800 bytes, and gaps between them


def test_a_view_does_not_keep_the_memory_that_it_shares() -> None:
    whole = np.zeros(1000)
    with Spool() as spool:
        spool.put("view", whole[:10])
        assert not np.shares_memory(spool.get("view"), whole)
        spool.put("own", whole)
        assert spool.get("own") is whole


class Raw:
    """A file that takes few bytes at a time, as the system does near the end of a disk, and then none."""

    name = "/somewhere/spool"

    def __init__(self, room: int) -> None:
        self.held, self.at, self.room = bytearray(), 0, room

    def seek(self, at: int) -> None:
        self.at = at

    def write(self, data: memoryview) -> int:
        if self.at >= self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(len(data), 7, self.room - self.at)
        self.held[self.at : self.at + taken] = data[:taken]
        self.at += taken
        return taken

    def readinto(self, into: memoryview) -> int:
        found = self.held[self.at : self.at + min(len(into), 5)]
        into[: len(found)] = found
        self.at += len(found)
        return len(found)

    def truncate(self, size: int) -> None:
        del self.held[size:]

    def close(self) -> None:
        pass


def test_writes_and_reads_that_stop_early_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Raw(1000)
    monkeypatch.setattr(Spool, "_opened", lambda _: raw)
    with Spool(0) as spool:
        spool.put("one", np.arange(20))
        spool.put("two", np.arange(30, dtype=np.float32))
        np.testing.assert_array_equal(spool.get("one"), np.arange(20))
        np.testing.assert_array_equal(spool.get("two"), np.arange(30, dtype=np.float32))


def test_a_full_disk_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Raw(100)
    monkeypatch.setattr(Spool, "_opened", lambda _: raw)
    with Spool(0) as spool:
        spool.put("one", np.arange(12))
        with pytest.raises(UsageError, match="no room for tensors that wait for later parts") as error:
            spool.put("two", np.arange(12))
        assert tempfile.gettempdir() in error.value.message
        assert "TMPDIR" in error.value.hint and "Settings(memory=SIZE)" in error.value.hint
        assert "two" not in spool
        np.testing.assert_array_equal(spool.get("one"), np.arange(12))
