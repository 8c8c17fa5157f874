"""How many threads numpy's matrix products run on: one, while onnxshot runs samples or layers side by side.

A BLAS library splits each product among all cores, and its threads wait for one another in a busy loop. Beside other
threads that use the same cores, that multiplies the CPU time of small products. A user who has set one of `VARIABLES`
has decided; then nothing is changed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, MutableMapping

_LIBRARIES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
VARIABLES = (*_LIBRARIES, "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
"""Environment variables by which users choose the threads of a BLAS library."""

_lock = threading.Lock()
_inside = 0  # blocks of `one_blas_thread` that are running, in all threads
_limited = contextlib.ExitStack()


def one_in_process(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let numpy, which must not be loaded yet, start no BLAS threads: each spins for 40 ms when the library is loaded.

    Child processes inherit the setting.
    """
    if "numpy" not in sys.modules and not _chosen(environ):
        environ.update(dict.fromkeys(_LIBRARIES, "1"))


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread within the block, in the whole process; also a decorator.

    The limit is that of the process: blocks of several threads may overlap, and the last to end restores the number of
    threads.
    """
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1 and not _chosen(os.environ):
            from threadpoolctl import ThreadpoolController

            _limited.enter_context(ThreadpoolController().limit(limits=1, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limited.close()


def _chosen(environ: MutableMapping[str, str]) -> bool:
    """Whether the user, or `one_in_process`, has chosen the number of threads."""
    return any(environ.get(name) for name in VARIABLES)
