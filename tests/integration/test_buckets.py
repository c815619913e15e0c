"""Buckets: values that all on the bus share, that nobody overwrites unseen, and that go by themselves."""

from __future__ import annotations

import anyio
import pytest
from own_server import OwnServer

from callboard.runtime.buckets import Bucket
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import ConfigError, Conflict, NoStore, TooLarge
from callboard.runtime.node import Node

pytestmark = pytest.mark.anyio


async def test_a_value_is_shared_and_never_overwritten_unseen(node: Node, server: OwnServer) -> None:
    bucket = await Bucket.open(node, "shelf", ttl_s=60, max_bytes=1 << 20)
    assert await bucket.get("a") is None
    first = await bucket.put("a", b"one")
    async with Node(bus=BusOptions(server.url)) as other:
        there = await Bucket.open(other, "shelf", ttl_s=60, max_bytes=1 << 20)
        assert await there.get("a") == (b"one", first)
        second = await there.put("a", b"two", first)
    for revision in (0, first):
        with pytest.raises(Conflict):
            await bucket.put("a", b"three", revision)
    assert await bucket.get("a") == (b"two", second)
    await bucket.delete("a")
    await bucket.delete("a")
    assert await bucket.get("a") is None
    assert await bucket.put("a", b"again") > second


async def test_values_outlive_the_server_and_a_write_waits_for_it(node: Node, server: OwnServer) -> None:
    bucket = await Bucket.open(node, "shelf", ttl_s=60, max_bytes=1 << 20)
    revision = await bucket.put("a", b"one")
    server.kill()
    written: list[int] = []
    async with anyio.create_task_group() as tasks:

        async def write() -> None:
            written.append(await bucket.put("a", b"two", revision))

        tasks.start_soon(write)
        server.start()
    assert await bucket.get("a") == (b"two", written[0])


async def test_the_oldest_go_where_there_is_no_room(node: Node) -> None:
    bucket = await Bucket.open(node, "shelf", ttl_s=60, max_bytes=64 << 10)
    for number in range(40):
        await bucket.put(f"v{number}", bytes(4 << 10))
    assert await bucket.get("v0") is None
    assert await bucket.get("v39") is not None
    with pytest.raises(TooLarge):
        await bucket.put("large", bytes(bucket.room + 1))


async def test_the_last_who_opens_it_decides_how_long_values_stay(node: Node) -> None:
    bucket = await Bucket.open(node, "shelf", ttl_s=60, max_bytes=1 << 20)
    await bucket.put("a", b"one")
    await Bucket.open(node, "shelf", ttl_s=1, max_bytes=1 << 20)
    with anyio.fail_after(15):
        while await bucket.get("a") is not None:
            await anyio.sleep(0.05)  # the server says nothing when a value goes


async def test_names_that_are_none_are_refused(node: Node) -> None:
    with pytest.raises(ConfigError):
        await Bucket.open(node, "a.b", ttl_s=60, max_bytes=1)
    bucket = await Bucket.open(node, "shelf", ttl_s=60, max_bytes=1 << 20)
    for name in ("", "a.b", "*", ">", "a b"):
        with pytest.raises(ConfigError):
            await bucket.get(name)


async def test_a_node_that_is_alone_has_no_bucket() -> None:
    async with Node() as alone:
        with pytest.raises(NoStore, match="alone"):
            await Bucket.open(alone, "shelf", ttl_s=60, max_bytes=1)
