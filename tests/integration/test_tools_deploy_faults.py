"""Deployed tools when something dies: their process, their node, the daemon. And the whole way by the command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from board import gone
from cable import cable_laid
from tool_sites import Site, call, value

import callboard
from callboard.actors.tools.deploy.client import deploy, deployments
from callboard.runtime.client import Client
from callboard.runtime.errors import ActorStopped, CallboardError
from callboard.schemas.tool import CallTool, Media, MediaKind, ToolProgress
from callboard.schemas.tool_deploy import ListDeployments

pytestmark = pytest.mark.anyio


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site.at(tmp_path)
    yield site
    site.close()


@asynccontextmanager
async def client(site: Site) -> AsyncIterator[Client]:
    async with callboard.connect(state_dir=str(site.board.paths.state)) as bus:
        yield bus


async def value_when_back(bus: Client, address: str) -> object:
    while True:
        with contextlib.suppress(CallboardError):
            return await value(bus, address)
        await anyio.sleep(0.05)  # nothing tells a caller that it is back


async def running_on(bus: Client, name: str) -> str:
    found = (await bus.actor("deployments").ask(ListDeployments())).deployments
    return {one.name: one.node for one in found if one.state == "running"}.get(name, "")


async def test_a_tools_process_that_is_killed_in_mid_call_is_an_error_and_comes_back(site: Site) -> None:
    site.node("far", "there")
    async with client(site) as bus:
        await deploy(bus, site.tools(), site.signer)
        first = await value(bus, "kit.pid")
        with pytest.raises(ActorStopped):
            await value(bus, "kit.die")
        assert await value_when_back(bus, "kit.pid") != first
        assert await running_on(bus, "kit") == "far"


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_a_node_that_is_killed_in_mid_call_is_an_error_and_the_set_comes_back_elsewhere(site: Site) -> None:
    site.node("one", "there")
    site.node("two", "there")
    site.node("three", "there", allow=())
    async with client(site) as bus:
        first = (await deploy(bus, site.tools(), site.signer, labels=("there",))).node
        other = {"one": "two", "two": "one"}[first]
        request = CallTool(json.dumps({"path": str(site.base / "never")}))
        async with bus.actor("kit.wait_for").stream(request) as items:
            assert isinstance(await anext(items), ToolProgress)
            site.nodes[first].kill()
            began = time.monotonic()
            with pytest.raises(ActorStopped):
                await anext(items)
        assert time.monotonic() - began < 10
        assert await value_when_back(bus, "kit.version") == "1.0"
        assert await running_on(bus, "kit") == other
        # With the last one gone it waits for a node that takes it, and runs there when that comes.
        site.nodes[other].kill()
        site.nodes[other].wait()
        with anyio.fail_after(20):
            while await running_on(bus, "kit"):
                await anyio.sleep(0.05)
        site.node(f"{first}-again", "there")
        assert await value_when_back(bus, "kit.version") == "1.0"


@pytest.mark.slow
async def test_a_node_that_drains_lets_calls_finish(site: Site) -> None:
    site.node("one", "there")
    go = site.base / "go"
    async with client(site) as bus:
        await deploy(bus, site.tools(), site.signer, labels=("there",))
        request = CallTool(json.dumps({"path": str(go)}))
        async with bus.actor("kit.wait_for").stream(request) as items:
            assert isinstance(await anext(items), ToolProgress)
            site.nodes["one"].send_signal(signal.SIGTERM)
            while "drains and leaves" not in site.log("one"):
                await anyio.sleep(0.02)
            go.touch()
            async for _ in items:
                pass
            assert json.loads(items.result.value) == "1.0"


@pytest.mark.slow
async def test_deployed_tools_survive_a_kill_9_of_the_daemon(site: Site) -> None:
    site.node("far", "there")
    async with client(site) as bus:
        await deploy(bus, site.tools("1.0"), site.signer, labels=("there",))
        await deploy(bus, site.tools("2.0"), site.signer, beside=True)
        before = site.board.info().daemon_pid
        async with bus.listen("nodes.hello") as hellos:
            os.kill(before, signal.SIGKILL)
            async for _, hello in hellos:
                info = hello["info"]
                if info["node"] == "main" and info["pid"] != before and "deployments" in info["roots"]:
                    break
        assert await value_when_back(bus, "kit.version") == "1.0"
        assert await value_when_back(bus, "kit.v2-0.version") == "2.0"
        (one,) = (await bus.actor("deployments").ask(ListDeployments())).deployments
        assert (one.current, len(one.versions), one.labels) == ("1.0", 2, ("there",))


@pytest.mark.slow
async def test_after_a_clean_end_they_come_back_with_the_next_look_at_them(site: Site) -> None:
    site.node("far", "there")
    async with client(site) as bus:
        await deploy(bus, site.tools(), site.signer, labels=("there",))
    before = site.board.processes()
    assert site.board.run("down").returncode == 0
    assert await anyio.to_thread.run_sync(gone, before)
    site.board.up()
    async with client(site) as bus:
        await deployments(bus)
        assert await value_when_back(bus, "kit.version") == "1.0"


@pytest.mark.slow
async def test_what_is_found_by_the_directory_is_the_relay_and_never_the_process_behind_it(site: Site) -> None:
    site.node("far", "there")
    async with client(site) as bus:
        await deploy(bus, site.tools("1.0"), site.signer)
        await deploy(bus, site.tools("2.0"), site.signer, beside=True)
        async with callboard.open_tool(bus, "kit.version") as version:
            assert (version.info.address, version.info.version) == ("kit.version", "1.0")
        async with callboard.open_tool(bus, "kit.version@2.0") as other:
            assert other.info.address == "kit.v2-0.version"
        done = site.board.run("tool", "list", "--json")
        assert done.returncode == 0, done.stderr
        there = [info for info in json.loads(done.stdout) if info["name"].startswith("kit.")]
        assert {info["address"] for info in there} == {info["name"] for info in there}
        assert len(there) == 6  # one for each tool


MEBIBYTES = 32


async def through(bus: Client, data: bytes) -> float:
    """The rate at which a file goes to a tool and back, in MB/s both ways: the best of three."""
    rates: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        blob = await bus.blobs.put(data)
        result = await call(bus, "kit.flipped", (Media("f", MediaKind.FILE, "", blob),), file="f")
        (medium,) = result.media
        async with bus.blobs.open(medium.blob) as back:
            rates.append(2 * MEBIBYTES * 1.048576 / (time.perf_counter() - began))
            assert back[0] == data[0] ^ 255
            assert back[1:] == data[1:]
        await bus.blobs.release(blob)
    return max(rates)


@pytest.mark.slow
@pytest.mark.parametrize("same_host", [True, False])
async def test_a_large_file_goes_through_a_remote_tool(site: Site, same_host: bool) -> None:
    """The rate is printed; that it is not absurd is all that a busy machine can be asked."""
    cache = {"CALLBOARD_CACHE_DIR": os.environ["CALLBOARD_CACHE_DIR"]} if same_host else {}
    site.node("far", "there", **cache)
    async with client(site) as bus:
        await deploy(bus, site.tools(), site.signer)
        rate = await through(bus, os.urandom(MEBIBYTES << 20))
    print(f"{'same host' if same_host else 'two hosts'}: {rate:.0f} MB/s")
    assert rate > (60 if same_host else 10)


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_tools_run_on_a_machine_that_is_reached_by_the_network_alone(tmp_path: Path) -> None:
    """And go on without it: when the cable is cut in mid-call, the caller hears of it, and the set waits or moves."""
    with cable_laid() as cable, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        site = Site.at(tmp_path, CALLBOARD_SERVER_LISTEN=f"0.0.0.0:{port}", CALLBOARD_SERVER_PLAIN="true")
        try:
            inside = ("ip", "netns", "exec", cable.namespace)
            site.node("far", "there", before=inside, url=f"nats://{cable.host}:{port}")
            async with client(site) as bus:
                done = await deploy(bus, site.tools(), site.signer, labels=("there",))
                assert done.node == "far"
                print(f"across a network namespace: {await through(bus, os.urandom(MEBIBYTES << 20)):.0f} MB/s")
                site.node("near", "there")
                request = CallTool(json.dumps({"path": str(site.base / "never")}))
                async with bus.actor("kit.wait_for").stream(request) as items:
                    assert isinstance(await anext(items), ToolProgress)
                    cable.cut()
                    with pytest.raises(CallboardError):
                        await anext(items)
                assert await value_when_back(bus, "kit.version") == "1.0"
                assert await running_on(bus, "kit") == "near"
        finally:
            site.close()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_whole_way_by_the_command_line(site: Site, tmp_path: Path) -> None:
    board = site.board
    run = board.run
    assert "callboard tool key new" in run("tool", "deploy", "none.py").stderr
    made = run("tool", "key", "new")
    assert made.returncode == 0
    key = made.stdout.strip()
    assert run("tool", "key", "show").stdout.strip() == key
    assert run("tool", "key", "new").returncode == 2
    file = tmp_path / "words.py"
    file.write_text(
        "from callboard import tool\n\n@tool\ndef count(text: str) -> int:\n"
        '    """Count words.\n\n    Args:\n        text: what to count in\n    """\n    return len(text.split())\n'
    )
    site.node("gpu", "gpu", allow=())
    refused = run("tool", "deploy", str(file), "--on", "gpu")
    assert refused.returncode == 1
    assert f"--allow-tools-from {key}" in refused.stderr
    config = tmp_path / "node-config" / "callboard" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[node]\nallow_tools_from = ["{key}"]\n')
    site.node("gpu2", "gpu", allow=(), XDG_CONFIG_HOME=str(tmp_path / "node-config"))
    done = run("tool", "deploy", str(file), "--on", "gpu", "--version", "1.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "words 1.0 runs on node gpu2\n"
    assert run("tool", "call", "words.count", "text=one two three").stdout.strip() == "3"
    file.write_text(file.read_text().replace("text.split()", "text"))
    assert run("tool", "deploy", str(file), "--version", "2.0", "--beside").returncode == 0
    listed = json.loads(run("tool", "deployments", "--json").stdout)
    assert [(one["name"], one["current"], len(one["versions"])) for one in listed] == [("words", "1.0", 2)]
    assert run("tool", "switch", "words").returncode == 2
    assert run("tool", "switch", "words@2.0").stdout == "words is version 2.0 from now on\n"
    assert run("tool", "call", "words.count", "text=abcd").stdout.strip() == "4"
    assert "gpu2" in run("tool", "deployments").stdout
    assert run("tool", "undeploy", "words").returncode == 0
    assert json.loads(run("tool", "deployments", "--json").stdout) == []
    assert run("tool", "undeploy", "words").returncode == 1
