"""Runs as curves, over each other: in a file, or in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.curves import Curve, smoothed, thinned
from ...runtime.errors import UsageError
from ...runtime.plot import Chart, Drawing, Series, as_svg, drawing
from ...runtime.plot_page import page
from ...runtime.plot_png import write_png
from ...runtime.plot_terminal import MIN_HEIGHT, MIN_WIDTH, STYLES, terminal_chart
from .history import EVALUATION, MEASURED, JobHistory

if TYPE_CHECKING:
    from rich.text import Text

KINDS = (".png", ".svg", ".html")
SIZE = (460, 270)
COLUMNS = 2
# What a line of that width can show, with a least and a largest value in each stretch.
MOST_POINTS = 800

_TITLES = {
    "loss": "loss (dots: of held-out samples)",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens/s",
    "mfu": "share of the device's matrix rate",
    "memory_bytes": "memory, GiB",
}
_UNITS = {"memory_bytes": 1 << 30}
# What `log` is for, and what changes too much from step to step to be looked at as it is.
_LOG = ("loss", "grad_norm")
_SMOOTHED = ("loss", "grad_norm", "tokens_per_s", "mfu")
# A terminal shows these beside each other below the loss, as many as fit.
_SMALL = ("lr", "grad_norm", "tokens_per_s", "memory_bytes")
_SMALL_HEIGHT, _SMALL_WIDTH, _GAP = 8, 26, 2
# The least height of the loss above them.
_LARGE_HEIGHT = 8
TERMINAL_SMOOTHING = 0.8


def write_curves(jobs: Sequence[JobHistory], out: Path, *, smoothing: float, log: bool) -> None:
    """Into a file of the type that its name ends in, there whole or not at all.

    `smoothing`: from 0 to below 1, as `runtime/curves.py` takes it; what is smoothed lies over the faint values as they
    are. `log`: losses and gradient norms. Raises UsageError, MissingExtra, OSError.
    """
    kind = out.suffix.lower()
    if kind not in KINDS:
        raise UsageError(f"curves cannot be written to {out.name}", hint=f"let its name end in {', '.join(KINDS)}")
    charts = curves(jobs, smoothing=smoothing, log=log)
    drawn = _drawn(jobs, charts)
    aside = out.with_name(f".{out.name}.new")
    try:
        match kind:
            case ".png":
                write_png(drawn, aside)
            case ".svg":
                aside.write_text(as_svg(drawn), encoding="utf-8")
            case _:
                aside.write_text(page(drawn, charts), encoding="utf-8")
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)


def svg_curves(jobs: Sequence[JobHistory], *, smoothing: float, log: bool) -> str:
    """The same as one image. Raises UsageError."""
    return as_svg(_drawn(jobs, curves(jobs, smoothing=smoothing, log=log)))


def curves(jobs: Sequence[JobHistory], *, smoothing: float, log: bool) -> list[Chart]:
    """A chart for each thing that any of the runs measured. Raises UsageError where there is nothing to show."""
    _check(jobs, smoothing)
    names = [name for name in (*MEASURED, *_metrics(jobs)) if _is_worth_showing(jobs, name)]
    return [_chart(jobs, name, smoothing, log) for name in names]


def terminal_curves(
    jobs: Sequence[JobHistory], width: int, height: int, *, smoothing: float = TERMINAL_SMOOTHING, log: bool = False
) -> Text:
    """The loss, and below it what else there is room for: at most `height` lines of `width` characters.

    Also while a run goes on, with what its history has by then. Raises UsageError where there is nothing to show, and
    ValueError where there is no room for one chart.
    """
    from rich.text import Text

    _check(jobs, smoothing)
    lines: list[Text] = []
    if len(jobs) > 1:
        lines.append(_terminal_legend(jobs, width))
    small = [name for name in _SMALL if _is_worth_showing(jobs, name)]
    small = small[: (width + _GAP) // (_SMALL_WIDTH + _GAP)]
    has_small = bool(small) and height - len(lines) >= _LARGE_HEIGHT + _SMALL_HEIGHT
    room = max(MIN_HEIGHT, height - len(lines) - (_SMALL_HEIGHT if has_small else 0))
    lines += terminal_chart(_clear(_chart(jobs, "loss", smoothing, log)), max(MIN_WIDTH, width), room)
    if has_small:
        each = (width - _GAP * (len(small) - 1)) // len(small)
        charts = [_clear(_chart(jobs, name, smoothing, log)) for name in small]
        panels = [terminal_chart(chart, each, _SMALL_HEIGHT) for chart in charts]
        lines += [Text(" " * _GAP).join(row) for row in zip(*panels, strict=True)]
    shown = Text("\n").join(lines)
    shown.no_wrap, shown.overflow = True, "crop"
    return shown


def _clear(chart: Chart) -> Chart:
    """Where a character has one colour, faint lines would cover the others."""
    return replace(chart, series=tuple(series for series in chart.series if not series.faint))


def _check(jobs: Sequence[JobHistory], smoothing: float) -> None:
    if not 0 <= smoothing < 1:
        raise UsageError(f"a smoothing of {smoothing:g} is not from 0 to below 1")
    if not any(job.names for job in jobs):
        raise UsageError(
            f"no step was taken yet by {', '.join(job.job for job in jobs) or 'any run'}",
            hint="`callboard jobs` says how each job stands",
        )


def _metrics(jobs: Sequence[JobHistory]) -> list[str]:
    known = (name for job in jobs for name in job.names)
    return list(dict.fromkeys(name for name in known if name not in (*MEASURED, EVALUATION)))


def _is_worth_showing(jobs: Sequence[JobHistory], name: str) -> bool:
    """What was not measured is 0 in every step."""
    if name == "loss":
        return True
    return any(value for job in jobs for _, value in job.curve(name))


def _chart(jobs: Sequence[JobHistory], name: str, smoothing: float, log: bool) -> Chart:
    series: list[Series] = []
    for colour, job in enumerate(jobs):
        curve, title = job.curve(name), job.job
        if smoothing and name in _SMOOTHED:
            series.append(_series(title, name, curve, colour, faint=True))
            title, curve = f"{title}, smoothed", smoothed(curve, smoothing)
        series.append(_series(title, name, curve, colour))
        if name == "loss":
            series.append(_series(f"{job.job}, held out", name, job.curve(EVALUATION), colour, dots=True))
    # Smoothed lines over all of the faint ones.
    series.sort(key=lambda one: not one.faint)
    shown = tuple(one for one in series if one.points)
    return Chart(_TITLES.get(name, name), "step", shown, from_zero=False, log=log and name in _LOG, legend=False)


def _series(title: str, name: str, curve: Curve, colour: int, *, faint: bool = False, dots: bool = False) -> Series:
    unit = _UNITS.get(name, 1)
    points = tuple((step, value / unit) for step, value in thinned(curve, MOST_POINTS))
    return Series(title, points, colour, faint, dots)


def _drawn(jobs: Sequence[JobHistory], charts: Sequence[Chart]) -> Drawing:
    names = [job.job for job in jobs]
    title, legend = (names[0], ()) if len(names) == 1 else ("runs", names)
    return drawing(charts, title, columns=min(COLUMNS, len(charts)), size=SIZE, legend=legend)


def _terminal_legend(jobs: Sequence[JobHistory], width: int) -> Text:
    from rich.text import Text

    line = Text()
    for number, job in enumerate(jobs):
        line.append(f"━ {job.job}   ", STYLES[number % len(STYLES)])
    line.truncate(width, overflow="ellipsis")
    return line
