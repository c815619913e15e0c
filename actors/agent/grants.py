"""What people granted for longer than one run, in a log that all executors read and any may add to.

It is read up to its end each time that a person would be asked, so an answer given anywhere counts everywhere at once.
"""

from __future__ import annotations

import msgspec

from ...runtime.event_log import EventLog
from ...runtime.node import Node
from ...schemas.agent_parts import Scope, Verdict
from .log import Grant

LOG = "agents.grants"


class Granted(msgspec.Struct, frozen=True, array_like=True):
    tool: str
    pattern: str
    verdict: Verdict
    session: str = ""
    by: str = ""
    approval: str = ""


class Grants:
    """Raises StoreError."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._log: EventLog[Granted] | None = None
        self._known: list[Granted] = []
        self._read = 0

    async def _open(self) -> EventLog[Granted]:
        if self._log is None:
            self._log = await EventLog.open(self._node, LOG, Granted)
        return self._log

    async def add(self, granted: Granted) -> None:
        """An answer that is given again is there once."""
        await (await self._open()).append(granted, key=granted.approval)

    async def of(self, session: str) -> list[Grant]:
        """Those for every run, and those for runs of that session."""
        async for event in (await self._open()).read(after=self._read):
            self._known.append(event.value)
            self._read = event.number
        return [Grant(one.tool, one.pattern, one.verdict) for one in self._known if one.session in ("", session)]


def reaches(scope: Scope, session: str) -> str | None:
    """The session that an answer of that scope is kept for, "" for all; None where it is not kept here."""
    if scope is Scope.FOREVER:
        return ""
    return session if scope is Scope.SESSION and session else None
