"""Runs on a real server: what they write, what they do, and how people have a say."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_play import company, events_of, lines, play, until_over
from own_server import OwnServer

from callboard.schemas.agent_parts import RunStatus

pytestmark = pytest.mark.anyio


async def test_a_run_calls_its_tools_in_order_and_ends(server: OwnServer, tmp_path: Path) -> None:
    async with company(server.url, tmp_path / "witness") as node:
        done = await until_over(node, play("look", "look+look"))
        assert done.status is RunStatus.FINISHED, done
        assert done.answer == "look 0 look 1 look 2"
        names = [type(event).__name__ for event in await events_of(node, done.run)]
        assert names == [
            *("RunStarted", "ToolCalled", "ToolAnswered"),
            *("ToolCalled", "ToolCalled", "ToolAnswered", "ToolAnswered", "RunEnded"),
        ]
    assert lines(tmp_path / "witness") == []
