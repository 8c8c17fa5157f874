"""Arrays past the limit are mapped from a file, which goes away while they stay."""

from pathlib import Path

import numpy as np

from onnxshot.files.kept_arrays import KeptArrays


def test_arrays_past_the_limit_are_mapped_and_outlive_the_file() -> None:
    rng = np.random.default_rng(0)
    given = [rng.standard_normal((40, 50)).astype(np.float32) for _ in range(3)] + [np.arange(12).reshape(3, 4).T]
    with KeptArrays(limit=10_000) as kept:
        found = [kept.add(array) for array in given]
        assert found[0] is given[0]
        files = {Path(one.filename) for one in found[1:] if isinstance(one, np.memmap)}
        assert len(files) == 1
        assert all(file.is_file() for file in files)
        assert [isinstance(one, np.memmap) for one in found] == [False, True, True, False]
    assert not any(file.exists() for file in files)
    for one, wanted in zip(found, given, strict=True):
        np.testing.assert_array_equal(one, wanted)
        assert one.dtype == wanted.dtype


def test_an_empty_array_needs_no_file() -> None:
    with KeptArrays(limit=0) as kept:
        assert kept.add(np.zeros((0, 3), np.float32)).shape == (0, 3)
