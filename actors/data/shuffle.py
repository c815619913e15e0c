"""Orders that look random, are the same on every machine, and can be entered anywhere: nothing is kept in memory, and
a run that goes on at position 10,000,000 need not draw what came before.

Everything is a function of (seed, position) through SplitMix64's mixing step (Steele, Lea, Flood: "Fast splittable
pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
# A Feistel network of four rounds cannot be told from a random permutation (Luby and Rackoff, 1988) if its halves are
# wide. Smaller ranges are sorted by random numbers, and the orders last used are kept.
_ROUNDS = 4
SORTED_BELOW = 1 << 18
_KEPT_ORDERS = 64


def mix(value: int) -> int:
    """64 bits that depend on all the bits of `value`."""
    value = (value + _GAMMA) & _MASK
    value = ((value ^ (value >> 30)) * _MIX[0]) & _MASK
    value = ((value ^ (value >> 27)) * _MIX[1]) & _MASK
    return value ^ (value >> 31)


def key_of(*numbers: int) -> int:
    key = 0
    for number in numbers:
        key = mix(key ^ (number & _MASK))
    return key


def permuted(index: int, size: int, key: int) -> int:
    """Where the permutation of `range(size)` that `key` names takes `index`."""
    if size < SORTED_BELOW:
        return int(_sorted_order(size, key)[index])
    return _feistel(index, size, key)


@lru_cache(_KEPT_ORDERS)
def _sorted_order(size: int, key: int) -> NDArray[np.int32]:
    return np.argsort(uniform(0, size, key), kind="stable").astype(np.int32)


def _feistel(index: int, size: int, key: int) -> int:
    """A network permutes the numbers of an even number of bits; one that falls outside of the range is sent through
    again until it is inside."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for round in range(_ROUNDS):
            left, right = right, left ^ (mix(mix(key ^ round) ^ right) & low)
        index = (left << half) | right
        if index < size:
            return index


def uniform(start: int, count: int, key: int) -> NDArray[np.float64]:
    """float64 [count]: the numbers in [0, 1) of the positions from `start` on."""
    values = np.arange(start, start + count, dtype=np.uint64) ^ np.uint64(key)
    values += np.uint64(_GAMMA)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MIX[0])
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MIX[1])
    values ^= values >> np.uint64(31)
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53
