"""Which values of a tensor and which samples of a set are looked at: evenly spread, and the same on every machine."""

import numpy as np
from numpy.typing import NDArray

MOST = 4096
"""Values of one tensor that enter its histogram from one sample, about at most."""
_ROWS = 4096  # strides go up to this: a tensor of more than 16 million values gives more than MOST of them


def _primes(limit: int) -> NDArray[np.int64]:
    """All primes below a limit. Sieve of Eratosthenes."""
    sieve = np.ones(limit, bool)
    sieve[:2] = False
    for n in range(2, int(limit**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = False
    return np.flatnonzero(sieve)


def _table() -> NDArray[np.int64]:
    """Row k: three primes above k, the candidates for the stride of a tensor of k * MOST values; row 0 is 1, 1, 1."""
    primes = _primes(2 * _ROWS)
    at = np.searchsorted(primes, np.arange(_ROWS) + 1)
    table = np.stack([primes[at + i] for i in range(3)], axis=1)
    table[0] = 1
    return table.astype(np.int64)


STRIDES = _table()


def strides(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The stride at which a tensor of each size is read [n] -> [n]: the first prime of its row that does not divide it.

    A stride that shares a factor with a dimension would see only some channels or columns; one that is coprime with
    their product visits them all in turn. Where all three divide the size, which takes a product of three primes in a
    row, the first is taken.
    """
    rows = STRIDES[np.minimum(sizes // (MOST + 1), _ROWS - 1)]
    first = np.argmax(np.minimum(sizes[:, None] % rows, 1), axis=1)
    found: NDArray[np.int64] = rows[np.arange(len(sizes)), first]
    return found


def lengths(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many values are read of a tensor of each size: [n] -> [n]."""
    return -(-sizes // strides(sizes))


def spread(n: int) -> list[int]:
    """0..n-1 in an order whose every beginning is spread evenly over all: a folder by class gives all from the start.

    The radical inverse in base 2 (van der Corput).
    """
    bits = max(1, (n - 1).bit_length())
    order = (int(format(i, f"0{bits}b")[::-1], 2) for i in range(1 << bits))
    return [i for i in order if i < n]
