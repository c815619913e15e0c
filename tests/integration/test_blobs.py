"""Large values by reference: inline, as a file on one host, through the object store between two, and messages over
the bus's limit that take a detour. Two nodes with different folders are two hosts to each other."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import anyio
import nats
import pytest
from company import LIVING, Bulk, BulkItems, Clerk, ClerkConfig, GetNotes, Note
from own_server import own_server

from callboard.runtime import blob_files, object_store
from callboard.runtime.blob_files import sweep
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import BlobDamaged, BlobGone, BlobNoRoom, NoBlobStore, TooLarge
from callboard.runtime.node import Node
from callboard.runtime.processes import dying_with_us
from callboard.schemas.blob import Blob

pytestmark = pytest.mark.anyio

MIB = 1 << 20


class NatsServer(Protocol):
    url: str


Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


def files(base: Path) -> list[Path]:
    """The blobs, whole or not, that lie in the folder."""
    return [path for path in base.rglob("*") if path.is_file() and path.name != "lock"]


@asynccontextmanager
async def two_hosts(url: str, base: Path) -> AsyncIterator[tuple[Node, Node]]:
    async with (
        Node("here", bus=BusOptions(url), blobs=base / "a") as here,
        Node("there", bus=BusOptions(url), blobs=base / "b") as there,
    ):
        yield here, there


async def stored(url: str) -> int:
    """How many messages the object store's stream has."""
    client = await nats.connect(url)
    try:
        return (await client.jetstream().stream_info(f"OBJ_{object_store.BUCKET}")).state.messages
    finally:
        await client.close()


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


# One host


async def test_a_small_blob_is_in_the_reference_itself(base: Path) -> None:
    async with Node(blobs=base) as node:
        blob = await node.blobs.put(b"small")
        assert blob.data == b"small"
        async with node.blobs.open(blob) as view:
            assert view == b"small"
        await node.blobs.hold(blob)
        await node.blobs.release(blob)
        assert await node.blobs.get(blob) == b"small"
    assert not files(base)


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3 * MIB + 1])
async def test_what_is_put_is_read_whole_or_streamed(base: Path, size: int) -> None:
    data = os.urandom(size)
    async with Node("a", blobs=base) as node, Node("b", blobs=base) as other:
        for blob in (await node.blobs.put(data), await node.blobs.put(pieces(data, 1000_003))):
            assert blob.digest == hashlib.sha256(data).hexdigest()
            assert await other.blobs.get(blob) == data
            async with other.blobs.open(blob) as view:
                assert view == data


async def test_the_bytes_go_when_nobody_holds_them(base: Path) -> None:
    async with Node("a", blobs=base) as node, Node("b", blobs=base) as other:
        blob = await node.blobs.put(bytes(MIB))
        await other.blobs.hold(blob)
        await node.blobs.hold(blob)
        await node.blobs.release(blob)
        await node.blobs.release(blob)
        await node.blobs.release(blob)  # once too often: nothing happens
        async with node.blobs.open(blob) as view:  # the other one holds it
            await other.blobs.release(blob)
            assert not files(base)
            assert view == bytes(MIB)  # what is open stays
        with pytest.raises(BlobGone):
            await node.blobs.get(blob)
        with pytest.raises(BlobGone):
            await other.blobs.hold(blob)


async def test_a_blob_goes_with_its_node(base: Path) -> None:
    async with Node(blobs=base) as node:
        await node.blobs.put(bytes(MIB))
        assert files(base)
    assert not files(base)


async def test_a_blob_past_its_time_is_gone_and_swept(base: Path, eventually: Eventually) -> None:
    async with Node("a", blobs=base) as node, Node("b", blobs=base) as other:
        blob = await node.blobs.put(bytes(MIB), ttl=0.05)
        kept = await node.blobs.put(bytes(MIB), ttl=0.05)
        await other.blobs.hold(kept, ttl=60)
        until = time.time() + 0.1
        await eventually(lambda: time.time() > until)
        with pytest.raises(BlobGone):
            await other.blobs.get(blob)
        await other.blobs.sweep()
        assert len({path.stat().st_ino for path in files(base)}) == 1
        assert await node.blobs.get(kept) == bytes(MIB)


