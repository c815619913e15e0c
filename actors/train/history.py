"""A run's events as curves over its steps, and what is done to a curve before people look at it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from ...runtime.messages import UNDECODABLE
from ...schemas.train import TrainEvaluated, TrainEvent, TrainProgress
from .errors import NoSuchJob

Curve = Sequence[tuple[float, float]]
"""(step, value) in the order of steps."""

EVALUATION = "evaluation"
MEASURED = ("loss", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_bytes")
"""Curves of every run, by their field of `TrainProgress`. `EVALUATION` and a task's own metrics come to them."""

_decoder = msgspec.json.Decoder(TrainEvent)


class JobHistory:
    """What a run said so far; `add` goes on with it while it runs.

    A group of shards that goes on from a checkpoint takes steps again: of each step the latest word counts, and from
    an earlier time nothing is left after the step that was taken last.
    """

    def __init__(self, job: str, events: Iterable[TrainEvent] = ()) -> None:
        self.job = job
        self.skipped: dict[int, str] = {}
        """Steps that changed nothing, and why."""
        self._curves: dict[str, dict[int, float]] = {}
        self._last = 0
        for event in events:
            self.add(event)

    def add(self, event: TrainEvent) -> None:
        match event:
            case TrainProgress():
                if event.step <= self._last:
                    self._forget(event.step)
                self._last = event.step
                if event.skipped:
                    self.skipped[event.step] = event.skipped
                for name in MEASURED:
                    self._note(name, event.step, getattr(event, name))
                for name, value in event.metrics:
                    self._note(name, event.step, value)
            case TrainEvaluated():
                self._note(EVALUATION, event.step, event.loss)
            case _:
                pass

    @property
    def names(self) -> tuple[str, ...]:
        """Of the curves that have a point, in the order in which they began."""
        return tuple(name for name, points in self._curves.items() if points)

    @property
    def last_step(self) -> int:
        return self._last

    def curve(self, name: str) -> Curve:
        """Of finite values alone: a step whose loss was none is among `skipped`."""
        return sorted(self._curves.get(name, {}).items())

    def _note(self, name: str, step: int, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            self._curves.setdefault(name, {})[step] = value

    def _forget(self, first: int) -> None:
        """All from this step on: what is said of a step comes after its progress, and before the next step's."""
        for points in (*self._curves.values(), self.skipped):
            for step in [step for step in points if step >= first]:
                del points[step]


def read_history(job: str, path: Path) -> JobHistory:
    """From a file of events, JSON lines; of a running job what is there. Raises NoSuchJob where there is none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise NoSuchJob(f"{path} is not there") from None
    history = JobHistory(job)
    for line in lines:
        if not line.strip():
            continue
        try:
            history.add(_decoder.decode(line))
        except UNDECODABLE:
            continue  # the line that its writer was killed over
    return history


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
