"""Work on several samples at once, with results in order and no more than a few in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result, None, None]:
    """The results of `work` on every item, in the order of the items.

    `workers` items are worked on at once and as many results wait; items are drawn in the calling thread, when there is
    room. ONNX Runtime lets go of Python's lock while it runs: one sample per thread is faster than one after another on
    all threads. Where the caller stops, or an item fails, what has begun is finished and the rest is not begun.
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="onnxshot")
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def split_threads(threads: int, items: int | None) -> tuple[int, int]:
    """(workers, threads for each) where `threads` work on so many items; None: on more than there are threads."""
    threads = max(1, threads)
    workers = threads if items is None else max(1, min(threads, items))
    return workers, threads // workers


def run_concurrently(*works: Callable[[], Result]) -> list[Result]:
    """The results of a few independent calls, made side by side: sessions take their time to be created."""
    return list(in_order(lambda work: work(), works, len(works)))