def tamper(path: Path, data: bytes) -> None:
    """Other bytes in a blob's place, at once: written in place they would for a moment be of a time that has passed,
    and swept."""
    other = path.parent.parent / "tampered"
    other.write_bytes(data)
    os.utime(other, (blob_files.NEVER, blob_files.NEVER))
    other.replace(path)


async def test_a_tampered_blob_is_found_damaged(base: Path) -> None:
    async with Node(blobs=base) as node:
        blob = await node.blobs.put(bytes(MIB))
        (path,) = files(base)
        tamper(path, bytes(MIB // 2) + b"x" + bytes(MIB // 2 - 1))
        with pytest.raises(BlobDamaged):
            await node.blobs.get(blob)
        with pytest.raises(BlobDamaged):
            async with node.blobs.open(blob):
                pass
        tamper(path, bytes(10))
        with pytest.raises(BlobDamaged):
            await node.blobs.get(blob)
        inline = await node.blobs.put(b"small")
        with pytest.raises(BlobDamaged):
            await node.blobs.get(Blob(inline.digest, 5, data=b"smell"))


async def test_a_put_that_fails_leaves_nothing(base: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(3 * MIB)
        raise ZeroDivisionError

    async with Node(blobs=base) as node:
        with pytest.raises(ZeroDivisionError):
            await node.blobs.put(broken())
        assert (files(base), node.blobs.held) == ([], 0)


async def test_a_full_disk_is_an_error_and_leaves_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    async with Node(blobs=base) as node:
        with monkeypatch.context() as patch:
            patch.setattr(blob_files.os, "write", full)
            with pytest.raises(BlobNoRoom, match="No space left"):
                await node.blobs.put(bytes(MIB))
        assert files(base) == []


# Killed processes

WRITER = """
import sys, anyio
from pathlib import Path
from callboard import Node
async def endless():
    while True:
        yield bytes(1 << 20)
async def main():
    async with Node(blobs=Path(sys.argv[1])) as node:
        blob = await node.blobs.put(bytes(1 << 20))
        print(blob.id, blob.lease, blob.digest, flush=True)
        async def slow():
            yield bytes(4 << 20)
            print("writing", flush=True)
            await anyio.sleep_forever()
        await node.blobs.put(slow())
anyio.run(main)
"""


async def test_what_a_killed_writer_leaves_is_swept_but_not_what_others_hold(
    base: Path, eventually: Eventually
) -> None:
    async with Node("a", blobs=base) as node:
        command = dying_with_us([sys.executable, "-c", WRITER, str(base)])
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            blob_id, lease, digest = process.stdout.readline().split()
            assert process.stdout.readline() == "writing\n"
            blob = Blob(digest, MIB, blob_id, lease, "a")
            await node.blobs.hold(blob)
            assert len(files(base)) == 3
            assert sweep(base) == 0
            process.send_signal(signal.SIGKILL)
        await node.blobs.sweep()
        await eventually(lambda: len(files(base)) == 1)  # the node's own sweep may be at it just now
        assert await node.blobs.get(blob) == bytes(MIB)
    assert not files(base)


async def test_a_node_that_starts_sweeps_what_a_killed_process_held(
    nats_server: NatsServer, base: Path, eventually: Eventually
) -> None:
    command = dying_with_us([sys.executable, "-c", WRITER, str(base)])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        process.kill()
    assert files(base)
    async with Node("a", bus=BusOptions(nats_server.url), blobs=base):
        await eventually(lambda: not files(base))


# Two hosts


async def test_a_blob_of_another_host_comes_through_the_object_store(nats_server: NatsServer, base: Path) -> None:
    data = os.urandom(5 * MIB + 17)
    async with two_hosts(nats_server.url, base) as (here, there):
        blob = await here.blobs.put(data)
        assert await there.blobs.get(blob) == data
        assert b"".join([piece async for piece in there.blobs.read(blob, 100_000)]) == data
        async with there.blobs.open(blob) as view:
            assert view == data
        assert not files(base / "b")
        await there.blobs.hold(blob)
        await here.blobs.release(blob)
        assert not files(base / "a")
        assert await there.blobs.get(blob) == data
        assert await stored(nats_server.url) == 0
        await there.blobs.release(blob)
        with pytest.raises(BlobGone):
            await there.blobs.get(blob)


async def test_a_blob_of_a_node_that_left_is_gone(nats_server: NatsServer, base: Path) -> None:
    async with Node("there", bus=BusOptions(nats_server.url), blobs=base / "b") as there:
        async with Node("here", bus=BusOptions(nats_server.url), blobs=base / "a") as here:
            blob = await here.blobs.put(bytes(MIB))
        with pytest.raises(BlobGone):
            await there.blobs.get(blob)
        with pytest.raises(BlobGone):
            await there.blobs.hold(blob)
        assert not files(base)


async def test_who_adopts_a_blob_is_asked_for_it_from_elsewhere(nats_server: NatsServer, base: Path) -> None:
    data = os.urandom(2 * MIB)
    async with two_hosts(nats_server.url, base) as (here, there):
        async with Node("maker", bus=BusOptions(nats_server.url), blobs=base / "a") as maker:
            made = await maker.blobs.put(data)
            own = await here.blobs.adopt(made)
            assert (own.owner, own.id, own.digest) == ("here", made.id, made.digest)
            assert len(files(base)) == 2  # two links to the same bytes
        with pytest.raises(BlobGone):
            await there.blobs.get(made)
        assert await there.blobs.get(own) == await here.blobs.get(own) == data
        await here.blobs.release(own)
        assert files(base) == []
        small = await here.blobs.put(b"x")
        assert await there.blobs.adopt(small) == small


async def test_an_object_that_was_changed_in_the_store_is_found_damaged(nats_server: NatsServer, base: Path) -> None:
    async with two_hosts(nats_server.url, base) as (here, there):
        blob = await here.blobs.put(bytes(MIB))
        await here.blobs.share(blob.id)
        lie = os.urandom(MIB)
        store = object_store.ObjectStore(here.require_links().bus)
        await store.write(blob.id, MIB, pieces(lie, MIB), 60)
        with pytest.raises(BlobDamaged):
            await there.blobs.get(blob)
        with pytest.raises(BlobDamaged):
            await there.blobs.hold(blob)
        assert not files(base / "b")


async def test_an_object_goes_from_the_store_by_itself(nats_server: NatsServer, base: Path) -> None:
    async with two_hosts(nats_server.url, base) as (here, _):
        store = object_store.ObjectStore(here.require_links().bus)
        before = await stored(nats_server.url)
        await store.write("0" * 32, MIB, pieces(bytes(MIB), MIB), 1)
        while await stored(nats_server.url) > before:
            await anyio.sleep(0.1)
        with pytest.raises(BlobGone):
            await anext(store.read("0" * 32))


# Messages over the limit


async def big_messages_pass(url: str, base: Path, far: bool, eventually: Eventually) -> None:
    """Plain messages, a request, an answer and an item of 16 MiB, in their order, with nothing left behind."""
    big = "x" * (16 * MIB)
    options = BusOptions(url)
    async with (
        Node("home", bus=options, blobs=base / "a") as home,
        Node("away", bus=options, blobs=base / ("b" if far else "a")) as away,
    ):
        await home.spawn(Clerk, ClerkConfig("clerk"), name="clerk")
        clerk = away.actor("clerk")
        for text in ("first", big, "last", big):
            await clerk.tell(Note(text))
        notes = await clerk.ask(GetNotes(), timeout=20)
        assert notes.texts == ("first", big, "last", big)
        assert LIVING["clerk"].noted == ["first", big, "last", big]
        assert (await clerk.ask(Bulk(16 * MIB))).texts[0] == big
        async with clerk.stream(BulkItems(16 * MIB)) as items:
            assert [len(item.text) async for item in items] == [16 * MIB]
        with pytest.raises(TooLarge):  # nobody knows who listens, or where
            await away.publish("topic.big", Note(big))
        await eventually(lambda: not files(base) and home.blobs.held == away.blobs.held == 0)


@pytest.mark.parametrize("far", [False, True], ids=["same host", "other host"])
async def test_a_message_of_16_mib_passes_both_ways(
    nats_server: NatsServer, base: Path, far: bool, eventually: Eventually
) -> None:
    await big_messages_pass(nats_server.url, base, far, eventually)


@pytest.mark.parametrize("limit", ["64KB", "8MB"])
async def test_it_does_so_whatever_the_servers_own_limit_is(
    tmp_path: Path, base: Path, limit: str, eventually: Eventually
) -> None:
    config = tmp_path / "nats-server.conf"
    config.write_text(f'max_payload: {limit}\njetstream {{ store_dir: "{tmp_path / "js"}" }}\n')
    with own_server(tmp_path, "--config", str(config)) as server:
        await big_messages_pass(server.url, base, True, eventually)


async def test_without_jetstream_a_message_crosses_one_host_and_no_two(tmp_path: Path, base: Path) -> None:
    big = "x" * (3 * MIB)
    with own_server(tmp_path) as server:
        async with two_hosts(server.url, base) as (here, there):
            await here.spawn(Clerk, ClerkConfig("clerk"), name="clerk")
            blob = await here.blobs.put(bytes(MIB))
            with pytest.raises(NoBlobStore):
                await there.blobs.get(blob)
            with pytest.raises(TooLarge, match="no JetStream"):
                await there.actor("clerk").ask(Bulk(3 * MIB))
            async with Node("near", bus=BusOptions(server.url), blobs=base / "a") as near:
                assert (await near.actor("clerk").ask(Bulk(3 * MIB))).texts[0] == big


async def test_a_message_over_the_bound_is_refused(
    nats_server: NatsServer, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_BLOBS_MAX_MESSAGE", str(2 * MIB))
    async with two_hosts(nats_server.url, base) as (here, there):
        await here.spawn(Clerk, ClerkConfig("clerk"), name="clerk")
        with pytest.raises(TooLarge, match="over the limit of 2097152"):
            await there.actor("clerk").tell(Note("x" * 3 * MIB))
        with pytest.raises(TooLarge, match="over the limit of 2097152"):
            await there.actor("clerk").ask(Bulk(3 * MIB))
        assert not files(base)


async def test_a_large_message_to_nobody_leaves_nothing(
    nats_server: NatsServer, base: Path, eventually: Eventually
) -> None:
    from callboard.runtime.errors import NoSuchActor

    async with two_hosts(nats_server.url, base) as (here, _):
        with pytest.raises(NoSuchActor):
            await here.actor("nobody").ask(Bulk(1), timeout=1.0)
        with pytest.raises(NoSuchActor):
            await here.actor("nobody").tell(Note("x" * 3 * MIB))
        await eventually(lambda: not files(base))


# Constant memory

STREAMER = """
import resource, sys, anyio
from pathlib import Path
from callboard import Node
from callboard.runtime.bus import BusOptions
MIB = 1 << 20
async def data(total):
    for number in range(total):
        yield number.to_bytes(4, "big") * (MIB // 4)
async def main():
    folder, url, total = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    async with (
        Node("mem-a", bus=BusOptions(url), blobs=folder / "a") as a,
        Node("mem-b", bus=BusOptions(url), blobs=folder / "b") as b,
    ):
        await b.blobs.get(await a.blobs.put(bytes(3 * MIB)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        blob = await a.blobs.put(data(total))
        for reader in (a, b):
            size = 0
            async for piece in reader.blobs.read(blob):
                size += len(piece)
            assert size == total * MIB
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
anyio.run(main)
"""


@pytest.mark.parametrize(
    "mib", [128, pytest.param(1024, marks=[pytest.mark.slow, pytest.mark.timeout(170)])], ids=["128 MiB", "1 GiB"]
)
async def test_a_blob_streams_in_constant_memory(nats_server: NatsServer, base: Path, mib: int) -> None:
    command = dying_with_us([sys.executable, "-c", STREAMER, str(base), nats_server.url, str(mib)])
    done = await anyio.run_process(command, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) < 48
