"""What is confirmed is on the disk, what is not is an error: system calls, full disks, dead writers, lost answers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from durable import Account, Balance, Deposit, GetBalance, Ledger
from own_server import OwnServer, own_server
from proxy import proxy_to

from callboard.runtime import event_log, store
from callboard.runtime.actor import Actor, NoConfig, handler
from callboard.runtime.bus import BusOptions
from callboard.runtime.credentials import mint_user_file
from callboard.runtime.errors import BlobNoRoom, CallboardError, StoreError, StoreFull
from callboard.runtime.event_log import EventLog
from callboard.runtime.node import Node
from callboard.runtime.server import embedded_server
from callboard.runtime.settings import Paths, ServerSettings

pytestmark = pytest.mark.anyio

MARK = "durable-mark-"


def config(folder: Path, sync: str) -> Path:
    file = folder / f"{sync}.conf"
    file.write_text(
        f"jetstream {{ store_dir: {json.dumps(str(folder / 'js'))}\n sync_interval: {json.dumps(sync)} }}\n"
    )
    return file


@asynccontextmanager
async def traced(server: OwnServer, trace: Path) -> AsyncIterator[None]:
    """The server's writes and syncs, as they begin and end, go to `trace`. Skips where strace may not attach."""
    calls = "trace=fsync,fdatasync,pwrite64,write,writev,sendto,sendmsg"
    command = ["strace", "-f", "-y", "-s", "4096", "-e", calls, "-o", str(trace), "-p", str(server.pid)]
    try:
        tracer = await anyio.open_process(command)
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    assert tracer.stderr is not None
    said = (await tracer.stderr.receive()).decode()
    if "attached" not in said:
        pytest.skip(f"strace may not attach here: {said}")
    try:
        yield
    finally:
        tracer.terminate()
        await tracer.wait()


def synced_first(trace: str, subject: str) -> list[bool]:
    """For each message of `subject` that was written to a stream's file: was that file synced before the server wrote
    the next acknowledgement to a socket?"""
    found: list[bool] = []
    path = ""  # of the file that is written and not synced yet
    syncing: dict[str, str] = {}  # thread -> the file whose sync has begun
    for line in trace.splitlines():
        thread, _, call = line.partition(" ")
        call = call.strip()
        if begun := re.match(r"f(?:data)?sync\(\d+<([^>]*)>", call):
            if "unfinished" in call:
                syncing[thread] = begun[1]
            elif begun[1] == path and call.endswith("= 0"):
                found, path = [*found, True], ""
        elif "sync resumed" in call:
            if syncing.pop(thread, "") == path and path and call.endswith("= 0"):
                found, path = [*found, True], ""
        elif wrote := re.match(r"(?:write|pwrite64)\(\d+<([^>]*\.blk)>", call):
            if subject in call:
                path = wrote[1]
        elif path and re.match(r"\w+\(\d+<(?:TCP|socket)", call) and r"\"seq\":" in call:
            found, path = [*found, False], ""
    return found


async def saves_and_appends(url: str, count: int) -> None:
    async with Node(bus=BusOptions(url)) as node:
        account, snapshots = Account(), store.Snapshots(node.jetstream, f"{MARK}save", Account, 30.0)
        await snapshots.recover(account, Ledger)
        log = await EventLog.open(node, f"{MARK}log", int)
        for n in range(count):
            account.amount = n
            await snapshots.save(account)
            await log.append(n)


@pytest.mark.parametrize("sync", ["always", "2m"])
async def test_a_save_and_an_append_are_synced_before_they_are_acknowledged(tmp_path: Path, sync: str) -> None:
    """`kill -9` never shows the difference, since the page cache outlives a process: the system calls do. With the
    server's own default the same look at them finds no sync."""
    trace = tmp_path / "trace"
    with own_server(tmp_path, "--config", str(config(tmp_path, sync))) as server:
        async with traced(server, trace):
            await saves_and_appends(server.url, 10)
    text = trace.read_text()
    for what in ("save", "log"):
        looked_at = synced_first(text, MARK + what)
        assert len(looked_at) >= 10
        # Making the stream may sync by itself, whatever the setting.
        assert all(looked_at) if sync == "always" else not any(looked_at[2:])


