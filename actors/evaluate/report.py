"""Reports, lists and samples for a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...schemas.evaluate import SHARES, EvaluatedSample, EvaluationReport, Evaluations, MetricDifference, MetricValue

if TYPE_CHECKING:
    from rich.console import RenderableType


def shown(metric: MetricValue) -> str:
    """`61.3% ± 1.2%`, or `18.342 ± 0.511`; without an error where there is none."""
    error = "" if metric.error is None else f" ± {_number(metric.name, metric.error)}"
    return _number(metric.name, metric.value) + error


def table(report: EvaluationReport) -> list[RenderableType]:
    from rich.table import Table

    how = [report.task, report.data, f"{report.shots} examples" if report.shots else "", "in a chat" * report.chat]
    title = ", ".join(part for part in how if part)
    figures = Table("", title=title, title_justify="left")
    for model in report.models:
        figures.add_column(_short(model.model), justify="right", overflow="fold")
    metrics = [[shown(metric) for metric in model.metrics] for model in report.models]
    for name, *values in zip((metric.name for metric in report.models[0].metrics), *metrics, strict=True):
        figures.add_row(name, *values)
    if any(model.cut_short for model in report.models):
        figures.add_row("answers cut short", *(f"{model.cut_short:,}" for model in report.models))
    figures.add_row("evaluation", *(model.id for model in report.models))
    shown_all: list[RenderableType] = [figures]
    if report.differences:
        shown_all.append(_differences(report))
    return [*shown_all, *remarks(report)]


def _differences(report: EvaluationReport) -> RenderableType:
    from rich.table import Table

    compared = Table("", title=f"against {_short(report.models[0].model)}, sample by sample", title_justify="left")
    for heading in ("metric", "difference", "95% interval", "p (McNemar)"):
        compared.add_column(heading, justify="left" if heading == "metric" else "right")
    for one in report.differences:
        p_value = "" if one.p_value is None else f"{one.p_value:.3g}"
        difference = _number(one.metric, one.difference, signed=True)
        compared.add_row(_short(one.model), one.metric, difference, _interval(one), p_value)
    return compared


def _interval(one: MetricDifference) -> str:
    if one.low is None or one.high is None:
        return ""
    return f"{_number(one.metric, one.low, signed=True)} to {_number(one.metric, one.high, signed=True)}"


def remarks(report: EvaluationReport) -> list[str]:
    """How many samples there were, and what became of those that do not count."""
    said = [f"{report.samples:,} samples, {report.num_left_out:,} left out"]
    for one in report.left_out:
        whose = f" ({_short(one.model)})" if one.model else ""
        said.append(f"left out: line {one.line}{whose}: {one.reason}")
    if report.num_left_out > len(report.left_out):
        said.append(f"and {report.num_left_out - len(report.left_out):,} more")
    if cut := [model for model in report.models if model.cut_short]:
        most = f"{report.max_tokens} tokens"
        said.append(f"answers of {', '.join(_short(one.model) for one in cut)} were cut at {most}: see --max-tokens")
    return said


def listing(found: Evaluations) -> list[str]:
    """A line for each record, and one of headings."""
    rows = [("ID", "WHEN", "MODEL", "TASK", "DATA", "SAMPLES", "RESULT")]
    for one in found.evaluations:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.finished or one.started))
        samples = f"{one.total:,}" if one.finished else f"{one.done:,} of {one.total:,}"
        result = ", ".join(f"{metric.name} {shown(metric)}" for metric in one.metrics) or "unfinished"
        how = one.task + (f", {one.shots} examples" if one.shots else "") + ", in a chat" * one.chat
        rows.append((one.id, when, _short(one.model), how, one.data, samples, result))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def sample_lines(sample: EvaluatedSample) -> Sequence[str]:
    """A sample for a person: what was asked, what would have been right, what was said."""
    lines = [f"line {sample.line}: {sample.prompt}"]
    if sample.logprobs and sample.choices:
        for choice, logprob in zip(sample.choices, sample.logprobs, strict=True):
            mark = "right" if choice in sample.answers else "taken" if choice == sample.said else ""
            lines.append(f"  {mark:5} {logprob:10.3f}  {choice}")
    else:
        lines.append(f"  right: {' | '.join(sample.answers)}")
        lines.append(f"  said:  {sample.said.strip()}{' (cut short)' * sample.cut_short}")
    return lines


def _number(metric: str, value: float, *, signed: bool = False) -> str:
    if metric in SHARES:
        return f"{value:+.1%}" if signed else f"{value:.1%}"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def _short(model: str) -> str:
    """A path's last part; names as they are."""
    return Path(model).name if model.startswith(("/", "./", "~")) else model
