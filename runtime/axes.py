"""The scale of a chart's axis: where it begins and ends, where its round numbers lie, how they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

TICKS = 5
# Powers of ten on a logarithmic axis up to which there are ticks between them too.
FEW_POWERS = 2


@dataclass(frozen=True)
class Axis:
    """`low` and `high` are shown, `ticks` lie between them; of a logarithmic one all are above 0."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between `low` (0) and `high` (1)."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(values: Iterable[float], *, from_zero: bool, count: int = TICKS) -> Axis:
    """From one round number to another, about `count` steps apart. `from_zero`: lengths can be compared; values are
    not negative then."""
    known = list(values)
    most = max(known, default=0.0)
    least = 0.0 if from_zero else min(known, default=0.0)
    # What never changes lies in the middle of an axis of its own size; zero alone begins one that ends at 1.
    if not from_zero and most and _same(least, most):
        least, most = most - abs(most) / 2, most + abs(most) / 2
    step = nice_step((most - least) or 1, count)
    first = math.floor(least / step + 1e-9)
    last = max(first + 1, math.ceil(most / step - 1e-9))
    return Axis(first * step, last * step, tuple(i * step for i in range(first, last + 1)))


def tight_axis(values: Iterable[float], count: int = TICKS) -> Axis:
    """From the least value to the largest, with the round numbers between them."""
    known = list(values)
    low, high = min(known, default=0.0), max(known, default=1.0)
    if _same(low, high):
        half = max(0.5, abs(high) / 1e6)
        low, high = low - half, high + half
    step = nice_step(high - low, count)
    ticks = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return Axis(low, high, tuple(i * step for i in ticks))


def log_axis(values: Iterable[float]) -> Axis:
    """Of values above 0, between numbers that are 1, 2 or 5 times a power of ten; of at least one such pair."""
    known = list(values)
    least, most = min(known, default=1.0), max(known, default=1.0)
    # Which of 1, 2, 5, 10, 20, ... is just below, and just above.
    first, last = _rank_below(least), _rank_above(most)
    last = max(last, first + 1)
    ranks = range(first, last + 1)
    if last - first > 3 * FEW_POWERS:
        each = -(-(last - first) // (3 * 2 * TICKS))  # in powers of ten
        ranks = [rank for rank in ranks if rank % (3 * each) == 0]
    return Axis(_ranked(first), _ranked(last), tuple(map(_ranked, ranks)), log=True)


def _same(low: float, high: float) -> bool:
    """Whether what lies between them is no more than rounding."""
    return high - low <= 1e-9 * max(abs(low), abs(high))


def nice_step(span: float, count: int) -> float:
    """A step of 1, 2 or 5 times a power of ten, of which at most `count` cover `span`."""
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    # A rounding error must not take the next larger step where one fits exactly.
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def label(value: float) -> str:
    """Short: `0.002`, `12,000`, `1.5M`."""
    size = abs(value)
    if size >= 1e15:
        return f"{value:.3g}"
    for least, letter in ((1e9, "G"), (1e6, "M")):
        if size >= least:
            return f"{value / least:.4g}{letter}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def _ranked(rank: int) -> float:
    power, factor = divmod(rank, 3)
    return float(f"{(1, 2, 5)[factor]}e{power}")


def _rank_below(value: float) -> int:
    rank = 3 * math.floor(math.log10(value)) + 3
    while _ranked(rank) > value * (1 + 1e-9):
        rank -= 1
    return rank


def _rank_above(value: float) -> int:
    rank = _rank_below(value)
    return rank if _ranked(rank) >= value * (1 - 1e-9) else rank + 1
