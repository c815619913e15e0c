"""The children of one supervisor, and what becomes of them when one ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..schemas.base import ErrorInfo
from ..schemas.runtime import ActorInfo, Ended, Terminated
from .errors import NameTaken, RestartLimit, to_info
from .log import log
from .supervision import Restart, RestartBudget, Strategy, Supervision

if TYPE_CHECKING:
    from .node import Node


class Child:
    """What a family looks after: an actor of this process (Cell) or one in a process of its own (ProcessChild)."""

    __slots__ = ("address", "closed", "family", "restart", "restarts", "state", "watchers")

    def __init__(self, address: str, restart: Restart, family: Family) -> None:
        self.address = address
        self.restart = restart
        self.family = family
        self.state = "new"
        self.restarts = 0
        self.watchers: dict[str, bool] | None = None
        self.closed = False

    async def start(self) -> None:
        raise TypeError(f"{type(self).__name__} cannot start")

    async def stop(self, timeout: float) -> None:
        raise TypeError(f"{type(self).__name__} cannot stop")

    def reopen(self) -> None:
        """Take messages again, after a stop that was part of a sibling's restart."""
        self.closed = False

    def discard_mailbox(self) -> None:
        """Hand back what waits: this child comes back no more."""

    def info(self) -> ActorInfo:
        raise TypeError(f"{type(self).__name__} has no info")


class Family:
    """Starts, restarts and stops children as a `Supervision` says.

    `escalate` is called when they crash more often than it allows; without it (the roots of a node) only the one that
    crashed stays down, and each has a budget of its own. All restarts of a family run one after another.
    """

    def __init__(self, node: Node, policy: Supervision, escalate: Callable[[Exception], None] | None) -> None:
        self._node = node
        self._policy = policy
        self._escalate = escalate
        self._children: dict[str, Child] = {}
        self._budgets: dict[str, RestartBudget] = {}
        self._ended: asyncio.Queue[tuple[Child, Exception | None]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def __iter__(self) -> Iterator[Child]:
        return iter(tuple(self._children.values()))

    def __len__(self) -> int:
        return len(self._children)

    async def add(self, child: Child) -> None:
        """Start a child. Raises what its start raised, and then it is not a child."""
        if child.address in self._node.actors:
            raise NameTaken(f"there is an actor {child.address} already")
        self._children[child.address] = child
        self._node.actors[child.address] = child
        try:
            await child.start()
        except BaseException:
            self._forget(child)
            child.discard_mailbox()
            raise

    async def remove(self, child: Child, timeout: float) -> None:
        """Stop one child for good."""
        await child.stop(timeout)
        if self._children.get(child.address) is child:
            self._forget(child)
            self._announce(child, Ended.STOPPED, None, restarting=False)

    async def stop_all(self, timeout: float) -> None:
        """Stop all, the last started first, within about `timeout` seconds each."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
        for child in reversed(list(self._children.values())):
            await self.remove(child, timeout)

    def child_ended(self, child: Child, error: Exception | None) -> None:
        """A child's life ended by itself: a crash if `error`, else a normal end."""
        if self._stopping or child.address not in self._children:
            return
        if self._ended is None:
            self._ended = asyncio.Queue()
        self._ended.put_nowait((child, error))
        if self._task is None or self._task.done():
            self._task = self._node.loop.create_task(self._tend(self._ended))

    async def _tend(self, ended: asyncio.Queue[tuple[Child, Exception | None]]) -> None:
        while not ended.empty():
            child, error = ended.get_nowait()
            if child.address in self._children:
                await self._child_ended(child, error)

    async def _child_ended(self, child: Child, error: Exception | None) -> None:
        if child.restart is Restart.TEMPORARY or (child.restart is Restart.TRANSIENT and error is None):
            self._give_up(child, error)
            return
        while True:
            delay = self._budget(child).take(self._node.loop.time())
            if delay is None:
                self._spent(child, error)
                return
            group = self._restarted_with(child)
            self._announce(child, _reason(error), error, restarting=True)
            for other in reversed(group):
                if other is not child:
                    await other.stop(self._node.drain_timeout)
                    self._announce(other, Ended.STOPPED, None, restarting=True)
            if delay:
                await asyncio.sleep(delay)  # the backoff itself, not a wait for something
            child, error = await self._restart(group)
            if error is None:
                return

    async def _restart(self, group: list[Child]) -> tuple[Child, Exception | None]:
        """Start each again, in their first order. Returns the one that failed to, with its error."""
        for child in group:
            child.restarts += 1
            child.reopen()
            log.info("restarting %s (restart %d)", child.address, child.restarts)
            try:
                await child.start()
            except Exception as error:
                log.error("%s failed to restart: %s", child.address, error)
                return child, error
        return group[0], None

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
        log.error("%s", limit)
        self._give_up(child, limit)
        if self._escalate is not None:
            self._escalate(limit)

    def _give_up(self, child: Child, error: Exception | None) -> None:
        self._forget(child)
        child.state = "stopped"
        child.discard_mailbox()
        self._announce(child, _reason(error), error, restarting=False)

    def _forget(self, child: Child) -> None:
        self._children.pop(child.address, None)
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


def _reason(error: Exception | None) -> Ended:
    return Ended.STOPPED if error is None else Ended.CRASHED
