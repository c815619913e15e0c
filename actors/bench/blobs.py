"""Large values beside what bounds them: copying memory, hashing it, and chunks published to JetStream by themselves.

The server syncs every write, as the embedded one does. A figure covers the put, the message with the reference, and the
read and check of all bytes in another process; the page cache holds the files, as it does in use.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from nats.aio.client import Client
from nats.aio.msg import Msg

from ...runtime.actor import Actor, NoConfig, handler
from ...runtime.bus import BusOptions
from ...runtime.node import Node
from ...schemas.bench import Read, ReadBlob
from . import processes
from .loops import new_event_loop
from .report import Report

SIZE = 64 << 20
MB = 1e6
UNIT = "MB/s"
CHUNK = 512 * 1024
IN_FLIGHT = 16
TIMEOUT_S = 60.0


class BlobReader(Actor[NoConfig]):
    """Reads what a blob refers to."""

    @handler
    async def read_blob(self, message: ReadBlob) -> Read:
        if message.mapped:
            async with self.blobs.open(message.blob) as view:
                return Read(len(view))
        return Read(sum([len(piece) async for piece in self.blobs.read(message.blob)]))


def measure(report: Report, loop: str, rounds: int, step: Callable[[str], None]) -> None:
    """Add the figures of blobs, their floors, and the targets."""
    data = os.urandom(SIZE)
    with tempfile.TemporaryDirectory(prefix="callboard-bench-") as base:
        config = Path(base, "nats-server.conf")
        config.write_text(f"jetstream {{ store_dir: {json.dumps(f'{base}/jetstream')}, sync_interval: always }}\n")
        near, far = f"{base}/near", f"{base}/far"
        with processes.nats_server(str(config)) as url:
            with processes.other_side("blobs", loop, url, near), processes.other_side("blobs", loop, url, far):
                with asyncio.Runner(loop_factory=new_event_loop(loop)) as runner:
                    figures = runner.run(_measure(url, data, Path(near), rounds, step))
    for name, goal in (("blob_64mib_mb_per_s", 300), ("blob_store_mb_per_s", 100)):
        report.add_target(name, goal, UNIT, figures.pop(name))
    for name, rates in figures.items():
        report.add(name, rates, UNIT)


async def _measure(
    url: str, data: bytes, near: Path, rounds: int, step: Callable[[str], None]
) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {}
    client = Client()
    await client.connect(url)
    await client.jetstream().add_stream(name="floor", subjects=["floor"], discard="old", max_bytes=2 * SIZE)
    async with Node("bench-putter", bus=BusOptions(url), blobs=near) as node:

        async def through(reader: str, mapped: bool) -> None:
            blob = await node.blobs.put(data)
            found = await node.actor(reader).ask(ReadBlob(blob, mapped), TIMEOUT_S)
            await node.blobs.release(blob)
            if found.size != SIZE:
                raise RuntimeError(f"{SIZE - found.size} of {SIZE} bytes were lost")

        work: dict[str, Callable[[], Awaitable[object]]] = {
            "blob_64mib.memcpy": lambda: asyncio.to_thread(bytearray, data),
            "blob_64mib.sha256": lambda: asyncio.to_thread(hashlib.sha256, data),
            "blob_64mib_mb_per_s": lambda: through("reader-near", True),
            "blob_store.raw_publish": lambda: _publish_raw(client, data),
            "blob_store_mb_per_s": lambda: through("reader-far", False),
        }
        for number in range(rounds):
            for name, call in work.items():
                step(f"{name}, round {number + 1} of {rounds}")
                began = time.perf_counter()
                await call()
                figures.setdefault(name, []).append(SIZE / MB / (time.perf_counter() - began))
    await client.close()
    return figures


async def _publish_raw(client: Client, data: bytes) -> None:
    """The least that an upload can be: synced chunks, so many unacknowledged, and no reader."""
    room, acks, inbox = asyncio.Semaphore(IN_FLIGHT), 0, client.new_inbox()
    everything = asyncio.Event()

    async def take(message: Msg) -> None:
        nonlocal acks
        acks += 1
        room.release()
        if acks == SIZE // CHUNK:
            everything.set()

    subscription = await client.subscribe(inbox, cb=take)
    for start in range(0, SIZE, CHUNK):
        await room.acquire()
        await client.publish("floor", data[start : start + CHUNK], inbox)
    await everything.wait()
    await subscription.unsubscribe()
