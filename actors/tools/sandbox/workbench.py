"""The sandbox as the tools use it: opened on first use, with sessions that outlive its processes and its owner.

After each call of a session its snapshot replaces the one that is kept (kept.py), so what a call has answered is there
after a crash; a call that is ended leaves the session as it was before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import anyio

from ....runtime.errors import CallboardError
from ....runtime.log import log
from .config import SandboxConfig
from .errors import SandboxError, SandboxKilled, SessionMoved, SnapshotRefused
from .kept import Ask, Sessions
from .results import RunResult
from .sandbox import Sandbox

Given = Mapping[str, bytes | Path]
Lost = tuple[tuple[str, str], ...]

# Locks are small; those of sessions that nobody uses any more go when there are more than this.
_MOST_LOCKS = 1000


class Workbench:
    """`kept`: where sessions are kept; None: they end with this process. `open` and `close` are counted."""

    def __init__(self, config: SandboxConfig, kept: Sessions | None) -> None:
        self.config = config
        self._kept = kept
        self._box: Sandbox | None = None
        self._users = 0
        self._opening = anyio.Lock()
        self._locks: OrderedDict[str, anyio.Lock] = OrderedDict()

    async def open(self) -> None:
        """Raises SandboxLacks."""
        async with self._opening:
            if self._box is None:
                if self._kept is not None:
                    await self._kept.open()
                box = Sandbox(self.config)
                await box.open()
                self._box = box
            self._users += 1

    async def close(self) -> None:
        async with self._opening:
            self._users -= 1
            if self._users == 0 and self._box is not None:
                box, self._box = self._box, None
                await box.close()

    async def python(self, code: str, session: str, files: Given, ask: Ask) -> tuple[RunResult, Lost]:
        """With what of the session could not be brought back, where this call had to, or not be kept. `ask`: how this
        call asks whoever keeps sessions."""
        return await self._run("python", code, session, files, ask)

    async def shell(self, command: str, session: str, files: Given, ask: Ask) -> tuple[RunResult, Lost]:
        return await self._run("shell", command, session, files, ask)

    async def _run(self, kind: str, text: str, session: str, files: Given, ask: Ask) -> tuple[RunResult, Lost]:
        box = self._box
        if box is None:
            raise SandboxError("the sandbox is closed")
        run = box.run_python if kind == "python" else box.run_shell
        if not session:
            return await run(text, "", files), ()
        async with self._lock(session):
            lost = await self._bring_back(box, session, ask)
            result = await run(text, session, files)
            if self._kept is not None and not result.session_ended:
                lost += await self._put_away(box, session, self._kept, ask)
            return result, lost

    def _lock(self, session: str) -> anyio.Lock:
        lock = self._locks.pop(session, None) or anyio.Lock()
        self._locks[session] = lock
        for name in list(self._locks)[: max(0, len(self._locks) - _MOST_LOCKS)]:
            if not self._locks[name].locked():
                del self._locks[name]
        return lock

    async def _bring_back(self, box: Sandbox, session: str, ask: Ask) -> Lost:
        """Raises what whoever keeps sessions does: a call that ran without its session would give wrong answers."""
        if session in box.sessions:
            return ()
        if len(box.sessions) >= self.config.max_sessions and self._kept is not None:
            await box.end_session(self._idle(box))  # its snapshot is kept
        if self._kept is None:
            return ()
        try:
            snapshot = await self._kept.read(ask, session)
            return await box.restore(session, snapshot) if snapshot is not None else ()
        except (SnapshotRefused, SandboxKilled) as error:
            log.warning("a session of the sandbox cannot be brought back: %s", error)
            await self._kept.delete(ask, session)
            return (("everything", str(error)),)

    def _idle(self, box: Sandbox) -> str:
        """The session that was used longest ago and has no call under way."""
        for name in box.sessions:
            if name not in self._locks or not self._locks[name].locked():
                return name
        raise SandboxError("every session has a call under way", hint="call again in a moment")

    async def _put_away(self, box: Sandbox, session: str, kept: Sessions, ask: Ask) -> Lost:
        """A session that another owner has written is let go of here: the next call has it as that one left it."""
        try:
            await kept.write(ask, session, await box.snapshot(session))
        except (CallboardError, OSError) as error:
            log.warning("a session of the sandbox is not kept: %s", error)
            if isinstance(error, SessionMoved):
                await box.end_session(session)
            return (("what this call changed", f"it could not be kept: {error}"),)
        return ()
