"""JetStream over a node's connection: streams, synced writes with an expected sequence, reads by sequence.

It speaks the protocol itself. nats-py's own JetStream client waits out its timeout when the connection breaks, reads
one message for each request, and its fetch of several stalls; here a lost connection ends every wait at once, and a
write whose answer was lost is told apart from one that was refused.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import msgspec
import nats.errors
from nats.aio.msg import Msg

from .bus import Bus
from .errors import CallboardError, Disconnected, Forbidden, NoStore, StoreError, StoreFull, StoreUnavailable, TooLarge

# A synced write takes milliseconds; a server that is silent for so long is taken for stuck, and asked again.
ATTEMPT_S = 5.0
# Between two attempts at a server that refuses for now: it has just started, say.
RETRY_S = 0.1
# For so long after a start a server may say that it has no JetStream yet.
STARTING_S = 2.0
READ_BATCH = 256
# The most that one batch of a read brings, so that a reader's memory is bounded.
READ_BYTES = 4 << 20

EXPECTED = "Nats-Expected-Last-Subject-Sequence"

_NO_JETSTREAM = {10039, 10076}
_NO_ROOM = {10023, 10028, 10047, 10077}
_WRONG_SEQUENCE = {10071, 10164}
_NAME_IN_USE = 10058
NOT_FOUND = {10014, 10037, 10059}


class WrongSequence(StoreError):
    """The subject's last message is not the expected one: somebody wrote meanwhile. For the modules of the runtime."""


class Refused(StoreError):
    """Any other answer of the JetStream API that says no; `number` is its own code."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Stored(NamedTuple):
    """A message as it is kept. `at` is the server's time of writing, RFC 3339."""

    seq: int
    subject: str
    data: bytes
    at: str


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct):
    error: _Error | None = None
    seq: int = 0


_read_answer = msgspec.json.Decoder(_Answer).decode


class Talk:
    """What comes back for one request: messages in a queue, or the end of the connection."""

    def __init__(self, number: str) -> None:
        self.subject = ""
        self.reply = number
        self._got: asyncio.Queue[Msg | CallboardError] = asyncio.Queue()

    def put(self, what: Msg | CallboardError) -> None:
        self._got.put_nowait(what)

    async def next(self, seconds: float) -> Msg:
        """Raises Disconnected, Forbidden, TimeoutError."""
        async with asyncio.timeout(seconds):
            got = await self._got.get()
        if isinstance(got, CallboardError):
            raise got
        return got


