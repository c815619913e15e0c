"""The set `sandbox` on the bus: in a process of its own with the role `tool`, code in it far from both."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import psutil
import pytest
from board import running
from own_server import OwnServer
from workers import own_workers

import callboard
from callboard.actors.tools.client import OpenedTool
from callboard.actors.tools.errors import ToolError
from callboard.actors.tools.sandbox import probe
from callboard.actors.tools.sandbox.errors import SessionsAway
from callboard.actors.tools.sandbox.keeper import BUCKET, SessionKeeper, session_key
from callboard.actors.tools.sandbox.kept import PART_BYTES
from callboard.actors.tools.tool_set import ToolSetConfig
from callboard.runtime.buckets import Bucket
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import ActorStopped, NoSuchActor, NotReachable
from callboard.runtime.identity import read_creds
from callboard.runtime.node import Node
from callboard.runtime.placement import Process
from callboard.runtime.supervision import Restart
from callboard.schemas.tool import ListTools

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(probe().lacking), reason=f"this kernel lacks {', '.join(probe().lacking)}"),
]


@pytest.fixture
async def box(node: Node, tmp_path: Path) -> dict[str, OpenedTool]:
    options = {"sessions": str(tmp_path / "sessions"), "limits": {"wall_s": 20.0, "output_bytes": 10_000}}
    config = ToolSetConfig("sandbox", options=json.dumps(options), alone=True)
    where = Process(role="tool")
    ref = await node.spawn("tool.set", config, name="sandbox", where=where, restart=Restart.PERMANENT)
    found = await ref.ask(ListTools())
    return {info.name.partition(".")[2]: OpenedTool(node, info, info.name) for info in found.tools}


async def ask(tool: OpenedTool, session: str = "", **arguments: object) -> str:
    """Its text, once its process is there."""
    with anyio.fail_after(30):
        while True:
            try:
                return (await tool.request(arguments, session=session)).text
            except (NoSuchActor, ActorStopped, NotReachable):
                await anyio.sleep(0.05)  # nothing tells when it is, and there is no directory that could


async def test_code_runs_and_finds_nothing_of_the_company(box: dict[str, OpenedTool], node: Node) -> None:
    code = """
import os
print(sorted(name for name in os.environ if 'CALLBOARD' in name or 'NATS' in name))
print([name for name in os.listdir('/proc') if name.isdigit()])
for path in ('/proc/1/environ', '/etc/passwd'):
    try:
        open(path).read()
        print('read', path)
    except OSError:
        pass
"""
    assert await ask(box["python"], code=code) == "[]\n['1', '2']"
    with pytest.raises(ToolError, match="printed too much"):
        await ask(box["python"], code="while True: print('x' * 1000)")


async def test_session_survives_kill_9_of_its_owner(box: dict[str, OpenedTool], node: Node) -> None:
    assert await ask(box["python"], "run", code="x = [1, 2, 3]\nopen('f', 'w').write('kept')") == "4\n(made: f)"
    (owner,) = own_workers()
    below = owner.children(recursive=True)
    assert below
    owner.kill()
    _, alive = await anyio.to_thread.run_sync(psutil.wait_procs, below, 10)
    assert not alive, "what it started dies with it"
    assert await ask(box["python"], "run", code="x, open('f').read()") == "([1, 2, 3], 'kept')"
    assert await ask(box["shell"], "run", command="cat f") == "kept"


STEAL = """
import os, socket
for path in {paths}:
    try:
        print('READ', open(path).read())
    except OSError as error:
        print('no', type(error).__name__)
try:
    print('LISTED', os.listdir({folder!r}))
except OSError as error:
    print('no', type(error).__name__)
for family, place in ((socket.AF_INET, ('127.0.0.1', {port})), (socket.AF_INET6, ('::1', {port}))):
    try:
        with socket.socket(family, socket.SOCK_STREAM) as there:
            there.settimeout(5)
            there.connect(place)
            print('CONNECTED', there.recv(100))
    except OSError as error:
        print('no', type(error).__name__)
