"""How a run looks at a terminal: a bar with its latest step below the lines that are worth keeping."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...schemas.train import (
    TrainCheckpointed,
    TrainEvaluated,
    TrainEvent,
    TrainNote,
    TrainProgress,
    TrainSampled,
)

if TYPE_CHECKING:
    from rich.console import Console

Hear = Callable[[TrainEvent], None]

# Where no terminal shows a bar, a line says how far it is so often, in shares of the run.
_LINES = 20


@contextmanager
def shown(job: str) -> Iterator[Hear]:
    """What to call with each event, until the block ends. All of it goes to standard error."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if sys.stderr.isatty():
        with _bar(job, console) as hear:
            yield hear
    else:
        yield _Lines(console).hear


@contextmanager
def _bar(job: str, console: Console) -> Iterator[Hear]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(job, total=None, facts="starting")

        def hear(event: TrainEvent) -> None:
            if isinstance(event, TrainProgress):
                progress.update(task, completed=event.step, total=event.num_steps, facts=facts(event))
            if line := worth_keeping(event):
                console.print(line, markup=False)

        yield hear


class _Lines:
    """A step now and then, and all that is worth keeping."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = 0

    def hear(self, event: TrainEvent) -> None:
        if isinstance(event, TrainProgress):
            share = event.step * _LINES // max(1, event.num_steps)
            if share > self._said or event.step == 1:
                self._said = share
                self._console.print(f"step {event.step}/{event.num_steps}  {facts(event)}", markup=False)
        if line := worth_keeping(event):
            self._console.print(line, markup=False)


def facts(event: TrainProgress) -> str:
    loss = "none" if event.loss is None else f"{event.loss:.4f}"
    return f"loss {loss}  lr {event.lr:.2e}  {event.tokens_per_s:,.0f} tokens/s  {_duration(event.eta_s)} left"


def worth_keeping(event: TrainEvent) -> str:
    """A line, or nothing."""
    match event:
        case TrainProgress(skipped=why) if why:
            return f"step {event.step}: nothing was changed: {why}"
        case TrainEvaluated():
            return f"step {event.step}: evaluation loss {event.loss:.4f}" + (", the best so far" if event.best else "")
        case TrainSampled():
            return f"step {event.step}: {event.prompt}\n  {event.text}"
        case TrainCheckpointed():
            return f"step {event.step}: checkpoint"
        case TrainNote():
            return f"step {event.step}: {event.text}"
        case _:
            return ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
