"""Tools on another node: sent there signed, run there by themselves, and back when something dies."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
import pytest
from tool_sites import Site

import callboard
from callboard.actors.tools.deploy.client import deploy
from callboard.runtime.client import Client
from callboard.schemas.tool import CallTool, ListTools, Media, MediaKind, ToolResult

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For tests that end nothing of it."""
    site = Site.at(tmp_path_factory.mktemp("site"))
    site.node("far", "there")
    yield site
    site.close()


async def call(bus: Client, address: str, media: tuple[Media, ...] = (), **arguments: object) -> ToolResult:
    request = CallTool(msgspec.json.encode(arguments).decode(), media)
    async with bus.actor(address).stream(request) as items:
        async for _ in items:
            pass
        return items.result


async def value(bus: Client, address: str, **arguments: object) -> object:
    return msgspec.json.decode((await call(bus, address, **arguments)).value)


async def test_a_file_of_tools_runs_on_another_host_in_a_process_of_its_own(shared: Site) -> None:
    async with callboard.connect(state_dir=str(shared.board.paths.state)) as bus:
        deployment = await deploy(bus, shared.tools(name="kit"), shared.signer, labels=("there",))
        assert (deployment.name, deployment.current, deployment.state, deployment.node) == (
            "kit",
            "1.0",
            "running",
            "far",
        )
        assert await value(bus, "kit.version") == "1.0"
        assert await value(bus, "kit.pid") not in (os.getpid(), shared.nodes["far"].pid)
        listed = (await bus.actor("kit").ask(ListTools())).tools
        assert {info.name: info.address for info in listed}["kit.flipped"] == "kit.flipped"
        assert {info.version for info in listed} == {"1.0"}
        data = bytes(1 << 20)
        blob = await bus.blobs.put(data)
        result = await call(bus, "kit.flipped", (Media("f", MediaKind.FILE, "", blob),), file="f")
        assert await bus.blobs.get(result.media[0].blob) == b"\xff" + data[1:]
