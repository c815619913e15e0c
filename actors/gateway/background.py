"""Responses that are made while nobody waits. Whoever asks for one later may ask any gateway of the company.

Who works on it is in its record. A gateway that does not know it any more has lost it with an earlier life, and then
the response has failed: so nothing stays in progress for ever, whatever was killed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio

from ...runtime.errors import ActorStopped, NoSuchActor
from ...runtime.node import Node
from ...schemas.gateway import FindResponse, ResponseUnderWay
from .errors import LimitReached
from .responses_store import Record, ResponseStore

# Of one gateway. The engine has a queue of its own, so more would only wait here.
MAX_UNDER_WAY = 512
ASK_TIMEOUT_S = 10.0

ACTIVE = ("queued", "in_progress")


class Background:
    """`address`: of the gateway; `start_soon` runs a coroutine for as long as it lives."""

    def __init__(
        self,
        node: Node,
        address: str,
        store: ResponseStore,
        start_soon: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],
    ) -> None:
        self._node = node
        self._address = address
        self._store = store
        self._start_soon = start_soon
        self._under_way: dict[str, tuple[anyio.CancelScope, anyio.Event]] = {}

    @property
    def address(self) -> str:
        return self._address

    def check_room(self) -> None:
        """Raises LimitReached."""
        if len(self._under_way) >= MAX_UNDER_WAY:
            raise LimitReached(f"{MAX_UNDER_WAY} responses are under way in the background already", 5.0)

    def begin(
        self, response_id: str, work: Callable[[], Awaitable[None]], cancelled: Callable[[], Awaitable[None]]
    ) -> None:
        """`work` raises nothing of its own. `cancelled` is run in its place where somebody cancels it."""
        scope, over = anyio.CancelScope(), anyio.Event()
        self._under_way[response_id] = scope, over

        async def run() -> None:
            try:
                with scope:
                    await work()
                if scope.cancelled_caught:
                    await cancelled()
            finally:
                del self._under_way[response_id]
                over.set()

        self._start_soon(run)

    async def find(self, message: FindResponse) -> ResponseUnderWay:
        """What another gateway asks this one."""
        found = self._under_way.get(message.response)
        if found is None:
            return ResponseUnderWay(False)
        scope, over = found
        if message.cancel:
            scope.cancel()
            await over.wait()
        return ResponseUnderWay(True)

    async def now(self, response_id: str, *, cancel: bool = False) -> Record:
        """How a response stands. Raises NoSuchResponse."""
        record, _ = await self._store.get(response_id)
        if record.status not in ACTIVE:
            return record
        known = await self._ask(record.gateway, FindResponse(response_id, cancel))
        if known and not cancel:
            return record
        record, revision = await self._store.get(response_id)
        if record.status not in ACTIVE:
            return record
        error = {"code": "server_error", "message": "the gateway that worked on it has ended"}
        lost = record.response | ({"status": "cancelled"} if cancel else {"status": "failed", "error": error})
        return await self._store.replace(Record(response=lost, input=record.input, previous=record.previous), revision)

    async def _ask(self, gateway: str, message: FindResponse) -> bool:
        if gateway == self._address:
            return (await self.find(message)).known
        try:
            return (await self._node.actor(gateway).ask(message, timeout=ASK_TIMEOUT_S)).known
        except (NoSuchActor, ActorStopped):
            return False
