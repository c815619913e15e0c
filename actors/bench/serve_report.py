"""From what clients saw to the figures of `callboard bench serve`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...runtime.plot import Chart, Series, svg
from .load import Run
from .percentiles import PERCENTS, percentile
from .report import Report

if TYPE_CHECKING:
    from rich.console import RenderableType

RATE, CONCURRENCY = "rate", "concurrency"
LATENCIES = ("ttft", "itl", "e2e")
TITLES = {"ttft": "time to first token", "itl": "between tokens", "e2e": "end to end"}


@dataclass(frozen=True)
class Bounds:
    """What a good answer keeps to: its time to the first token, and the mean time between its tokens."""

    ttft_ms: float
    itl_ms: float


@dataclass(frozen=True)
class Level:
    """One load: requests a second (`rate`), or clients at once (`concurrency`); and its figures by name."""

    kind: str
    value: float
    figures: dict[str, tuple[float, str]]

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.value:g}"

    @property
    def title(self) -> str:
        return f"{self.value:g} requests/s" if self.kind == RATE else f"{self.value:g} clients"


def level_of(kind: str, value: float, run: Run, bounds: Bounds) -> Level:
    done = [record for record in run.records if not record.error]
    good = [each for each in done if each.ttft * 1e3 <= bounds.ttft_ms and each.mean_gap * 1e3 <= bounds.itl_ms]
    figures = {
        "requests": (len(run.records), "requests"),
        "errors": (len(run.records) - len(done), "requests"),
        "request_rate": (len(done) / run.seconds, "requests/s"),
        "output_rate": (sum(each.num_tokens for each in done) / run.seconds, "tokens/s"),
        "total_rate": (sum(each.num_tokens + each.num_prompt_tokens for each in done) / run.seconds, "tokens/s"),
        "goodput": (len(good) / run.seconds, "requests/s"),
    }
    samples = {
        "ttft": [each.ttft for each in done],
        "itl": [gap for each in done for gap in each.gaps],
        "e2e": [each.latency for each in done],
    }
    for name in LATENCIES:
        for percent in PERCENTS:
            if samples[name]:
                figures[f"{name}_p{percent}"] = (1e3 * percentile(samples[name], percent), "ms")
    return Level(kind, value, figures)


def errors_of(run: Run) -> dict[str, int]:
    return dict(Counter(record.error for record in run.records if record.error))


class ServeReport(Report):
    """The same contract as every report, and a table with a column for each load."""

    levels: Sequence[Level] = ()

    def take(self, levels: Sequence[Level]) -> None:
        self.levels = levels
        for level in levels:
            for name, (value, unit) in level.figures.items():
                self.add(f"{level.name}.{name}", [value], unit)

    def tables(self) -> list[RenderableType]:
        from rich.table import Table

        table = Table("", title="callboard bench serve", title_justify="left")
        for level in self.levels:
            table.add_column(level.title, justify="right")
        for figure in dict.fromkeys(name for level in self.levels for name in level.figures):
            found = [level.figures.get(figure) for level in self.levels]
            unit = next(each[1] for each in found if each is not None)
            table.add_row(_label(figure, unit), *("-" if each is None else _readable(each[0]) for each in found))
        machine = "  ".join(f"{key}: {value}" for key, value in self.machine.items())
        return [machine, table]


def _label(figure: str, unit: str) -> str:
    name, _, percent = figure.partition("_p")
    if name in TITLES:
        return f"{TITLES[name]} p{percent}, {unit}"
    return f"{figure.replace('_', ' ')}, {unit}" if figure != unit else figure


def _readable(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def charts(levels: Sequence[Level]) -> list[Chart]:
    """Latencies and throughput over the load."""
    along = "requests a second" if levels[0].kind == RATE else "clients at once"

    def series(title: str, figure: str) -> Series:
        points = [(level.value, level.figures[figure][0]) for level in levels if figure in level.figures]
        return Series(title, tuple(points))

    found = [
        Chart(f"{TITLES[name]}, ms", along, tuple(series(f"p{percent}", f"{name}_p{percent}") for percent in PERCENTS))
        for name in LATENCIES
    ]
    rates = (series("output", "output_rate"), series("with prompts", "total_rate"))
    found.append(Chart("tokens/s", along, rates))
    return found


def plot(report: ServeReport) -> str:
    """The report as a picture, in SVG."""
    facts: dict[str, Any] = report.machine
    return svg(charts(report.levels), f"{facts.get('model', '')} on {facts.get('cpu', '')}, {facts.get('cores')} cores")
