"""Where the sandbox keeps sessions between calls: a folder of this node, or the store of all nodes."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import anyio.to_thread

from ....runtime.errors import CallboardError
from ....schemas.tool_session import DropSession, GetSession, KeepSession, SessionKept, SessionPart
from .errors import SandboxError, SessionsAway, SnapshotRefused
from .snapshot import SessionSnapshot, SnapshotFolder

# Of a session on its way: what any bus takes in one message, with room for what is around it.
PART_BYTES = 512 << 10
ASK_S = 30.0

# How a call of a tool asks an actor: `ToolContext.ask_async`.
Ask = Callable[[str, Any, float], Awaitable[Any]]


class Sessions(Protocol):
    """Errors: SnapshotRefused for what is no snapshot; OSError or SessionsAway; SessionMoved."""

    async def open(self) -> None: ...
    async def read(self, ask: Ask, session: str) -> SessionSnapshot | None: ...
    async def write(self, ask: Ask, session: str, snapshot: SessionSnapshot) -> None: ...
    async def delete(self, ask: Ask, session: str) -> None: ...


class SessionsHere:
    """In a folder, until nobody has used them for `forget_s` seconds."""

    def __init__(self, folder: Path, limit: int, forget_s: float) -> None:
        self._folder = SnapshotFolder(folder, limit)
        self._forget_s = forget_s

    async def open(self) -> None:
        await anyio.to_thread.run_sync(self._folder.forget, self._forget_s)

    async def read(self, ask: Ask, session: str) -> SessionSnapshot | None:
        return await anyio.to_thread.run_sync(self._folder.read, session)

    async def write(self, ask: Ask, session: str, snapshot: SessionSnapshot) -> None:
        await anyio.to_thread.run_sync(self._folder.write, session, snapshot)

    async def delete(self, ask: Ask, session: str) -> None:
        await anyio.to_thread.run_sync(self._folder.delete, session)


class SessionsWithCompany:
    """With the actor `keeper`, under the name of their owner, for whichever node that is on."""

    def __init__(self, keeper: str, owner: str, limit: int) -> None:
        self._keeper = keeper
        self._owner = owner
        self._limit = limit
        # Of what was last read or written here. A session that somebody else has written since is not written over.
        self._revisions: dict[str, int] = {}

    async def open(self) -> None: ...

    async def read(self, ask: Ask, session: str) -> SessionSnapshot | None:
        data, part, num_parts, revision = bytearray(), 0, 1, 0
        while part < num_parts:
            found: SessionPart = await self._ask(ask, GetSession(self._owner, session, part, revision))
            num_parts, revision = found.num_parts, found.revision
            data += found.data
            part += 1
            if len(data) > self._limit:
                raise SnapshotRefused(f"a session of more than the {self._limit} bytes that are taken")
        self._revisions[session] = revision
        return SessionSnapshot.from_bytes(bytes(data), self._limit) if num_parts else None

    async def write(self, ask: Ask, session: str, snapshot: SessionSnapshot) -> None:
        data, upload = snapshot.to_bytes(), secrets.token_hex(8)
        num_parts = max(1, -(-len(data) // PART_BYTES))
        revision = self._revisions.pop(session, 0)  # where this fails, what is there is not known
        kept = SessionKept()
        for part in range(num_parts):
            kept = await self._ask(
                ask,
                KeepSession(
                    owner=self._owner,
                    session=session,
                    upload=upload,
                    part=part,
                    num_parts=num_parts,
                    data=data[part * PART_BYTES : (part + 1) * PART_BYTES],
                    revision=revision,
                ),
            )
        self._revisions[session] = kept.revision

    async def delete(self, ask: Ask, session: str) -> None:
        await self._ask(ask, DropSession(self._owner, session))

    async def _ask(self, ask: Ask, request: Any) -> Any:
        """Raises SessionsAway for what the bus says, which would else be taken for word of the tool that asks."""
        try:
            return await ask(self._keeper, request, ASK_S)
        except SandboxError:
            raise
        except CallboardError as error:
            raise SessionsAway(f"sessions cannot be had from {self._keeper}: {error}") from error
