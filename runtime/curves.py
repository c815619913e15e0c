"""Values over the steps of a run, as they come, and what is done to a curve before people look at it."""

from __future__ import annotations

import math
from collections.abc import Sequence

Curve = Sequence[tuple[float, float]]
"""(step, value) in the order of steps."""


class StepCurves:
    """Curves of one run by name, which grow while it goes on.

    A run that goes on from a checkpoint takes steps again: of each step the latest word counts, and from an earlier
    time nothing is left after the step that was taken last.
    """

    def __init__(self) -> None:
        self._points: dict[str, dict[int, float]] = {}
        self._last = 0

    @property
    def last_step(self) -> int:
        return self._last

    @property
    def names(self) -> tuple[str, ...]:
        """Of the curves that have a point, in the order in which they began."""
        return tuple(name for name, points in self._points.items() if points)

    def step(self, step: int) -> None:
        """A step was taken: what is noted next is of it."""
        if step <= self._last:
            self.forget(step)
        self._last = step

    def note(self, name: str, step: int, value: float | None) -> None:
        """What is no finite number is no point of a curve."""
        if value is not None and math.isfinite(value):
            self._points.setdefault(name, {})[step] = value

    def forget(self, first: int) -> None:
        """All from this step on."""
        for points in self._points.values():
            for step in [step for step in points if step >= first]:
                del points[step]

    def curve(self, name: str) -> Curve:
        return sorted(self._points.get(name, {}).items())

    def latest(self, name: str) -> float | None:
        """The value of the last step that has one."""
        points = self._points.get(name)
        return points[max(points)] if points else None


def smoothed(curve: Curve, weight: float) -> Curve:
    """The exponential mean, of which `weight` is what each point keeps of the points before it.

    Debiased as Adam's moments are (Kingma and Ba, 2014): the first values are not drawn towards zero.
    """
    if not 0 <= weight < 1:
        raise ValueError(f"a smoothing of {weight} is not from 0 to below 1")
    mean, share = 0.0, 0.0
    points: list[tuple[float, float]] = []
    for step, value in curve:
        mean = weight * mean + (1 - weight) * value
        share = weight * share + (1 - weight)
        points.append((step, mean / share))
    return points


def thinned(curve: Curve, most: int) -> Curve:
    """At most so many points (4 or more): of each stretch the least and the largest stay, and so do both ends.

    So a spike of one step is seen in a curve of a million.
    """
    if most < 4:
        raise ValueError(f"{most} points do not show a curve")
    if len(curve) <= most:
        return curve
    inner = curve[1:-1]
    num = (most - 2) // 2
    points = [curve[0]]
    for i in range(num):
        stretch = inner[i * len(inner) // num : (i + 1) * len(inner) // num]
        low, high = min(stretch, key=_value), max(stretch, key=_value)
        points += sorted({low, high})
    return [*points, curve[-1]]


def _value(point: tuple[float, float]) -> float:
    return point[1]
