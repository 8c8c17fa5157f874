"""Arrays past the limit are mapped from a file, which goes away while they stay."""

import errno
import tempfile
from pathlib import Path

import numpy as np
import pytest

from onnxshot.errors import UsageError
from onnxshot.files.atomic_write import scratch
from onnxshot.files.kept_arrays import KeptArrays


def test_arrays_past_the_limit_are_mapped_and_outlive_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rng = np.random.default_rng(0)
    given = [rng.standard_normal((40, 50)).astype(np.float32) for _ in range(3)] + [np.arange(12).reshape(3, 4).T]
    with KeptArrays(limit=10_000) as kept:
        found = [kept.add(array) for array in given]
        assert [one is array for one, array in zip(found, given, strict=True)] == [True, False, False, True]
        (file,) = tmp_path.rglob("arrays")
        assert file.stat().st_size >= 16_000
        kept.release()
    assert not file.exists()
    for one, wanted in zip(found, given, strict=True):
        np.testing.assert_array_equal(one, wanted)
        assert one.dtype == wanted.dtype


def test_an_empty_array_needs_no_file() -> None:
    with KeptArrays(limit=0) as kept:
        assert kept.add(np.zeros((0, 3), np.float32)).shape == (0, 3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with KeptArrays(limit=0) as kept:
        kept.add(np.zeros(10))
        (file,) = tmp_path.rglob("arrays")
        file.unlink()
        file.symlink_to("/dev/full")
        with pytest.raises(UsageError, match="no room for samples") as error:
            kept.add(np.zeros(10))
    assert str(tmp_path) in error.value.message
    assert "TMPDIR" in error.value.hint
    assert not list(tmp_path.iterdir())


def test_only_a_full_temporary_folder_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = OSError(errno.ENOSPC, "No space left on device", "/elsewhere/model.onnx")
    for error, raised in ((other, OSError), (OSError(errno.EACCES, "Permission denied"), OSError),
                          (OSError(errno.ENOSPC, "No space left on device"), UsageError)):  # fmt: skip
        with pytest.raises(raised) as found, scratch():
            raise error
        assert (found.value is error) == (raised is OSError)
