"""Lines of a comparison for evaluations: one for each metric of each set of questions that any model was asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...schemas.evaluate import SHARES, EvaluationResult, MetricValue
from ...schemas.models import ModelResults


class _Asked(NamedTuple):
    """`questions`: a digest, the same for all who were asked the same."""

    task: str
    data: str
    shots: int
    chat: bool
    questions: str


def evaluation_lines(results: Sequence[ModelResults], none: str) -> list[tuple[str, tuple[str, ...]]]:
    """A title and a text for each model; `none` for one that was not asked. Of several evaluations with the same
    questions, the last one's figures."""
    newest = [{_asked(one): one for one in model.evaluations} for model in results]
    every = sorted({asked for model in newest for asked in model})
    titles = [_title(asked) for asked in every]
    lines: list[tuple[str, tuple[str, ...]]] = []
    for asked, title in zip(every, titles, strict=True):
        if titles.count(title) > 1:
            title = f"{title}, questions {asked.questions[:6]}"
        found = [model.get(asked) for model in newest]
        for metric in _metrics(one for one in found if one is not None):
            values = tuple(none if one is None else _value(one, metric, none) for one in found)
            lines.append((f"{title}: {metric}", values))
        lines.append((f"{title}: samples", tuple(none if one is None else _samples(one) for one in found)))
    return lines


def evaluation_remarks(results: Sequence[ModelResults]) -> list[str]:
    """What must not be compared."""
    by_file: dict[tuple[str, str], set[str]] = {}
    for model in results:
        for one in model.evaluations:
            by_file.setdefault((one.task, one.data), set()).add(one.questions)
    return [
        f"{task} of {data} was asked in several ways: only figures of one line can be compared"
        for (task, data), questions in by_file.items()
        if len(questions) > 1
    ]


def _asked(one: EvaluationResult) -> _Asked:
    return _Asked(one.task, one.data, one.shots, one.chat, one.questions)


def _title(asked: _Asked) -> str:
    shots = f", {asked.shots} examples" if asked.shots else ""
    return f"{asked.task} ({asked.data}){shots}{', chat' * asked.chat}"


def _metrics(found: Iterable[EvaluationResult]) -> list[str]:
    return list(dict.fromkeys(metric.name for one in found for metric in one.metrics))


def _value(one: EvaluationResult, name: str, none: str) -> str:
    metric = next((metric for metric in one.metrics if metric.name == name), None)
    return none if metric is None else _shown(metric)


def _shown(metric: MetricValue) -> str:
    pattern = "{:.1%}" if metric.name in SHARES else "{:.3f}"
    error = "" if metric.error is None else f" ± {pattern.format(metric.error)}"
    return pattern.format(metric.value) + error


def _samples(one: EvaluationResult) -> str:
    return f"{one.samples:,}" + (f", {one.num_left_out:,} left out" if one.num_left_out else "")
