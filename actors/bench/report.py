"""What a benchmark reports: figures with their spread, and the targets that the project has set itself.

`callboard bench NAME --json` prints `Report.to_json()`, whose shape scripts rely on; the table says the same.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Figure:
    """A median, and the least and the greatest of what it is the median of."""

    value: float
    unit: str
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float], unit: str) -> Figure:
        return cls(statistics.median(samples), unit, min(samples), max(samples))


@dataclass(frozen=True)
class Target:
    """A promise: `value` is to be `goal` at least (`at_most`: at most), or is None where it could not be measured."""

    value: float | None
    goal: float
    unit: str
    at_most: bool = False
    why: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal


@dataclass
class Report:
    """One run of one benchmark. `notes` say what went wrong beside it; they are for people, on standard error."""

    bench: str
    machine: dict[str, Any]
    results: dict[str, Figure] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, samples: Sequence[float], unit: str) -> None:
        """A figure: the median of one or more rounds."""
        self.results[name] = Figure.of(samples, unit)

    def add_target(self, name: str, goal: float, unit: str, samples: Sequence[float], *, at_most: bool = False) -> None:
        """A target that was measured: the figure of that name, held against its goal."""
        self.add(name, samples, unit)
        self.targets[name] = Target(self.results[name].value, goal, unit, at_most)

    def miss_target(self, name: str, goal: float, unit: str, why: str, *, at_most: bool = False) -> None:
        """A target that could not be measured here, and why."""
        self.targets[name] = Target(None, goal, unit, at_most, why)

    def to_json(self) -> str:
        results = {
            name: {"value": _short(f.value), "unit": f.unit, "low": _short(f.low), "high": _short(f.high)}
            for name, f in self.results.items()
        }
        targets: dict[str, dict[str, Any]] = {}
        for name, target in self.targets.items():
            value = None if target.value is None else _short(target.value)
            targets[name] = {"value": value, "goal": target.goal, "unit": target.unit, "met": target.met}
            if target.why:
                targets[name]["why"] = target.why
        return json.dumps(
            {"bench": self.bench, "machine": self.machine, "results": results, "targets": targets}, indent=2
        )

    def tables(self) -> list[RenderableType]:
        """The same for people."""
        from rich.table import Table

        results = Table("figure", title=f"callboard bench {self.bench}", title_justify="left")
        for heading in ("median", "low", "high"):
            results.add_column(heading, justify="right")
        results.add_column("unit")
        for name, figure in self.results.items():
            results.add_row(name, *map(_readable, (figure.value, figure.low, figure.high)), figure.unit)
        targets = Table("target", title="targets", title_justify="left")
        targets.add_column("value", justify="right")
        targets.add_column("goal", justify="right")
        targets.add_column("unit")
        targets.add_column("met")
        for name, target in self.targets.items():
            value = "-" if target.value is None else _readable(target.value)
            goal = f"{'≤' if target.at_most else '≥'} {_readable(target.goal)}"
            met = {True: "[green]yes[/]", False: "[red]no[/]", None: target.why}[target.met]
            targets.add_row(name, value, goal, target.unit, met)
        machine = "  ".join(f"{key}: {value}" for key, value in self.machine.items())
        return [machine, results, targets]


def _short(value: float) -> float:
    """Four digits say all that a measurement knows."""
    return float(f"{value:.4g}")


def _readable(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
