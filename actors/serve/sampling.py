"""The random numbers of sampling: one uniform number for each token, from the request's seed and the token's place.

A counter-based generator has no state that batching, preemption or a replica's death could disturb. This is
SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014), started at the mixed seed.
"""

from __future__ import annotations

import secrets

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, index: int) -> float:
    """The number in [0, 1) for the `index`-th generated token of a request with `seed`, with 53 random bits."""
    start = _mix(seed & _MASK)
    return (_mix((start + (index + 1) * _GOLDEN) & _MASK) >> 11) * 2.0**-53


def new_seed() -> int:
    return secrets.randbits(63)


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
