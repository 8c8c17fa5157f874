"""Which few nodes, put back into float, bring a result that is not good enough above the floor: found by measuring.

Errors add up along a network, so that where they are largest is seldom where they come from. Blocks of neighbouring
nodes are measured alone, then everything in front of each block, then the best blocks together; of what helps, as much
goes back to int8 as can. All of it takes a bounded number of trials.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

Units = frozenset[str]
Measure = Callable[[Iterable[Units]], Iterator[float]]
"""SQNR in dB of the outputs with each of these sets in float; drawn one by one."""

BLOCKS = 8
_TOGETHER = 3  # blocks that are put together, the best first
_SAME_DB = 3.0  # noise may double for fewer nodes in float


def helpful(order: Sequence[str], measure: Measure, floor: float) -> Units:
    """The smallest set of units that was found to bring the SQNR to the floor; empty where none was.

    order: the units in graph order.
    """
    blocks = _blocks(order)
    alone = [frozenset(block) for block in blocks]
    fronts = [frozenset(unit for block in blocks[:count] for unit in block) for count in range(2, len(blocks))]
    found = dict(zip([*alone, *fronts], measure([*alone, *fronts]), strict=True))
    best = sorted(alone, key=lambda units: -found[units])
    joined = [frozenset[str]().union(*best[:count]) for count in range(2, min(_TOGETHER, len(best) - 1) + 1)]
    joined = [units for units in joined if units not in found]
    found |= dict(zip(joined, measure(joined), strict=True))
    enough = [units for units, db in found.items() if db >= floor]
    if not enough:
        return frozenset()
    kept = min(enough, key=lambda units: (len(units), -found[units]))
    return _reduced(kept, [unit for unit in order if unit in kept], measure, max(floor, found[kept] - _SAME_DB))


def _blocks(order: Sequence[str]) -> list[Sequence[str]]:
    """At most BLOCKS runs of neighbours of about equal length."""
    count = min(BLOCKS, len(order))
    ends = [len(order) * i // count for i in range(count + 1)] if count else []
    return [order[a:b] for a, b in itertools.pairwise(ends)]


def _reduced(kept: Units, order: Sequence[str], measure: Measure, least: float) -> Units:
    """What is left where as much as can be, in blocks and then one by one, is taken out again."""
    for part in [*_blocks(order), *([unit] for unit in order if len(order) > BLOCKS)][: 2 * BLOCKS]:
        fewer = kept.difference(part)
        if fewer and fewer != kept and next(iter(measure([fewer]))) >= least:
            kept = fewer
    return kept
