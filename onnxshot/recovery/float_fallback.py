"""Float fallback: find the few nodes whose return to float brings the outputs above a floor, by measuring.

Errors add up along a network, so a tensor with a large error is seldom where the error comes from. Measured in float
are: each block of neighbouring nodes alone, all blocks up to each block, and the best blocks together. Of the smallest
set that suffices, as much as possible returns to int8. The number of trials is bounded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

Units = frozenset[str]
Measure = Callable[[Iterable[Units]], Iterator[float]]
"""Yields the SQNR in dB of the outputs with each set of units in float."""

BLOCKS = 8
_TOGETHER = 3  # blocks that are joined at most, the best first
_SAME_DB = 3.0  # error power may double for fewer nodes in float


def smallest_fallback(order: Sequence[str], measure: Measure, floor: float) -> Units:
    """Return the smallest set of units found that brings the SQNR to the floor; empty where none does.

    Args:
        order: the units in graph order.
        measure: measures sets of units.
        floor: the SQNR to reach, in dB.
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
    """Split the order into at most BLOCKS blocks of neighbours, about equal in length."""
    count = min(BLOCKS, len(order))
    ends = [len(order) * i // count for i in range(count + 1)] if count else []
    return [order[a:b] for a, b in itertools.pairwise(ends)]


def _reduced(kept: Units, order: Sequence[str], measure: Measure, least: float) -> Units:
    """Remove units from the set, first in blocks and then one by one, while the SQNR stays at `least` dB."""
    for part in [*_blocks(order), *([unit] for unit in order if len(order) > BLOCKS)][: 2 * BLOCKS]:
        fewer = kept.difference(part)
        if fewer and fewer != kept and next(iter(measure([fewer]))) >= least:
            kept = fewer
    return kept
