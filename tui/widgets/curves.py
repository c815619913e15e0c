"""Curves of training runs over each other, in braille: each character is two points wide and four high."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.reactive import reactive
from textual.widget import Widget

from ...runtime.axes import label
from ...runtime.plot_terminal import MIN_HEIGHT, MIN_WIDTH, STYLES, terminal_chart
from ..coalesce import Coalesced
from ..styles import beside
from ..train_view import EVALUATION, MEASURED, SMOOTHINGS, TITLES, TrainView, chart, moved, num_steps, zoomed
from .safe_text import plain_line

ALL = "all"
# Smoothing a long run takes some milliseconds.
DRAWN_EVERY_S = 0.25
_GAP = 2
_WORDS = {"grad_norm": "gradient", "tokens_per_s": "tokens/s"}


class Curves(Widget, can_focus=True):
    """`show(runs)`: what they measured so far; call it again whenever there is more."""

    HELP = """
## Curves

`m` shows one figure large, then the next, then all four. `l` makes the axis logarithmic, `o` smooths more or less.
`+` and `-` or the mouse wheel go closer and farther, the arrows go earlier and later, `0` shows the whole run. The
line above has the values where the mouse points.
"""
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "next_metric", "Metric", id="curves.metric"),
        Binding("l", "toggle_log", "Log", id="curves.log"),
        Binding("o", "smoother", "Smooth", id="curves.smooth"),
        Binding("plus,equals_sign", "zoom(0.5)", "Zoom", key_display="+ -", id="curves.closer"),
        Binding("minus", "zoom(2.0)", "Zoom out", show=False, id="curves.farther"),
        Binding("left", "move(-0.25)", "Earlier", show=False, id="curves.earlier"),
        Binding("right", "move(0.25)", "Later", show=False, id="curves.later"),
        Binding("0", "whole", "All", id="curves.whole"),
    ]

    metric: reactive[str] = reactive(ALL)
    log_scale: reactive[bool] = reactive(False)
    smoothing: reactive[float] = reactive(0.8)
    window: reactive[tuple[float, float] | None] = reactive(None)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.runs: Sequence[TrainView] = ()
        self._any_chosen = False
        self._news = Coalesced(self, self._redraw, DRAWN_EVERY_S)
        self._pointed: float | None = None

    def show(self, runs: Sequence[TrainView], *, any_chosen: bool = True) -> None:
        self.runs, self._any_chosen = runs, any_chosen
        self._news.poke()

    def _redraw(self) -> None:
        self.refresh()

    # Looking closer

    def action_next_metric(self) -> None:
        names = (ALL, *MEASURED)
        self.metric = names[(names.index(self.metric) + 1) % len(names)]

    def action_toggle_log(self) -> None:
        self.log_scale = not self.log_scale

    def action_smoother(self) -> None:
        self.smoothing = SMOOTHINGS[(SMOOTHINGS.index(self.smoothing) + 1) % len(SMOOTHINGS)]

    def action_zoom(self, factor: float, around: float = 1.0) -> None:
        self.window = zoomed(self.window, num_steps(self.runs), factor, around)

    def action_move(self, share: float) -> None:
        self.window = moved(self.window, num_steps(self.runs), share)

    def action_whole(self) -> None:
        self.window = None

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_zoom(0.5, self._share(event.x))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_zoom(2.0, self._share(event.x))

    def on_mouse_move(self, event: events.MouseMove) -> None:
        self._pointed = self._share(event.x)
        self._news.poke()

    def on_leave(self) -> None:
        self._pointed = None
        self._news.poke()

    def _share(self, x: int) -> float:
        return min(1.0, max(0.0, x / max(1, self.size.width - 1)))

    # Drawing

    def render(self) -> Text:
        width, height = self.size
        if not any(run.curves.names for run in self.runs):
            return Text("no step was taken yet" if self._any_chosen else "n starts a run", "dim")
        if width < MIN_WIDTH or height < MIN_HEIGHT + 1:
            return self._figures(width)
        room = height - 1
        if self.metric != ALL:
            lines = self._chart(self.metric, width, room)
        elif width >= 2 * MIN_WIDTH + _GAP and room >= 2 * MIN_HEIGHT:
            lines = self._grid(width, room)
        else:
            lines = self._chart("loss", width, room)
        text = Text("\n", no_wrap=True, overflow="crop").join([self._head(width), *lines])
        text.no_wrap, text.overflow = True, "crop"
        return text

    def _grid(self, width: int, height: int) -> list[Text]:
        each, upper = (width - _GAP) // 2, height - height // 2
        lines: list[Text] = []
        for names, rows in ((MEASURED[:2], upper), (MEASURED[2:], height - upper)):
            panels = [self._chart(name, each, rows) for name in names]
            lines += [Text(" " * _GAP).join(row) for row in zip(*panels, strict=True)]
        return lines

    def _chart(self, name: str, width: int, height: int) -> list[Text]:
        drawn = chart(
            self.runs,
            name,
            smoothing=self.smoothing,
            log=self.log_scale,
            window=self.window,
            most=max(4, 4 * width),
        )
        return terminal_chart(drawn, width, height)

    def _head(self, width: int) -> Text:
        """Which run is which, what is done to the curves, and the values where the pointer is, or the last ones."""
        line = Text(no_wrap=True)
        for number, run in enumerate(self.runs):
            line.append_text(plain_line(f"━ {run.job} ", STYLES[number % len(STYLES)]))
        marks = [f"smooth {self.smoothing:g}"] if self.smoothing else []
        marks += ["log"] if self.log_scale else []
        if self.window is not None:
            marks.append(f"steps {self.window[0]:.0f} to {self.window[1]:.0f}")
        line.append(" ".join(marks) + "  ", "dim")
        line.append(self._values())
        line.truncate(width, overflow="ellipsis")
        return line

    def _values(self) -> str:
        run = self.runs[0]
        names = MEASURED if self.metric == ALL else (self.metric,)
        last = num_steps(self.runs)
        if self._pointed is None or not last:
            values = {name: run.curves.latest(name) for name in names}
            where = f"step {run.curves.last_step}"
        else:
            low, high = self.window or (0.0, float(last))
            step = low + (high - low) * self._pointed
            values = {name: _nearest(run.curves.curve(name), step) for name in names}
            where = f"step {step:.0f}"
        if "loss" in names and (held := run.curves.latest(EVALUATION)) is not None:
            values["held out"] = held
        return " ".join(
            [where, *(f"{_WORDS.get(n, n)} {label(_rounded(v))}" for n, v in values.items() if v is not None)]
        )

    def _figures(self, width: int) -> Text:
        """Where there is no room for a curve."""
        lines = [plain_line(f"{TITLES[name]} {label(_rounded(value))}"[:width])
                 for name in MEASURED if (value := self.runs[0].curves.latest(name)) is not None]  # fmt: skip
        return Text("\n").join(lines)


def _nearest(curve: Sequence[tuple[float, float]], step: float) -> float | None:
    return min(curve, key=lambda point: abs(point[0] - step))[1] if curve else None


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
