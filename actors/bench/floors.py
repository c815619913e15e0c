"""The floors that our figures are held against: what the same work costs with nothing of ours in it.

`Bare` is an asyncio queue and a future for each ask. `Raw` is nats-py's `request` and `publish` of the same encoded
bytes to a callback subscriber in another process, which `serve_raw` is. Neither checks types, keeps deadlines, bounds
what waits, or restarts anything.
"""

from __future__ import annotations

import asyncio
import time

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from ...schemas.bench import Add, Arrivals, Count, Note, Piece
from .counter import encode, padded, resident_kb

IN_FLIGHT = 64
SUBJECT = "raw.counter"
_FOLLOW = b"follow "

_decode_arrivals = msgspec.msgpack.Decoder(Arrivals).decode


class Bare:
    """The least that can be called an actor."""

    def __init__(self) -> None:
        self.total = 0
        self.queue: asyncio.Queue[tuple[Add | Note, asyncio.Future[int] | None]] = asyncio.Queue()
        self.task = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        queue = self.queue
        while True:
            message, answer = await queue.get()
            self.total += message.amount
            if answer is not None:
                answer.set_result(self.total)

    async def ask_rate(self, count: int) -> float:
        """Asks a second, one at a time."""
        began = time.perf_counter()
        await self._ask(padded(Add()), count)
        return count / (time.perf_counter() - began)

    async def pipelined_rate(self, count: int) -> float:
        """Asks a second with `IN_FLIGHT` under way."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(self._ask(padded(Add()), count // IN_FLIGHT))
        return count / (time.perf_counter() - began)

    async def _ask(self, message: Add | Note, count: int) -> None:
        create_future, put = asyncio.get_running_loop().create_future, self.queue.put_nowait
        for _ in range(count):
            answer = create_future()
            put((message, answer))
            await answer

    async def tell_rate(self, count: int) -> float:
        """Messages a second that nobody answers, until the last is handled."""
        message, put = padded(Note()), self.queue.put_nowait
        began = time.perf_counter()
        for _ in range(count):
            put((message, None))
        await self._ask(message, 1)
        return count / (time.perf_counter() - began)


async def bare_population(count: int) -> tuple[float, float]:
    """Starts a second, and KiB for each of `count` idle ones."""
    before, began = resident_kb(), time.perf_counter()
    actors = [Bare() for _ in range(count)]
    await asyncio.sleep(0)  # each task runs until it waits for its first message
    seconds = time.perf_counter() - began
    kb = (resident_kb() - before) / count
    for actor in actors:
        actor.task.cancel()
    return count / seconds, kb


class Raw:
    """The requester's side."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._message = encode(padded(Add()))
        self._note = encode(padded(Note()))

    async def ask_seconds(self, count: int) -> list[float]:
        """How long each of `count` requests took, one at a time."""
        client, message, clock = self._client, self._message, time.perf_counter
        taken: list[float] = []
        for _ in range(count):
            began = clock()
            await client.request(SUBJECT, message, timeout=5)
            taken.append(clock() - began)
        return taken

    async def pipelined_rate(self, count: int) -> float:
        async def ask() -> None:
            for _ in range(count // IN_FLIGHT):
                await self._client.request(SUBJECT, self._message, timeout=5)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(ask())
        return count / (time.perf_counter() - began)

    async def tell_rate(self, count: int) -> float:
        """Messages a second, from the first publish to the last arrival, by one clock."""
        publish, note = self._client.publish, self._note
        before = _decode_arrivals((await self._client.request(SUBJECT, note, timeout=5)).data)
        began = time.monotonic()
        for _ in range(count):
            await publish(SUBJECT, note)
        after = _decode_arrivals((await self._client.request(SUBJECT, note, timeout=60)).data)
        arrived = after.count - before.count - 1
        if arrived != count:
            raise RuntimeError(f"{count - arrived} of {count} raw messages were lost")
        return count / (after.at - began)

    async def stream_rate(self, count: int) -> float:
        """Frames a second that come back for one request."""
        done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        received = 0

        async def on_frame(_: Msg) -> None:
            nonlocal received
            received += 1
            if received == count:
                done.set_result(time.perf_counter())

        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, cb=on_frame)
        began = time.perf_counter()
        await self._client.publish(SUBJECT, _FOLLOW + str(count).encode(), reply=inbox)
        async with asyncio.timeout(60):
            ended = await done
        await subscription.unsubscribe()
        return count / (ended - began)


async def serve_raw(client: Client) -> None:
    """The other process: a callback that counts and answers. A note that wants an answer asks for a report."""
    total = 0
    note, piece = encode(padded(Note())), encode(padded(Piece(0)))

    async def on_message(message: Msg) -> None:
        nonlocal total
        total += 1
        reply = message.reply
        if not reply:
            return
        if message.data == note:
            await client.publish(reply, encode(Arrivals(total, time.monotonic())))
        elif message.data.startswith(_FOLLOW):
            for _ in range(int(message.data.removeprefix(_FOLLOW))):
                await client.publish(reply, piece)
        else:
            await client.publish(reply, encode(Count(total)))

    await client.subscribe(SUBJECT, cb=on_message)
