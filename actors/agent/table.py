"""The runs of one executor: those under way in memory, the others as lines of a list and in logs of their own."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from ...runtime.errors import MissingExtra
from ...schemas.agent import Approval, ListRuns, RunInfo
from ...schemas.agent_log import AnyEvent
from ...schemas.agent_parts import OPEN_RUNS, Spent
from .errors import NoSuchPlanner, NoSuchRun
from .info import approvals_of, info_of
from .journal import KEEP_ENDED, Journal, Kept
from .log import RunLog
from .planners import Missing, planner_named
from .run import Run

if TYPE_CHECKING:
    from .executor import Executor


@dataclass(slots=True)
class _News:
    """Of one run, while somebody waits for it."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    listeners: int = 0


class Table:
    """A run is live (an object, its events in memory), or parked: it waits, or is over, and is its `Kept` alone."""

    def __init__(self, host: Executor, journal: Journal, kept: dict[str, Kept]) -> None:
        self.live: dict[str, Run] = {}
        self._host = host
        self._journal = journal
        self._kept = {run: one for run, one in kept.items() if one.info is not None}
        self._unfinished = {run: one for run, one in kept.items() if one.tail}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._news: dict[str, _News] = {}
        self._compacting = False
        # A compaction writes again what there was when it began: what is removed meanwhile would be back.
        self._rewriting = asyncio.Lock()

    @property
    def epoch(self) -> int:
        return self._journal.epoch

    def close(self) -> None:
        for run in self.live.values():
            run.stop()

    # Runs come and go

    async def load_unfinished(self) -> list[Run]:
        """Those with events that are nowhere but in the journal: they were under way when it was last written."""
        for run, one in self._unfinished.items():
            before = (await self._journal.history(run))[: one.moved] if one.moved else []
            self._live(RunLog(run, [*before, *one.tail]), one.moved)
        self._unfinished.clear()
        return list(self.live.values())

    def begin(self, run: str, events: Sequence[AnyEvent]) -> Run | None:
        """A new run, its events not yet written; None where it is there."""
        if run in self.live or run in self._kept:
            return None
        now = self._host.now()
        dated = (event if event.at else msgspec.structs.replace(event, at=now) for event in events)
        return self._live(RunLog(run, dated), 0, durable=0)

    def _live(self, log: RunLog, stored: int, durable: int | None = None) -> Run:
        try:
            planner = planner_named(log.started.planner, self._host.node.allow)
        except (NoSuchPlanner, MissingExtra) as error:  # its package was removed: this run fails, the others go on
            planner = Missing(str(error))
        run = Run(self._host, log, planner, len(log.events) if durable is None else durable, stored)
        self.live[run.id] = run
        return run

    async def activate(self, run: str) -> Run:
        """The run in memory, and those above it, whose budgets it spends. Raises NoSuchRun."""
        async with self._locks[run]:
            if (live := self.live.get(run)) is None:
                events = await self._journal.history(run)
                if not events:
                    self._locks.pop(run, None)
                    raise NoSuchRun(f"there is no run {run}")
                one = self._kept.get(run)
                moved = one.moved if one is not None else len(events)
                live = self._live(RunLog(run, events[:moved]), moved)
        parent = live.log.started.parent
        if parent and parent not in self.live and live.log.ended is None:
            await self.activate(parent)
        return live

    async def say(self, run: str, make: Callable[[Run], Sequence[AnyEvent]]) -> Run:
        """Have a run take in what somebody says of it, and return when it is written. Raises what `make` raises."""
        while True:
            live = await self.activate(run)
            if self.live.get(run) is live:  # nothing was awaited since: it is not put away before it heard
                await live.say(make)
                return live

    async def park(self, run: Run) -> None:
        """Move what is new of a run into its own log, and let go of it if nothing came meanwhile."""
        async with self._locks[run.id]:
            if not run.is_quiet or self.live.get(run.id) is not run:
                return
            num_events = run.durable
            if num_events > run.stored:
                info = info_of(run.log, num_events, self.total(run.log), parked=True)
                approvals = approvals_of(run.log)
                await self._journal.move(info, approvals, run.log.events[run.stored : num_events])
                run.stored = num_events
                self._keep(info, approvals)
            elif run.id not in self._kept:
                self._keep(info_of(run.log, num_events, self.total(run.log), parked=True), approvals_of(run.log))
            if run.is_quiet and run.durable == num_events:
                del self.live[run.id]
        if run.id not in self.live:
            self._locks.pop(run.id, None)

    def _keep(self, info: RunInfo, approvals: tuple[Approval, ...]) -> None:
        self._kept.pop(info.run, None)
        self._kept[info.run] = Kept(info, approvals)
        if len(self._kept) > 2 * KEEP_ENDED:
            ended = [run for run, one in self._kept.items() if one.info is not None and one.info.ended_at]
            for run in ended[: len(ended) - KEEP_ENDED]:
                del self._kept[run]

    # Writing

    async def write(self, run: Run, first: int, events: Sequence[AnyEvent]) -> None:
        await self._journal.append(run.id, first, events)
        if (news := self._news.pop(run.id, None)) is not None:
            # The run counts them as written in this same turn of the loop, before anybody wakes.
            news.event.set()
        if self._journal.is_full and not self._compacting:
            self._compacting = True
            self._host.start_soon(self._compact)

    async def _compact(self) -> None:
        try:
            async with self._rewriting:
                kept = list(self._kept.values())
                await self._journal.compact(kept, self._tails(list(self.live.values())))
        finally:
            self._compacting = False

    def _tails(self, runs: Sequence[Run]) -> Iterator[tuple[str, int, Sequence[AnyEvent]]]:
        for run in runs:
            tail = run.log.events[run.stored : run.durable]
            if tail:
                yield run.id, run.stored + 1, tail

    async def prune(self, before: float) -> int:
        """Remove runs that ended before then, with the runs below them. Returns how many went."""
        count = 0
        async with self._rewriting:
            unlisted = [run for run in await self._journal.own_logs() if run not in self._kept]
            families: defaultdict[str, list[str]] = defaultdict(list)
            for run in (*self._kept, *unlisted):
                families[run.partition(".")[0]].append(run)
            for root, runs in families.items():
                if await self._is_past(root, runs, before):
                    count += await self._remove(runs)
        return count

    async def _remove(self, runs: Sequence[str]) -> int:
        async with contextlib.AsyncExitStack() as held:
            for run in runs:
                await held.enter_async_context(self._locks[run])
            if any(run in self.live for run in runs):  # somebody has just asked for it
                return 0
            await self._journal.remove(runs)
            for run in runs:
                self._kept.pop(run, None)
                self._locks.pop(run, None)
        return len(runs)

    async def _is_past(self, root: str, runs: Sequence[str], before: float) -> bool:
        """Whether a run, and what began below it, is over since then, and nobody has it in hand."""
        if any(run in self.live for run in runs):
            return False
        for run in runs if root not in runs else [root]:
            one = self._kept.get(run)
            ended_at = one.info.ended_at if one is not None and one.info is not None else await self._ended_at(run)
            if not ended_at or ended_at >= before:
                return False
        return True

    async def _ended_at(self, run: str) -> float:
        """Of a run that is no longer listed; 0 where it has not ended."""
        events = await self._journal.history(run)
        ended = RunLog(run, events).ended if events else None
        return ended.at if ended is not None else 0.0

    # Looking

    def total(self, log: RunLog) -> Spent:
        """What a run has spent, with its child runs under way."""
        spent = log.spent
        for child in log.children:
            if (live := self.live.get(child)) is not None:
                spent += self.total(live.log)
            elif (one := self._kept.get(child)) is not None and one.info is not None:
                spent += one.info.spent
        return spent

    async def ensure(self, run: str) -> None:
        """Raises NoSuchRun; brings back the line of one that ended long ago."""
        if run not in self.live and run not in self._kept:
            await self.say(run, lambda _: ())

    def info(self, run: str) -> RunInfo:
        """Raises NoSuchRun."""
        if (live := self.live.get(run)) is not None:
            whole = live.durable == len(live.log.events)
            return info_of(live.log, live.durable, self.total(live.log), ended=live.log.ended if whole else None)
        if (one := self._kept.get(run)) is not None and one.info is not None:
            return one.info
        raise NoSuchRun(f"there is no run {run}")

    def infos(self, message: ListRuns) -> list[RunInfo]:
        """Newest first."""
        known = (self.info(run) for run in {*self._kept, *self.live})
        fits = (
            info
            for info in known
            if not (message.open_only and info.status not in OPEN_RUNS)
            and not (message.before and info.began_at >= message.before)
        )
        return heapq.nlargest(message.limit, fits, key=lambda info: (info.began_at, info.run))

    def approvals(self, run: str = "") -> list[Approval]:
        """Oldest first."""
        found: list[Approval] = []
        for live in self.live.values():
            found += approvals_of(live.log)
        found += [one for kept_run, kept in self._kept.items() if kept_run not in self.live for one in kept.approvals]
        return sorted((one for one in found if not run or one.run == run), key=lambda one: (one.asked_at, one.id))

    async def events(self, run: str, after: int) -> Sequence[AnyEvent]:
        """Those that are written, after that number. Raises NoSuchRun."""
        if (live := self.live.get(run)) is not None:
            return live.log.events[after : live.durable]
        info = self._kept.get(run)
        if info is not None and info.moved <= after:
            return ()
        events = await self._journal.history(run)
        if not events:
            raise NoSuchRun(f"there is no run {run}")
        return events[after:]

    async def news(self, run: str) -> None:
        """Wait until something more of the run is written."""
        news = self._news.setdefault(run, _News())
        news.listeners += 1
        try:
            await news.event.wait()
        finally:
            news.listeners -= 1
            if not news.listeners and self._news.get(run) is news:  # nothing stays of who no longer listens
                del self._news[run]
