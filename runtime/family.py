"""The children of one supervisor, and what becomes of them when one ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..schemas.base import ErrorInfo
from ..schemas.runtime import ActorInfo, Ended, Terminated
from .errors import ActorStopped, CallboardError, Fenced, NameTaken, RestartLimit, to_info
from .log import log
from .supervision import Restart, RestartBudget, Strategy, Supervision

if TYPE_CHECKING:
    from .node import Node


class Child:
    """What a family looks after: an actor of this process (Cell) or one in a process of its own (ProcessChild)."""

    __slots__ = ("address", "closed", "family", "restart", "restarts", "since", "state", "supervised", "watchers")

    def __init__(self, address: str, restart: Restart, family: Family) -> None:
        self.address = address
        self.restart = restart
        self.family = family
        self.state = "new"
        self.since = 0.0
        self.restarts = 0
        self.watchers: dict[str, bool] | None = None
        self.closed = False
        # How the supervisor at the other end of a pipe or of the bus restarts it, when this family is not the one.
        self.supervised = Restart.TEMPORARY

    async def start(self) -> None:
        raise TypeError(f"{type(self).__name__} cannot start")

    async def stop(self, timeout: float) -> None:
        raise TypeError(f"{type(self).__name__} cannot stop")

    async def pause(self, timeout: float) -> None:
        """End the present life for a sibling's restart; `start` begins the next."""
        await self.stop(timeout)
        self.closed = False

    def give_up(self, error: CallboardError) -> bool:
        """End a present life that does not answer, as a crash with that error. False where that cannot be done."""
        return False

    @property
    def keeps(self) -> str:
        """`address@node` while the actor lives on another node."""
        return ""

    def discard_mailbox(self) -> None:
        """Hand back what waits: this child comes back no more."""

    def returns(self, error: Exception | None) -> bool:
        """Whether somebody, here or beyond this process, starts it again when it ends by itself."""
        return comes_back(self.restart, error) or comes_back(self.supervised, error)

    def terminated(self, event: Terminated, *, linked: bool) -> None:
        """Something that this child watches ended."""

    def info(self) -> ActorInfo:
        raise TypeError(f"{type(self).__name__} has no info")


