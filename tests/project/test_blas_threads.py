"""Tests for `onnxshot.blas_threads`: one thread within a block, also where blocks overlap, and what users set stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixture_data import fixture, heldout
from handmade.core import Feed

import onnxshot
from onnxshot import blas_threads
from onnxshot.blas_threads import VARIABLES, one_blas_thread
from onnxshot.cli import app

COUNT = """
import numpy, threadpoolctl
print(max(one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"))
"""


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable chooses the number of threads."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def threads() -> int:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    counts = [one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"]
    if not counts:
        pytest.skip("this numpy uses a BLAS whose threads cannot be counted")
    return max(counts)


@pytest.fixture
def two_before(undecided: None) -> Iterator[None]:
    """BLAS is set to two threads, where it can run more than one."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        if threads() != 2:
            pytest.skip("BLAS runs on one thread here in any case")
        yield


def test_one_thread_within_the_block(two_before: None) -> None:
    with one_blas_thread():
        assert threads() == 1
    assert threads() == 2


def test_the_last_of_overlapping_blocks_restores(two_before: None) -> None:
    """Two verbs in two threads of a program: the first to end must not restore, the last must."""
    first, second = one_blas_thread(), one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert threads() == 1
    second.__exit__(None, None, None)
    assert threads() == 2


def test_an_error_restores(two_before: None) -> None:
    with pytest.raises(ValueError, match="inside"), one_blas_thread():
        raise ValueError("inside")
    assert threads() == 2


def test_what_the_user_set_stays(two_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    with one_blas_thread():
        assert threads() == 2


def test_verbs_run_on_one_thread(two_before: None) -> None:
    """Seen from user code that a verb calls: the calibration samples."""
    seen = []

    def samples() -> Iterator[Feed]:
        for sample in heldout("digits_mobile")[0][:4]:
            seen.append(threads())
            yield sample

    onnxshot.calibrate(fixture("digits_mobile"), samples())
    assert set(seen) == {1}
    assert threads() == 2


@pytest.mark.parametrize(("given", "wanted"), [({}, {"1"}), ({"OMP_NUM_THREADS": "2"}, {"2"})])
def test_a_process_is_prepared_before_numpy_is_loaded(given: dict[str, str], wanted: set[str]) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("BLAS runs on one thread here in any case")
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES} | given
    code = "from onnxshot import blas_threads\nblas_threads.one_in_process()\n" + COUNT
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert {found.stdout.strip()} == wanted


def test_a_loaded_numpy_is_left_alone() -> None:
    environ: dict[str, str] = {}
    blas_threads.one_in_process(environ)
    assert environ == {}


def test_the_command_line_loads_no_numpy_before_it_sets_threads() -> None:
    code = "import onnxshot.cli.app, sys; print('numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
    assert "blas_threads.one_in_process()" in Path(app.__file__).read_text()
