"""The daemon's side of the company file: starts what it lists, compares, and carries out what a reload changes.

The file is the wish, and the roster (roster.py) what was asked for ad hoc: a name that the file lists belongs to it,
whatever the roster says, and a reload touches nothing that the file never listed. What was last found to be in order is
kept beside the roster, so that a daemon which is restarted over a broken file runs what it ran before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from ..schemas.base import ErrorInfo
from ..schemas.company import Action, CompanyActor, CompanyReloaded, CompanyState, CompanyStep, Standing
from ..schemas.runtime import Ended, Terminated
from .company_file import ActorWish, load_company, place_of
from .company_plan import Now, difference, plan
from .daemon_orders import DaemonReport, Saying
from .errors import CallboardError, NoSuchActor, to_info
from .files import write_private
from .folders import Paths
from .log import log
from .messages import UNDECODABLE
from .roster import spawn_patiently
from .supervision import Restart

if TYPE_CHECKING:
    from .family import Child
    from .node import Node


class _Kept(msgspec.Struct, frozen=True):
    """`company.json` in the state folder: what a file last said when all of it was in order."""

    file: str
    actors: tuple[ActorWish, ...]


@dataclass
class _Outcome:
    known: anyio.Event = field(default_factory=anyio.Event)
    steps: list[CompanyStep] = field(default_factory=list)
    error: Exception | None = None


@dataclass
class _Started:
    """What was started from the file, or is being started. `end` says how it ended, if it did for good."""

    wish: ActorWish
    child: Child | None = None
    is_starting: bool = True
    end: Terminated | None = None
    failure: ErrorInfo | None = None

    @property
    def has_done(self) -> bool:
        """It ended as its restart rule allows, so nobody need start it again."""
        ended = self.end is not None and self.end.reason is Ended.STOPPED
        return ended and self.wish.restart != Restart.PERMANENT


class Company:
    """One company file on the node `main`. `say` is told when a reload begins and ends.

    Changes run one at a time, and in `tasks`, each to its end, also where whoever asked for it goes away.
    """

    def __init__(
        self,
        node: Node,
        file: Path,
        paths: Paths,
        say: Callable[[DaemonReport], None],
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self.file = file
        self._node = node
        self._kept = paths.state / "company.json"
        self._say = say
        self._tasks = tasks
        self._lock = anyio.Lock()
        self._started: dict[str, _Started] = {}
        self._wished: tuple[ActorWish, ...] = ()
        self._begun = anyio.Event()
        node.on_terminated = self._terminated

    async def begin(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Start what the file lists, one after the other. What fails to start is logged, and the others go on.

        Started once the names that the file lists are struck from the roster.
        """
        async with self._lock:
            try:
                self._wished = await self._read()
            except CallboardError as error:
                self._wished = self._last_good()
                log.error("the company file is not in order, so what it said before holds: %s", error)
            if self._node.roster is not None:
                for wish in self._wished:
                    self._node.roster.remove(wish.name)
            self._begun.set()
            task_status.started()
            steps = await self._carry_out(self._plan(self._wished), self._wished)
        log.info("company %s: %s", self.file, summary(steps))
        self._say(DaemonReport(what=Saying.STATUS, text=self._standing()))

    async def reload(self) -> CompanyReloaded:
        """Read the file again and change what differs. ConfigError where it is not in order: nothing is changed."""
        outcome = _Outcome()
        self._tasks.start_soon(self._reload, outcome)
        await outcome.known.wait()
        if outcome.error is not None:
            raise outcome.error
        return CompanyReloaded(str(self.file), tuple(outcome.steps))

    async def _reload(self, outcome: _Outcome) -> None:
        await self._begun.wait()
        async with self._lock:
            usec = time.monotonic_ns() // 1000
            self._say(DaemonReport(what=Saying.RELOADING, text=f"reading {self.file} again", monotonic_usec=usec))
            try:
                self._wished = await self._read()
                outcome.steps = await self._carry_out(self._plan(self._wished), self._wished)
                log.info("company %s read again: %s", self.file, summary(outcome.steps))
            except Exception as error:
                outcome.error = error
            finally:
                self._say(DaemonReport(what=Saying.RELOADED, text=self._standing()))
                outcome.known.set()

    async def would_change(self) -> CompanyReloaded:
        """What `reload` would do now."""
        await self._begun.wait()
        async with self._lock:
            wished = await anyio.to_thread.run_sync(load_company, self.file, self._node.allow)
            return CompanyReloaded(str(self.file), tuple(self._plan(wished)))

    async def state(self, *, settled: bool = False) -> CompanyState:
        """How what runs compares with the file as it is now. `settled`: once no change is under way."""
        await self._begun.wait()
        if settled:
            async with self._lock:
                pass
        problem: ErrorInfo | None = None
        try:
            wished = await anyio.to_thread.run_sync(load_company, self.file, self._node.allow)
        except CallboardError as error:
            wished, problem = self._wished, error.to_info()
        listed = {wish.name for wish in wished}
        actors = [self._compare(wish) for wish in wished]
        for name in sorted(name for name in self._node.actors if "." not in name and name not in listed):
            why = "no longer listed: `callboard reload` stops it" if self._is_ours(name) else "asked for ad hoc"
            actors.append(CompanyActor(name, self._node.actors[name].info().kind, Standing.EXTRA, why))
        return CompanyState(str(self.file), tuple(actors), problem)

    # Comparing

    def _compare(self, wish: ActorWish) -> CompanyActor:
        name, known = wish.name, self._started.get(wish.name)
        child = self._node.actors.get(name)

        def stands(standing: Standing, why: str = "") -> CompanyActor:
            return CompanyActor(name, wish.kind, standing, why)

        if child is not None:
            if known is None or not self._is_ours(name):
                return stands(Standing.DIFFERS, "it was not started from the file")
            if why := difference(known.wish, wish):
                return stands(Standing.DIFFERS, why)
            return stands(Standing.RUNNING) if child.state == "running" else stands(Standing.STARTING, child.state)
        if known is None or known.wish != wish:
            if self._lock.locked():
                return stands(Standing.STARTING, "waits for its turn")
            return stands(Standing.MISSING, "`callboard reload` starts it")
        if known.is_starting:
            return stands(Standing.STARTING)
        if known.has_done:
            return stands(Standing.ENDED)
        failure = known.failure or (known.end.error if known.end is not None else None)
        if failure is not None:
            return stands(Standing.FAILED, failure.message)
        return stands(Standing.MISSING, "it was stopped: `callboard reload` starts it")

    def _plan(self, wished: Sequence[ActorWish]) -> list[CompanyStep]:
        now: dict[str, Now] = {}
        for name, known in self._started.items():
            if self._is_ours(name) or (name not in self._node.actors and known.has_done):
                now[name] = Now(known.wish, ended=not self._is_ours(name))
        for name in self._node.actors:
            if "." not in name and name not in now:
                now[name] = Now(None)
        return plan(wished, now)

    def _is_ours(self, name: str) -> bool:
        """Whether the actor of that name is the one that was started from the file, not another that came after."""
        known, child = self._started.get(name), self._node.actors.get(name)
        return known is not None and child is not None and (known.child is child or known.is_starting)

    def _standing(self) -> str:
        running = sum(self._is_ours(wish.name) for wish in self._wished)
        return f"{running} of {len(self._wished)} actors of {self.file.name} run"

    # Changing

    async def _carry_out(self, steps: Sequence[CompanyStep], wished: Sequence[ActorWish]) -> list[CompanyStep]:
        done: list[CompanyStep] = []
        wishes = {wish.name: wish for wish in wished}
        for name in [name for name in self._started if name not in wishes and not self._is_ours(name)]:
            del self._started[name]
        for step in steps:
            try:
                await self._take(step, wishes)
            except Exception as error:  # whatever an actor's code raises: the others, and the daemon, go on
                log.error("company: %s could not be carried out for %s: %s", step.action, step.name, error)
                step = msgspec.structs.replace(step, error=to_info(error))
            done.append(step)
        return done

    async def _take(self, step: CompanyStep, wishes: dict[str, ActorWish]) -> None:
        match step.action:
            case Action.STOP:
                await self._stop(step.name)
                self._started.pop(step.name, None)
            case Action.START:
                await self._start(wishes[step.name])
            case Action.RESTART:
                await self._stop(step.name)
                await self._start(wishes[step.name])
            case Action.ADJUST:
                known = self._started[step.name]
                known.wish = wishes[step.name]
                if known.child is not None:
                    known.child.restart = Restart(known.wish.restart)
            case Action.KEEP:
                pass

    async def _stop(self, name: str) -> None:
        try:
            await self._node.stop(name)
        except NoSuchActor:
            log.debug("company: %s had just ended", name)

    async def _start(self, wish: ActorWish) -> None:
        known = self._started[wish.name] = _Started(wish)
        if self._node.roster is not None:
            self._node.roster.remove(wish.name)  # an ad hoc one whose place it takes
        try:
            await self._spawn(wish)
        except Exception as error:
            known.failure = to_info(error)
            raise
        finally:
            known.is_starting = False
        known.child = self._node.actors.get(wish.name)
        self._node.watch_root(wish.name)

    async def _spawn(self, wish: ActorWish) -> None:
        async def spawn() -> None:
            await self._node.spawn(
                wish.kind,
                wish.config_text,
                name=wish.name,
                where=place_of(wish),
                restart=Restart(wish.restart),
            )

        await spawn_patiently(self._node, wish.name, spawn)

    def _terminated(self, event: Terminated) -> None:
        known = self._started.get(event.address)
        if known is None:
            return
        if event.restarting:
            self._node.watch_root(event.address)
        else:
            known.end = event

    # The file

    async def _read(self) -> tuple[ActorWish, ...]:
        wished = await anyio.to_thread.run_sync(load_company, self.file, self._node.allow)
        try:
            write_private(self._kept, msgspec.json.encode(_Kept(str(self.file), wished)))
        except OSError as error:  # a full disk, say: the file itself is in order
            log.error(
                "%s cannot be written, so a broken company file would have nothing to fall back on: %s",
                self._kept,
                error,
            )
        return wished

    def _last_good(self) -> tuple[ActorWish, ...]:
        try:
            kept = msgspec.json.decode(self._kept.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return ()
        except UNDECODABLE as error:
            log.error("%s is damaged and left aside: %s", self._kept, error)
            return ()
        return kept.actors if kept.file == str(self.file) else ()


def summary(steps: Sequence[CompanyStep]) -> str:
    """One line for a log: how many of each kind, and how many failed."""
    counts = {action: sum(step.action is action for step in steps) for action in Action}
    failed = sum(step.error is not None for step in steps)
    words = [f"{count} {action}" for action, count in counts.items() if count]
    return ", ".join([*(words or ["nothing listed"]), *([f"{failed} failed"] if failed else [])])