class Family:
    """Starts, restarts and stops children as a `Supervision` says.

    `owner` is the address of the actor whose children they are, "" for a node's roots. `escalate` is called when they
    crash more often than it allows; without it (the roots of a node) only the one that crashed stays down, and each has
    a budget of its own. With ONE_FOR_ONE each child's restarts go their own way; with the other strategies a family's
    restarts run one after another.
    """

    def __init__(
        self, node: Node, policy: Supervision, escalate: Callable[[Exception], None] | None, owner: str = ""
    ) -> None:
        self._node = node
        self.owner = owner
        self._policy = policy
        self._escalate = escalate
        self._children: dict[str, Child] = {}
        self._budgets: dict[str, RestartBudget] = {}
        self._ended: dict[Child, Exception | None] = {}
        self._pausing: set[Child] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tending = False
        self._removals: dict[Child, asyncio.Task[None]] = {}
        self._stopping = False

    def __iter__(self) -> Iterator[Child]:
        return iter(tuple(self._children.values()))

    def __len__(self) -> int:
        return len(self._children)

    async def add(self, child: Child) -> None:
        """Start a child. Raises what its start raised, and then it is not a child."""
        if child.address in self._node.actors:
            raise NameTaken(f"there is an actor {child.address} already")
        if self._stopping:
            raise ActorStopped(f"what would supervise {child.address} is ending")
        self._children[child.address] = child
        self._node.actors[child.address] = child
        try:
            await child.start()
        except BaseException:
            self._forget(child)
            child.discard_mailbox()
            raise

    async def remove(self, child: Child, timeout: float) -> None:
        """Stop one child for good. Once begun it is carried through, also where the caller is cancelled."""
        removal = self._removals.get(child)
        if removal is None:
            removal = self._removals[child] = self._node.loop.create_task(self._remove(child, timeout))
            removal.add_done_callback(lambda _: self._removals.pop(child, None))
        await asyncio.shield(removal)

    async def _remove(self, child: Child, timeout: float) -> None:
        await child.stop(timeout)
        if self._is_ours(child):
            self._forget(child)
            self._announce(child, Ended.STOPPED, None, restarting=False)

    async def restart(self, child: Child, timeout: float) -> None:
        """End a child's present life and begin its next, as asked; its siblings stay, and its budget too.

        Once begun it is carried through, also where the caller is cancelled. Raises ActorStopped where it is not here
        to be restarted, and what its start raised: that counts as a crash of its.
        """
        task = self._node.loop.create_task(self._restart_asked(child, timeout))
        self._tasks.add(task)
        task.add_done_callback(self._asked_done)
        await asyncio.shield(task)

    def _asked_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # who asked has it, or went away

    async def _restart_asked(self, child: Child, timeout: float) -> None:
        busy = child in self._pausing or child in self._removals or child in self._ended
        if self._stopping or busy or not self._is_ours(child) or child.state != "running":
            raise ActorStopped(f"{child.address} is just ending, or just coming back")
        self._pausing.add(child)
        try:
            await child.pause(timeout)
        finally:
            self._pausing.discard(child)
        self._announce(child, Ended.STOPPED, None, restarting=True)
        failed = await self._restart([child])
        if failed is not None:
            self.child_ended(*failed)
            raise failed[1]

    def _is_ours(self, child: Child) -> bool:
        return self._children.get(child.address) is child

    async def stop_all(self, timeout: float) -> None:
        """Stop all, the last started first, within about `timeout` seconds each."""
        self._stopping = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
        for child in reversed(list(self._children.values())):
            await self.remove(child, timeout)

    def child_ended(self, child: Child, error: Exception | None) -> None:
        """A child's life ended by itself: a crash if `error`, else a normal end."""
        if self._stopping or child in self._pausing or child in self._removals or not self._is_ours(child):
            return
        self._ended[child] = error
        if not self._tending or self._policy.strategy is Strategy.ONE_FOR_ONE:
            self._tending = True
            task = self._node.loop.create_task(self._tend())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tend(self) -> None:
        try:
            while self._ended:
                child = next(iter(self._ended))
                await self._child_ended(child, self._ended.pop(child))
        finally:
            self._tending = False

    async def _child_ended(self, child: Child, error: Exception | None) -> None:
        # One that was fenced off lives on elsewhere: starting it here again would take that one's place.
        if not comes_back(child.restart, error) or isinstance(error, Fenced):
            self._give_up(child, error)
            return
        while self._is_ours(child):
            delay = self._budget(child).take(self._node.loop.time())
            if delay is None:
                self._spent(child, error)
                return
            group = self._restarted_with(child)
            self._announce(child, _reason(error), error, restarting=True)
            await self._pause_group(child, group)
            if delay:
                await asyncio.sleep(delay)  # the backoff itself, not a wait for something
            failed = await self._restart(group)
            if failed is None:
                return
            child, error = failed

    async def _pause_group(self, child: Child, group: list[Child]) -> None:
        """End those that are restarted along with a child, the last first. The temporary ones end for good."""
        for other in reversed(group):
            if other is child:
                continue
            if other.restart is Restart.TEMPORARY:
                await self.remove(other, self._node.drain_timeout)
                continue
            self._pausing.add(other)
            try:
                await other.pause(self._node.drain_timeout)
            finally:
                self._pausing.discard(other)
            error = self._ended.get(other)
            self._announce(other, _reason(error), error, restarting=True)

    async def _restart(self, group: list[Child]) -> tuple[Child, Exception] | None:
        """Start each again, in their first order. Returns the one that failed to, with its error."""
        for child in group:
            if not self._is_ours(child) or child in self._removals:
                continue  # it was stopped for good meanwhile
            self._ended.pop(child, None)  # if it crashed too, this is its restart as well
            child.restarts += 1
            log.info("restarting %s (restart %d)", child.address, child.restarts, extra={"actor": child.address})
            try:
                await child.start()
            except Exception as error:
                if not self._is_ours(child) or child in self._removals:
                    continue
                log.error("%s failed to restart: %s", child.address, error, extra={"actor": child.address})
                return child, error
        return None

    def _restarted_with(self, child: Child) -> list[Child]:
        children = list(self._children.values())
        match self._policy.strategy:
            case Strategy.ONE_FOR_ONE:
                return [child]
            case Strategy.ONE_FOR_ALL:
                return children
            case Strategy.REST_FOR_ONE:
                return children[children.index(child) :]

    def _budget(self, child: Child) -> RestartBudget:
        key = child.address if self._escalate is None else ""
        if key not in self._budgets:
            self._budgets[key] = RestartBudget(self._policy)
        return self._budgets[key]

    def _spent(self, child: Child, error: Exception | None) -> None:
        limit = RestartLimit(
            f"{child.address} ended more than {self._policy.max_restarts} times in {self._policy.period_s:g} s"
            + (f"; the last time: {error}" if error is not None else ""),
            hint="mend what makes it fail, then spawn it again",
        )
        log.error("%s", limit, extra={"actor": child.address})
        self._give_up(child, limit)
        if self._escalate is not None:
            self._escalate(limit)

    def _give_up(self, child: Child, error: Exception | None) -> None:
        self._forget(child)
        child.state = "stopped"
        child.discard_mailbox()
        self._announce(child, _reason(error), error, restarting=comes_back(child.supervised, error))

    def _forget(self, child: Child) -> None:
        self._children.pop(child.address, None)
        self._ended.pop(child, None)
        self._budgets.pop(child.address, None)
        if self._node.actors.get(child.address) is child:
            del self._node.actors[child.address]
            self._node.forget(child)

    def _announce(self, child: Child, reason: Ended, error: Exception | None, *, restarting: bool) -> None:
        if child.watchers:
            watchers, child.watchers = child.watchers, None
            info: ErrorInfo | None = to_info(error) if error is not None else None
            event = Terminated(child.address, reason, info, restarting)
            for watcher, linked in watchers.items():
                self._node.notify(watcher, event, linked=linked)


def comes_back(kind: Restart, error: Exception | None) -> bool:
    """Whether a child of that kind is started again when it has ended by itself: with that error, or without one."""
    return kind is Restart.PERMANENT or (kind is Restart.TRANSIENT and error is not None)


def _reason(error: Exception | None) -> Ended:
    return Ended.STOPPED if error is None else Ended.CRASHED