class Diary(Actor[NoConfig]):
    """Keeps what it is told as its state, and in a log."""

    data = b""

    def snapshot(self) -> bytes:
        return self.data

    def restore(self, state: bytes) -> None:
        self.data = state

    async def started(self) -> None:
        self.log = await EventLog.open(self.node, "diary", bytes)

    @handler
    async def add(self, message: Deposit) -> Balance:
        old, self.data = self.data, os.urandom(message.amount)
        try:
            await (self.save() if message.durable else self.log.append(self.data))
        except CallboardError:
            self.data = old
            raise
        return Balance(len(self.data))

    @handler
    async def get(self, message: GetBalance) -> Balance:
        return Balance(len(self.data))


async def test_a_store_at_its_limit_refuses_with_an_error_and_takes_again_once_there_is_room(tmp_path: Path) -> None:
    size = 200_000
    file = tmp_path / "limit.conf"
    file.write_text(f"jetstream {{ store_dir: {json.dumps(str(tmp_path / 'js'))}\n max_file_store: 2000000 }}\n")
    with own_server(tmp_path, "--config", str(file)) as server:
        async with Node(bus=BusOptions(server.url)) as node:
            diary = await node.spawn(Diary, name="diary")
            assert (await diary.ask(Deposit(size))).amount == size
            large = await EventLog.open(node, "large", bytes)
            kept = 0

            async def fill_up() -> None:
                nonlocal kept
                while True:
                    await large.append(b"x" * 100_000)
                    kept += 1

            with pytest.raises(StoreFull, match="no room"):
                await fill_up()
            for durable in (True, False):
                with pytest.raises(StoreFull, match="no room"):
                    await diary.ask(Deposit(size + 1, durable=durable))
            assert (await diary.ask(GetBalance())).amount == size
            assert len([event async for event in large.read()]) == kept
            await large.delete()
            for durable in (True, False):
                assert (await diary.ask(Deposit(size + 1, durable=durable))).amount == size + 1


async def test_a_full_disk_is_an_error_and_loses_nothing_that_was_confirmed(tmp_path: Path, small_disk: Path) -> None:
    """Where the disk itself is full, nats-server says nothing more for the stream until it is started again."""
    filler = small_disk / "filler"
    size = 200_000
    with own_server(tmp_path, "--jetstream", "--store_dir", str(small_disk / "js")) as server:
        async with Node(bus=BusOptions(server.url), ask_timeout=1.0) as node:
            diary = await node.spawn(Diary, name="diary")
            assert (await diary.ask(Deposit(size))).amount == size
            assert (await diary.ask(Deposit(size, durable=False))).amount == size
            before = [event.value async for event in (await EventLog.open(node, "diary", bytes)).read()]
            fill(filler)
            for durable in (True, False):
                with pytest.raises(StoreError, match=r"no room|within 1 s"):
                    await diary.ask(Deposit(size + 1, durable=durable), timeout=20)
            assert (await diary.ask(GetBalance())).amount == size
            filler.unlink()
            server.kill()
            server.start()
            for durable in (True, False):
                assert (await diary.ask(Deposit(size + 2, durable=durable), timeout=20)).amount == size + 2
            after = [event.value async for event in (await EventLog.open(node, "diary", bytes)).read()]
            assert after[: len(before)] == before
            assert len(after[-1]) == size + 2
            await node.stop("diary")
            again = await node.spawn(Diary, name="diary")
            assert (await again.ask(GetBalance())).amount == size + 2


async def test_the_embedded_server_takes_writes_again_once_a_full_disk_has_room(small_disk: Path) -> None:
    paths = Paths(*(small_disk / name for name in ("state", "data", "cache", "run"))).create()
    async with embedded_server(paths, ServerSettings()) as server:
        creds = mint_user_file(paths.state / "me.creds", server.account_seed, "me", "me")
        async with Node("me", bus=BusOptions(server.url, str(creds), "me"), ask_timeout=1.0) as node:
            log = await EventLog.open(node, "run", bytes)
            await log.append(b"x" * 200_000)
            fill(small_disk / "filler")
            with pytest.raises(StoreError):
                await log.append(b"y" * 200_000)
            (small_disk / "filler").unlink()
            for attempt in range(20):
                try:
                    await log.append(b"z" * 200_000, key="z")
                    break
                except StoreError:
                    assert attempt < 19
            found = [event.value[:1] async for event in log.read()]
            assert (found[0], found[-1]) == (b"x", b"z")
            assert server.num_restarts == 1


