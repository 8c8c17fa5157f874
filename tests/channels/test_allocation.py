"""Which channels an allocation gives up, with tables of time: held against every way there is on small cases."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from onnxshot.channels.allocation import Allocation
from onnxshot.channels.costs import Cost, Product
from onnxshot.channels.groups import Group
from onnxshot.channels.layer_times import LayerTime
from onnxshot.channels.removal_curve import RemovalCurve
from onnxshot.graph.axis_coupling import Ids


def numbers(*widths: int) -> list[Ids]:
    ends = np.cumsum(widths)
    return [np.arange(end - width, end) for width, end in zip(widths, ends, strict=True)]


def curve(ids: Ids, losses: Sequence[float]) -> RemovalCurve:
    """A group whose channels are cut in order; losses: what each adds."""
    loss = np.concatenate([[0.0], np.cumsum(losses)])
    return RemovalCurve(Group(f"group {ids[0]}", "channels", ids, (), (), ()), ids[: len(losses)], loss, loss)


def timed(ids: Ids, per_block: float, block: int) -> LayerTime:
    """Time that goes with blocks of channels made, and nothing else."""
    full = per_block * -(-len(ids) // block)
    return LayerTime(np.asarray([[full, full / 2], [full, full / 2]]), None, ids, block)


def test_latency_is_met_at_the_least_loss_there_is() -> None:
    """Blocks that take as much time each, and losses that grow: every number of channels of every group is tried."""
    rng = np.random.default_rng(0)
    ids = numbers(16, 16, 16)
    time = Cost(tuple(timed(i, 10.0, 4) for i in ids))
    for _ in range(5):
        curves = [curve(i, np.sort(rng.exponential(1, 12))) for i in ids]
        for share in (0.9, 0.75, 0.5):
            found = Allocation(curves, time, 1, 48)
            assert found.remove_until(share)
            ways = []
            for cut in product(range(13), repeat=3):
                alive = np.ones(48, bool)
                for each, n in zip(curves, cut, strict=True):
                    alive[each.order[:n]] = False
                if time.left(alive) <= share * 120:
                    ways.append(sum(float(each.loss[n]) for each, n in zip(curves, cut, strict=True)))
            lost = sum(float(each.loss[n]) for each, n in zip(curves, found.cut, strict=True))
            assert lost == pytest.approx(min(ways))
            assert all((16 - n) % 4 == 0 for n in found.cut), "a block that is not whole takes as long"


def test_of_equal_loss_per_work_the_one_that_saves_time_is_taken() -> None:
    ids = numbers(8, 8)
    curves = [curve(i, [1.0] * 6) for i in ids]
    work = Cost(tuple(Product(100.0, (i,)) for i in ids))
    time = Cost((timed(ids[0], 1.0, 1), timed(ids[1], 2.0, 1)))
    found = Allocation(curves, work, 1, 16, time)
    assert found.remove_until(0.75)
    assert found.cut == [0, 4]
    assert found.share == 0.75


def test_work_that_takes_no_time_is_cut_last_but_cut() -> None:
    """The first group is one block: half of it takes as long as all of it, although it loses less."""
    ids = numbers(8, 16)
    curves = [curve(ids[0], [0.5] * 6), curve(ids[1], [1.0] * 12)]
    work = Cost(tuple(Product(10.0 * len(i), (i,)) for i in ids))
    time = Cost(tuple(timed(i, 10.0, 8) for i in ids))
    found = Allocation(curves, work, 1, 24, time)
    assert found.remove_until(0.7)
    assert found.cut == [0, 8]
    assert found.remove_until(0.4), "the target is one of work"
    assert found.cut[0] > 0
    assert not Allocation(curves, time, 1, 24).remove_until(0.5)


def test_without_time_the_loss_per_work_decides() -> None:
    ids = numbers(8, 8)
    curves = [curve(ids[0], [1.0] * 6), curve(ids[1], [1.5] * 6)]
    work = Cost((Product(100.0, (ids[0],)), Product(200.0, (ids[1],))))
    found = Allocation(curves, work, 1, 16)
    assert found.remove_until(0.75)
    assert found.cut == [0, 3]
    found.reset_to([2, 0])
    assert found.as_removal().removed == {0, 1}
    assert found.share == pytest.approx(1 - 25 / 300)


def test_what_a_large_last_step_makes_needless_is_given_back() -> None:
    """Seven cheap channels are a twelfth of the work: not enough, and needless once a block of the other is cut."""
    ids = numbers(10, 20)
    curves = [curve(ids[0], [1.0] * 7), curve(ids[1], [20.0] * 15)]
    work = Cost((Product(10.0, (ids[0],)), timed(ids[1], 40.0, 20 // 2)))
    found = Allocation(curves, work, 1, 30)
    assert found.remove_until(0.6)
    assert found.cut == [0, 10]


def test_time_is_no_reason_to_cut_far_more_than_was_asked_for() -> None:
    """A group in chunks of 8, of which only 16 save time: 8 of 32 reach the target."""
    (ids,) = numbers(32)
    whole = curve(ids, np.linspace(0.01, 1, 24).tolist())
    layer: Any = None  # nothing but its outputs is looked at
    curves = [replace(whole, group=replace(whole.group, makers=((layer, ids),)))]
    work, time = Cost((Product(32.0, (ids,)),)), Cost((timed(ids, 10.0, 16),))
    for share, wanted in ((0.9, 8), (0.75, 8), (0.7, 16), (0.5, 16)):
        found = Allocation(curves, work, 8, 32, time)
        assert found.remove_until(share)
        assert found.cut == [wanted]
        assert found.share == 1 - wanted / 32
        assert found.is_far(share) == (share in (0.9, 0.7))