"""


@asynccontextmanager
async def owner(server: OwnServer, state: Path, name: str = "sandbox") -> AsyncIterator[OpenedTool]:
    """The tool `python` of a sandbox that keeps its sessions with the actor `keeper`, on a node of its own."""
    async with Node(bus=BusOptions(server.url)) as node:
        config = ToolSetConfig("sandbox", options=json.dumps({"keeper": "keeper"}), alone=True)
        where = Process({"CALLBOARD_STATE_DIR": str(state)}, role="tool", asks=("keeper",))
        ref = await node.spawn("tool.set", config, name=name, where=where)
        (python,) = [info for info in (await ref.ask(ListTools())).tools if info.name == f"{name}.python"]
        yield OpenedTool(node, python, python.name)


async def test_session_goes_on_with_its_owner_on_another_node(node: Node, server: OwnServer, tmp_path: Path) -> None:
    await node.spawn(SessionKeeper, name="keeper")
    large = 3 * PART_BYTES // 2  # so it goes in parts
    async with owner(server, tmp_path / "one") as python:
        code = f"import os\nx = [1, 2, 3]\ndef f(n): return n * x[-1]\nopen('f', 'wb').write(os.urandom({large}))"
        assert await ask(python, "run", code=code) == f"{large}\n(made: f)"
        assert await ask(python, "run", code="x.append(4)") == "(no output)"
        digest = await ask(python, "run", code="sum(open('f', 'rb').read())")
    shutil.rmtree(tmp_path / "one", ignore_errors=True)
    async with owner(server, tmp_path / "two") as python:
        assert await ask(python, "run", code="x, f(10)") == "([1, 2, 3, 4], 40)"
        assert await ask(python, "run", code="sum(open('f', 'rb').read())") == digest
        assert "NameError" in await ask(python, "another", code="x")
    assert not list((tmp_path / "two").rglob("*.session"))


async def test_of_two_owners_one_finds_that_the_other_has_gone_on(
    node: Node, server: OwnServer, tmp_path: Path
) -> None:
    await node.spawn(SessionKeeper, name="keeper")
    async with owner(server, tmp_path / "one") as first, owner(server, tmp_path / "two", "second") as second:
        assert await ask(first, "run", code="x = 1; x") == "1"
        assert await ask(second, "run", code="x += 1; x") == "2"
        late = await ask(first, "run", code="x = 70; x")
        assert late.startswith(
            "70\n(of the session, what this call changed is lost: it could not be kept: another owner"
        )
        assert await ask(first, "run", code="x") == "2"


async def test_a_call_fails_where_its_session_cannot_be_had(node: Node, server: OwnServer, tmp_path: Path) -> None:
    async with owner(server, tmp_path) as python:
        with pytest.raises(SessionsAway, match="there is no actor keeper"):
            await python.request({"code": "1"}, session="run")
        assert await ask(python, code="1") == "1"


async def test_code_reaches_neither_credentials_nor_the_server_of_a_real_company(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as board:
        for name, value in board.environment.items():
            monkeypatch.setenv(name, value)
        async with callboard.connect() as bus, callboard.open_tool(bus, "sandbox.python") as python:
            info = board.info()
            secrets = [*sorted(board.paths.state.rglob("*.creds")), Path(info.account)]
            assert {"main.creds", "sandbox.creds"} <= {path.name for path in secrets}
            assert all(path.read_text() for path in secrets)
            port = urlsplit(info.url).port
            assert port is not None
            socket.create_connection(("127.0.0.1", port), 5).close()  # for us it is there
            code = STEAL.format(paths=[str(path) for path in secrets], folder=str(secrets[0].parent), port=port)
            lines = (await python.request({"code": code})).text.split("\n")
            assert (await python.request({"code": "x = 5"}, session="run")).text == "(no output)"
            (creds,) = board.paths.state.rglob("sandbox.creds")
            assert read_creds(creds).may_ask == {"tools.sessions"}
            assert not list(board.paths.state.rglob("*.session"))
            kept = await Bucket.open(bus.node, BUCKET, ttl_s=86400.0, max_bytes=1 << 30)
            assert await kept.get(session_key("sandbox", "run"))
    assert len(lines) == len(secrets) + 3
    assert all(line.startswith("no ") for line in lines), lines
