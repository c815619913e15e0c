"""The bar that a command shows on standard error while it waits for something long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Show = Callable[[str, float, float | None], None]


@contextmanager
def progress_bar(first: str) -> Iterator[Show]:
    """Gives `show(description, done, total)`, with `total` None where it is not known yet; until then `first` is shown.
    Where nobody sees standard error it shows nothing."""
    if not sys.stderr.isatty():
        yield lambda description, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(first)

        def show(description: str, done: float, total: float | None) -> None:
            bar.update(task, description=description, completed=done, total=total)

        yield show
