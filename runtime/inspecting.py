"""What a node answers to who looks closely: one actor in full, its logs as they grow."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ..schemas.inspecting import ActorDescription, FollowLogs, LogEntries
from ..schemas.inspecting import LogEntry as Shown
from ..schemas.metrics import Durations
from .cell import Cell
from .errors import UsageError
from .family import Child
from .log_lines import LEVELS, Wanted
from .log_tail import LOOK_EVERY_S, LogEntry, LogReader, tails
from .matching import did_you_mean
from .messages import tag_of

if TYPE_CHECKING:
    from .node import Node

# Lines in one message, and the most that anybody is given to begin with.
LINES_PER_MESSAGE = 500
MAX_LINES = 10_000


def describe(node: Node, child: Child) -> ActorDescription:
    """All that this process knows of an actor that it hosts or supervises."""
    supervisor = child.family.owner
    if not isinstance(child, Cell):
        watchers = len(child.watchers or ())
        return ActorDescription(
            info=child.info(), restart=child.restart.value, supervisor=supervisor, watchers=watchers
        )
    policy = child.kind.supervision
    return ActorDescription(
        info=child.info(),
        restart=child.restart.value,
        supervisor=supervisor,
        strategy=policy.strategy.value,
        max_restarts=policy.max_restarts,
        period_s=policy.period_s,
        children=tuple(sorted(a for a, one in node.actors.items() if one.family.owner == child.address)),
        handles=tuple(sorted(tag_of(message) for message in child.spec.handlers)),
        doc=inspect.cleandoc(child.kind.__doc__ or ""),
        mailbox_size=child.capacity,
        mailbox_high=child.high,
        refused=child.refused,
        last_error=child.last_error,
        watchers=len(child.watchers or ()),
        durations=child.durations.read() if child.durations is not None else Durations(),
    )


async def follow(folder: Path, message: FollowLogs) -> AsyncIterator[LogEntries]:
    """Raises UsageError for a log or a level that there is not."""
    if message.level and message.level not in LEVELS:
        guess = did_you_mean(message.level, LEVELS)
        raise UsageError(
            f"there is no level '{message.level}'",
            hint=f"did you mean {guess}?" if guess else f"there are: {', '.join(LEVELS)}",
        )
    wanted = Wanted(message.actor, message.level)
    readers: dict[str, LogReader] = {}

    def look_for() -> list[LogReader]:
        """Those that were not there before: an actor that got its own process meanwhile."""
        found = [tail for tail in tails(folder, message.processes) if tail.name not in readers]
        return [readers.setdefault(tail.name, LogReader(tail, wanted)) for tail in found]

    def begin() -> list[LogEntry]:
        most = min(max(0, message.lines), MAX_LINES)
        return [entry for reader in look_for() for entry in reader.last(most)]

    def more() -> list[LogEntry]:
        if not message.processes:
            look_for()
        return [entry for reader in readers.values() for entry in reader.new()]

    found = await anyio.to_thread.run_sync(begin)
    while True:
        found.sort(key=lambda entry: entry.time)
        for start in range(0, len(found), LINES_PER_MESSAGE):
            yield LogEntries(tuple(map(_shown, found[start : start + LINES_PER_MESSAGE])))
        if not message.follow:
            return
        await anyio.sleep(LOOK_EVERY_S)
        found = await anyio.to_thread.run_sync(more)


def _shown(entry: LogEntry) -> Shown:
    line = entry.line
    return Shown(
        process=entry.process,
        message=line.message,
        time=line.time,
        level=line.level,
        actor=line.actor,
        trace=line.trace,
        logger=line.logger,
        error=line.error.traceback if line.error is not None else "",
    )
