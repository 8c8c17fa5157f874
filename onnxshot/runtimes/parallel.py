"""Process several items at once in threads, with results in order and only a few in memory."""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result, None, None]:
    """Yield the results of `work` on every item, in the order of the items.

    Items are drawn in the calling thread when a worker is free. ONNX Runtime releases Python's lock while it runs, so
    one sample per thread is faster than one sample at a time on all threads. If the caller stops or an item fails, work
    in progress is finished and the rest is not started.

    Args:
        work: Called with each item, in a worker thread.
        items: The items.
        workers: Items processed at once. As many results wait at most.
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="onnxshot")
    try:
        for item in items:
            # Each item gets its own copy: a context cannot be entered twice at once.
            pending.append(pool.submit(contextvars.copy_context().run, work, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def split_threads(threads: int, items: int | None) -> tuple[int, int]:
    """Split threads among items.

    Args:
        threads: CPU threads in total.
        items: Number of items; None if there are more items than threads.

    Returns:
        Number of workers, and threads of each.
    """
    threads = max(1, threads)
    workers = threads if items is None else max(1, min(threads, items))
    return workers, threads // workers


def run_concurrently(*works: Callable[[], Result]) -> list[Result]:
    """The results of a few independent calls made at once, such as creating sessions."""
    return list(in_order(lambda work: work(), works, len(works)))
