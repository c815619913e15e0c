"""Percentiles of samples, by linear interpolation between the two nearest ranks."""

from __future__ import annotations

from collections.abc import Sequence

PERCENTS = (50, 90, 99)


def percentile(samples: Sequence[float], percent: float) -> float:
    """The value that `percent` of the samples do not exceed. Raises ValueError for no samples."""
    if not samples:
        raise ValueError("no samples have no percentile")
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
