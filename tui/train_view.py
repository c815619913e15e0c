"""A training run as people watch it: its curves, what the model said on its way, and what happened. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..runtime.curves import StepCurves, smoothed, thinned
from ..runtime.plot import Chart, Series
from ..schemas.train import (
    TrainCheckpointed,
    TrainEvaluated,
    TrainEvent,
    TrainNote,
    TrainProgress,
    TrainSampled,
)

EVALUATION = "evaluation"
MEASURED = ("loss", "lr", "grad_norm", "tokens_per_s")
TITLES = {
    "loss": "loss (dots: held out)",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens/s",
}
# What changes too much from step to step to be looked at as it is, and what a logarithmic axis is for.
_SMOOTHED = ("loss", "grad_norm", "tokens_per_s")
_LOG = ("loss", "grad_norm")
MOST_NOTES = 500
SMOOTHINGS = (0.0, 0.6, 0.8, 0.9, 0.97)


class TrainView:
    """`samples`: (step, prompt, text), the latest last. `last`: the progress of the step taken last."""

    def __init__(self, job: str, events: Iterable[TrainEvent] = ()) -> None:
        self.job = job
        self.curves = StepCurves()
        self.samples: list[TrainSampled] = []
        self.notes: list[str] = []
        self.last: TrainProgress | None = None
        for event in events:
            self.add(event)

    def add(self, event: TrainEvent) -> None:
        match event:
            case TrainProgress():
                self._progress(event)
            case TrainEvaluated():
                self.curves.note(EVALUATION, event.step, event.loss)
                self._say(event.step, f"evaluated: loss {event.loss:.4g}" + (", the best so far" if event.best else ""))
            case TrainSampled():
                self.samples.append(event)
            case TrainCheckpointed():
                self._say(event.step, f"checkpoint {event.path} in {event.seconds:.1f} s")
            case TrainNote():
                self._say(event.step, event.text)

    def _progress(self, event: TrainProgress) -> None:
        if event.step <= self.curves.last_step:  # it goes on from a checkpoint
            self.samples = [sample for sample in self.samples if sample.step < event.step]
            self._say(event.step, "taken again from the last checkpoint")
        self.curves.step(event.step)
        self.last = event
        for name in MEASURED:
            self.curves.note(name, event.step, getattr(event, name))
        if event.skipped:
            self._say(event.step, f"changed nothing: {event.skipped}")

    def _say(self, step: int, text: str) -> None:
        self.notes.append(f"{step:>6}  {text}")
        del self.notes[:-MOST_NOTES]


def chart(
    runs: Sequence[TrainView], name: str, *, smoothing: float = 0.0, log: bool = False,
    window: tuple[float, float] | None = None, most: int = 400,
) -> Chart:  # fmt: skip
    """Runs over each other, each in the colour of its place. `window`: the steps to show, all without one.

    Where a character has one colour, values as they are would cover what is smoothed: one of them is drawn.
    """
    series: list[Series] = []
    for colour, run in enumerate(runs):
        curve = run.curves.curve(name)
        if smoothing and name in _SMOOTHED:
            curve = smoothed(curve, smoothing)
        series.append(Series(run.job, tuple(thinned(_within(curve, window), most)), colour, dots=False))
        if name == "loss":
            points = _within(run.curves.curve(EVALUATION), window)
            series.append(Series(f"{run.job}, held out", tuple(points), colour))
    shown = tuple(one for one in series if one.points)
    return Chart(TITLES.get(name, name), "step", shown, from_zero=False, log=log and name in _LOG, legend=False)


def _within(curve: Sequence[tuple[float, float]], window: tuple[float, float] | None) -> list[tuple[float, float]]:
    if window is None:
        return list(curve)
    return [(step, value) for step, value in curve if window[0] <= step <= window[1]]


def num_steps(runs: Iterable[TrainView]) -> int:
    """The last step that any of them has taken."""
    return max((run.curves.last_step for run in runs), default=0)


def zoomed(
    window: tuple[float, float] | None, last: float, factor: float, around: float = 1.0
) -> tuple[float, float] | None:
    """A window `factor` as long (below 1: closer), which keeps the step in place that lies at the share `around` of it.

    None where all of the run is in it.
    """
    low, high = window or (0.0, last)
    center = low + (high - low) * around
    low, high = center - (center - low) * factor, center + (high - center) * factor
    if high - low < 2:
        return window
    if low <= 0 and high >= last:
        return None
    return _kept(low, high, last)


def moved(window: tuple[float, float] | None, last: float, share: float) -> tuple[float, float] | None:
    """A window that lies so much of its own length further on."""
    if window is None:
        return None
    by = (window[1] - window[0]) * share
    return _kept(window[0] + by, window[1] + by, last)


def _kept(low: float, high: float, last: float) -> tuple[float, float]:
    """As long, and within the run where it is no longer than that."""
    length = min(high - low, last)
    low = min(max(low, 0.0), last - length)
    return low, low + length


def duration(seconds: float) -> str:
    """`3 s`, `12 min`, `2 h 05 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60:02} min"
    return f"{hours // 24} d {hours % 24} h"