class JetStream:
    """`patience` (seconds) bounds every call: within it, one that may be repeated is, also while the server is away.

    Errors of all calls: NoStore, StoreUnavailable when the patience is over, StoreFull, Forbidden.
    """

    def __init__(self, bus: Bus, inbox: str, patience: float) -> None:
        self._bus = bus
        self._prefix = f"inbox.{inbox}.js-{secrets.token_hex(4)}."
        self.patience = patience
        self._numbers = itertools.count(1)
        self._talks: dict[str, Talk] = {}
        self._listening: asyncio.Task[None] | None = None
        self._made: set[str] = set()

    @property
    def max_payload(self) -> int:
        return self._bus.max_payload

    # Talking

    @contextlib.asynccontextmanager
    async def pull(self, subject: str, data: bytes) -> AsyncIterator[Talk]:
        """A talk with a subscription of its own: a consumer's messages come under the subject they were written to."""
        await self._bus.up()
        talk = Talk(f"{self._prefix}pull.{next(self._numbers)}")

        async def on_message(message: Msg) -> None:
            talk.put(message)

        subscription = await self._bus.client.subscribe(talk.reply, cb=on_message)
        self._talks[talk.reply] = talk
        try:
            await self.say(talk, subject, data)
            yield talk
        finally:
            del self._talks[talk.reply]
            await self._bus.unsubscribe(subscription)

    @contextlib.asynccontextmanager
    async def talk(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> AsyncIterator[Talk]:
        """Send a request and hear what comes back, in order. Waits for the server to be there."""
        if self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen())
        if not self._listening.done():
            await asyncio.shield(self._listening)
        if not self._bus.is_up:
            await self._bus.up()
        talk = Talk(f"{self._prefix}{next(self._numbers)}")
        self._talks[talk.reply] = talk
        try:
            await self.say(talk, subject, data, headers)
            yield talk
        finally:
            del self._talks[talk.reply]

    async def say(self, talk: Talk, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        """One more message whose answers come to the same talk."""
        talk.subject = subject
        await self.send(subject, data, talk.reply, headers)

    async def send(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        try:
            await self._bus.client.publish(subject, data, reply, headers=headers)
        except nats.errors.MaxPayloadError as error:
            raise TooLarge(
                f"{len(data)} bytes are over the bus's limit of {self.max_payload}",
                hint="keep large values elsewhere and a reference to them here",
            ) from error
        except (nats.errors.Error, OSError) as error:
            raise Disconnected("the connection broke") from error

    async def _listen(self) -> None:
        self._bus.on_lost.append(lambda: self._fail(lambda _: True, Disconnected("the connection broke")))
        self._bus.on_denied.append(
            lambda subject: self._fail(
                lambda talk: talk.subject.lower() == subject,
                Forbidden(f"this user may not use {subject}", hint="it needs a role that may keep durable state"),
            )
        )
        await self._bus.client.subscribe(f"{self._prefix}*", cb=self._on_message)

    async def _on_message(self, message: Msg) -> None:
        talk = self._talks.get(message.subject)
        if talk is not None:
            talk.put(message)

    def _fail(self, which: Callable[[Talk], bool], error: CallboardError) -> None:
        for talk in tuple(self._talks.values()):
            if which(talk):
                talk.put(error)

    async def once(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> Msg:
        """One request, one answer, one attempt. Raises Disconnected and TimeoutError for none, NoStore for nobody."""
        async with self.talk(subject, data, headers) as talk:
            answer = await talk.next(ATTEMPT_S)
        if is_status(answer, "503"):
            raise NoStore("the server at hand has no JetStream")
        return answer

    async def repeated(self, subject: str, data: bytes) -> Msg:
        """`once`, again and again until there is an answer: for what may be carried out twice."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    try:
                        return await self.once(subject, data)
                    except (Disconnected, TimeoutError):
                        continue
                    except NoStore:
                        if loop.time() - began > STARTING_S:
                            raise
                    await asyncio.sleep(RETRY_S)  # the server says nothing when its JetStream has started
        except TimeoutError:
            raise StoreUnavailable(f"the server did not answer within {self.patience:g} s") from None

    async def api(self, name: str, request: Any = None) -> bytes:
        """A call of the JetStream API that does no harm when it is repeated. Raises Refused for a no."""
        answer = await self.repeated(f"$JS.API.{name}", b"" if request is None else msgspec.json.encode(request))
        checked(answer.data)
        return answer.data

    # Streams

    async def ensure(self, config: dict[str, Any]) -> None:
        """Make a stream unless it is there. One that is there stays as it is, whatever its settings."""
        name = config["name"]
        if name in self._made:
            return
        try:
            await self.api(f"STREAM.CREATE.{name}", config)
        except Refused as error:
            if error.number != _NAME_IN_USE:
                raise
        self._made.add(name)

    async def publish(self, stream: dict[str, Any], subject: str, data: bytes, expected: int) -> int:
        """Write, synced, if the subject's last sequence is still `expected`; returns the new one. One attempt.

        Raises WrongSequence, StoreFull, TooLarge: not written. Disconnected, TimeoutError: it may have been.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                answer = await self.once(subject, data, {EXPECTED: str(expected)})
            except NoStore:
                # Nobody took it: the stream has gone, or the server is just starting.
                if loop.time() - began > STARTING_S:
                    raise
                self._made.discard(stream["name"])
                await self.ensure(stream)
                await asyncio.sleep(RETRY_S)  # as above
                continue
            return checked(answer.data).seq

    # Reading

    async def last(self, stream: str, subject: str) -> Stored | None:
        """The last message of a subject, from the stream's leader."""
        return await self._get(stream, {"last_by_subj": subject})

    async def first(self, stream: str, subject: str, seq: int = 1) -> Stored | None:
        """The first message of a subject at or after `seq`."""
        return await self._get(stream, {"seq": seq, "next_by_subj": subject})

    async def _get(self, stream: str, request: dict[str, Any]) -> Stored | None:
        try:
            found = msgspec.json.decode(await self.api(f"STREAM.MSG.GET.{stream}", request))["message"]
        except Refused as error:
            if error.number in NOT_FOUND:
                return None
            raise
        return Stored(found["seq"], found["subject"], base64.b64decode(found.get("data", "")), found["time"])

    async def read(self, stream: str, subject: str, seq: int) -> list[Stored]:
        """The next messages of a subject from `seq` on, at most `READ_BATCH`; none when there are none yet."""
        request = {"seq": seq, "batch": READ_BATCH, "max_bytes": READ_BYTES, "next_by_subj": subject}
        data = msgspec.json.encode(request)
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    try:
                        return await self._read_batch(f"$JS.API.DIRECT.GET.{stream}", data)
                    except (Disconnected, TimeoutError):
                        continue
        except TimeoutError:
            raise StoreUnavailable(f"the server did not answer within {self.patience:g} s") from None

    async def _read_batch(self, api: str, data: bytes) -> list[Stored]:
        found: list[Stored] = []
        async with self.talk(api, data) as talk:
            while True:
                message = await talk.next(ATTEMPT_S)
                headers = message.headers or {}
                if "Nats-Sequence" not in headers:
                    if headers.get("Status") in ("204", "404"):
                        return found
                    raise NoStore(f"the server cannot read back what it keeps: {headers.get('Description') or headers}")
                at = headers["Nats-Time-Stamp"]
                found.append(Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], message.data, at))

    # Removing

    async def purge(self, stream: str, subject: str, before: int = 0) -> None:
        """Remove a subject's messages, or those before a sequence."""
        await self.api(f"STREAM.PURGE.{stream}", {"filter": subject, **({"seq": before} if before else {})})

    async def subjects(self, stream: str, pattern: str) -> dict[str, int]:
        """The subjects that hold something, with how many messages each."""
        found: dict[str, int] = {}
        while True:
            try:
                answer = await self.api(f"STREAM.INFO.{stream}", {"subjects_filter": pattern, "offset": len(found)})
            except Refused as error:
                if error.number in NOT_FOUND:
                    return {}
                raise
            page = msgspec.json.decode(answer)
            found |= page["state"].get("subjects") or {}
            if len(found) >= page.get("total", 0):
                return found


def is_status(message: Msg, status: str) -> bool:
    return message.headers is not None and message.headers.get("Status") == status


def checked(data: bytes) -> _Answer:
    """The answer of the API, or the error that it is."""
    answer = _read_answer(data)
    error = answer.error
    if error is None:
        return answer
    words = error.description
    if error.err_code in _WRONG_SEQUENCE:
        raise WrongSequence(words)
    if error.err_code in _NO_ROOM or "no space left" in words:
        raise StoreFull(f"the store has no room: {words}")
    if error.err_code in _NO_JETSTREAM:
        raise NoStore(f"the server at hand has no JetStream: {words}")
    raise Refused(f"JetStream: {words}", error.err_code)