def fill(path: Path) -> None:
    """Take all the room that is left."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass


async def test_a_blob_that_finds_no_room_is_an_error_and_leaves_no_half_file(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_CACHE_DIR", str(small_disk / "cache"))
    async with Node() as node:
        small = await node.blobs.put(b"y" * 1_000_000)
        files = names(small_disk)
        with pytest.raises(BlobNoRoom):
            await node.blobs.put(b"x" * 9_000_000)
        assert names(small_disk) == files
        assert b"".join([piece async for piece in node.blobs.read(small)]) == b"y" * 1_000_000
        await node.blobs.put(b"z" * 1_000_000)


def names(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


WRITER = """
import sys, anyio
from callboard import EventLog, Node
from callboard.runtime.bus import BusOptions

async def main():
    async with Node(bus=BusOptions(sys.argv[1])) as node:
        log = await EventLog.open(node, "run", int)
        while True:
            n = log.last
            done = await log.append(n, n, n)
            print(done.last, flush=True)

anyio.run(main)
"""


async def test_kill_9_of_a_writer_loses_no_acknowledged_event_and_leaves_no_half_append(tmp_path: Path) -> None:
    with own_server(tmp_path, "--jetstream", "--store_dir", str(tmp_path / "js")) as server:
        async with Node(bus=BusOptions(server.url)) as node:
            acknowledged = 0
            for kill in range(4):
                writer = subprocess.Popen([sys.executable, "-c", WRITER, server.url], stdout=subprocess.PIPE, text=True)
                assert writer.stdout is not None
                for _ in range(20 + kill):
                    acknowledged = int(writer.stdout.readline())
                writer.send_signal(signal.SIGKILL)
                for line in writer.communicate()[0].splitlines(keepends=True):
                    acknowledged = int(line) if line.endswith("\n") else acknowledged
                log = await EventLog.open(node, "run", int)
                events = [event async for event in log.read()]
                assert [event.number for event in events] == list(range(1, len(events) + 1))
                assert acknowledged <= len(events) <= acknowledged + 3
                assert [event.value for event in events] == [n - n % 3 for n in range(len(events))]


async def test_an_append_and_a_save_whose_answer_was_lost_are_there_once(tmp_path: Path) -> None:
    """The write arrives, its answer does not, the connection is cut, and it is sent again."""
    with own_server(tmp_path, "--jetstream", "--store_dir", str(tmp_path / "js")) as server:
        async with (
            proxy_to(server.url) as proxy,
            Node("far", bus=BusOptions(proxy.url, node_id="far")) as far,
            Node("near", bus=BusOptions(server.url, node_id="near")) as near,
        ):
            log = await EventLog.open(far, "run", int, own=True)
            account, snapshots = Account(), store.Snapshots(far.jetstream, "a", Account, 30.0)
            await snapshots.recover(account, Ledger)
            for n in range(1, 4):
                for write in (lambda n=n: log.append(n), lambda: snapshots.save(account)):
                    before = await written(near)
                    proxy.stall_answers()
                    async with anyio.create_task_group() as group:
                        group.start_soon(write)
                        while await written(near) == before:
                            await anyio.lowlevel.checkpoint()
                        proxy.cut()
                        proxy.flow()
                    assert await written(near) == before + 1
            assert [event.value async for event in log.read()] == [1, 2, 3]


async def written(node: Node) -> int:
    """The sum of the last sequences of both streams: how much was ever written."""
    last = 0
    for stream, subject in ((store.STREAM, f"{store.SUBJECTS}a"), (event_log.STREAM, f"{event_log.SUBJECTS}run")):
        found = await node.jetstream.last(stream, subject)
        last += found.seq if found else 0
    return last


async def test_a_write_that_the_network_repeats_is_there_once(tmp_path: Path) -> None:
    """Each write says at which sequence its subject must be, which is so once."""
    with own_server(tmp_path, "--jetstream", "--store_dir", str(tmp_path / "js")) as server:
        async with Node(bus=BusOptions(server.url)) as node:
            log = await EventLog.open(node, "run", int)
            jetstream, sent = node.jetstream, node.jetstream.send

            async def twice(subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
                for _ in range(2 if headers else 1):
                    await sent(subject, data, reply, headers)

            jetstream.send = twice
            account, snapshots = Account(), store.Snapshots(jetstream, "a", Account, 30.0)
            await snapshots.recover(account, Ledger)
            for n in range(20):
                await log.append(n, key=f"key-{n}")
                await snapshots.save(account)
            assert [event.value async for event in log.read()] == list(range(20))
            assert await written(node) == 20 + 21
