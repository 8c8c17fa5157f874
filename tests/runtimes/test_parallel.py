from collections.abc import Iterator
from threading import Barrier, Event, current_thread, main_thread

import pytest

from onnxshot.runtimes.parallel import in_order, run_concurrently, split_threads


def test_results_come_in_the_order_of_the_items() -> None:
    second_done = Event()

    def work(item: int) -> int:
        if item == 0:
            assert second_done.wait(30)
        if item == 1:
            second_done.set()
        return item * item

    assert list(in_order(work, range(20), 2)) == [i * i for i in range(20)]


def test_items_are_drawn_in_the_calling_thread_and_few_ahead() -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for i in range(100):
            assert current_thread() is main_thread()
            drawn += 1
            yield i

    for taken, result in enumerate(in_order(lambda i: i, items(), 3)):
        assert taken == result
        assert drawn - taken <= 4


def test_as_many_items_run_at_once_as_there_are_workers() -> None:
    meeting = Barrier(3, timeout=30)
    assert len(list(in_order(lambda _: meeting.wait(), range(9), 3))) == 9


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_stops_further_items(error: type[BaseException]) -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise error
        return item

    results = in_order(work, range(1000), 2)
    with pytest.raises(error):
        list(results)
    assert len(begun) <= 7


def test_a_caller_who_stops_leaves_nothing_running() -> None:
    begun = []
    for result in in_order(lambda i: begun.append(i) or i, range(1000), 2):
        if result == 5:
            break
    assert len(begun) <= 9


def test_run_concurrently() -> None:
    meeting = Barrier(2, timeout=30)
    assert sorted(run_concurrently(meeting.wait, meeting.wait)) == [0, 1]


@pytest.mark.parametrize(
    ("threads", "items", "shares"),
    [(2, 32, (2, 1)), (8, 2, (2, 4)), (4, 1, (1, 4)), (3, 2, (2, 1)), (4, None, (4, 1)), (0, 5, (1, 1))],
)
def test_split_threads(threads: int, items: int | None, shares: tuple[int, int]) -> None:
    assert split_threads(threads, items) == shares
