"""Choose the values of a tensor and the samples of a data set that are observed: evenly spread, and deterministic."""

import random
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MOST = 4096
"""About how many values of one tensor enter its histogram per sample, at most."""
_ROWS = 4096  # largest stride, about: tensors of more than 16 million values give more than MOST values


def _primes(limit: int) -> NDArray[np.int64]:
    """All primes below a limit (sieve of Eratosthenes)."""
    sieve = np.ones(limit, bool)
    sieve[:2] = False
    for n in range(2, int(limit**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = False
    return np.flatnonzero(sieve)


def _table() -> NDArray[np.int64]:
    """Strides to choose from: row k holds three primes above k, for tensors of k * MOST values; row 0 holds 1, 1, 1."""
    primes = _primes(2 * _ROWS)
    at = np.searchsorted(primes, np.arange(_ROWS) + 1)
    table = np.stack([primes[at + i] for i in range(3)], axis=1)
    table[0] = 1
    return table.astype(np.int64)


STRIDES = _table()


def strides(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The stride at which each tensor is subsampled.

    A stride that shares a factor with a dimension would visit only some of the channels or columns. So the stride is
    the first of three primes (see `_table`) that does not divide the size of the tensor; the first prime of all where
    each of them does.

    Args:
        sizes: elements of each tensor, int64 [n].

    Returns:
        Strides, int64 [n].
    """
    rows = STRIDES[np.minimum(sizes // (MOST + 1), _ROWS - 1)]
    first = np.argmax(np.minimum(sizes[:, None] % rows, 1), axis=1)
    found: NDArray[np.int64] = rows[np.arange(len(sizes)), first]
    return found


def lengths(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many values are subsampled from tensors of these sizes; int64 [n] -> [n]."""
    return -(-sizes // strides(sizes))


def one_of_each_part(n: int, count: int) -> list[int]:
    """Numbers of `count` of n items, ascending: one of each of `count` equal parts of the list.

    A list may be sorted by class, or go round the classes. The first needs an item of every part; the second rules out
    a constant stride, which would meet some classes alone. So the places within the parts are evenly distributed and
    in random order (a Latin hypercube sample: McKay, Beckman and Conover 1979), by a constant seed.

    Args:
        n: number of items.
        count: how many to take, 0 <= count <= n.
    """
    starts = [part * n // count for part in range(count + 1)] if count else [0]
    drawn = random.Random(0)
    order = sorted(range(count), key=lambda _: drawn.random())
    return [
        at + int((place + 0.5) / count * (end - at)) for place, (at, end) in zip(order, pairwise(starts), strict=True)
    ]


def spread(n: int) -> list[int]:
    """The numbers 0..n-1 in an order whose every prefix is spread evenly over the whole range.

    In a folder that is sorted by class, all classes thus appear early. The order is the van der Corput sequence, the
    radical inverse in base 2.
    """
    bits = max(1, (n - 1).bit_length())
    order = (int(format(i, f"0{bits}b")[::-1], 2) for i in range(1 << bits))
    return [i for i in order if i < n]
