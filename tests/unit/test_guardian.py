"""What the guardian does with its daemon where a test of the whole could hardly meet the moment."""

from __future__ import annotations

from collections.abc import Awaitable

import anyio
import anyio.abc
import pytest

from callboard.runtime import guardian, processes
from callboard.runtime.folders import Paths

pytestmark = pytest.mark.anyio


async def test_a_daemon_whose_server_fails_while_it_is_being_started_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths.find()
    paths.create()
    started: list[anyio.abc.Process] = []
    child = guardian.DaemonChild(paths, 1.0, 10.0, lambda _: None)
    failed = anyio.CancelScope()

    async def whole(opening: Awaitable[anyio.abc.Process]) -> anyio.abc.Process:
        started.append(await processes.whole(opening))
        failed.cancel()  # as the server's error does it
        return started[0]

    monkeypatch.setattr(guardian, "whole", whole)
    with failed:
        await child.supervise()
    assert child.ended.is_set()
    (process,) = started
    assert process.returncode is not None
