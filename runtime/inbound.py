"""Requests that come to this node over the bus, and the frames that answer them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from ..schemas.base import ErrorInfo, Message
from ..schemas.wire import Envelope, Frame, Mark, Op
from .batches import Batch
from .cell import Cell
from .channels import Ledger
from .deliveries import Answered, Delivery, Told
from .detours import MARK, Passage
from .discovery import answer_discovery
from .errors import (
    CallboardError,
    Cancelled,
    Disconnected,
    HandlerFailed,
    MailboxFull,
    Malformed,
    NoSuchActor,
    NotUnderstood,
    SlowConsumer,
    TooLarge,
)
from .messages import UNDECODABLE, tag_of
from .tracing import Trace, mark_of

if TYPE_CHECKING:
    from .links import Links
    from .node import Node

# A reader that is alive but takes nothing for so long loses its stream.
STALL_LIMIT_S = 60.0
# What a frame adds to an item, at most.
FRAME_ROOM = 64
# An error must fit in a message whatever an exception has to say.
MAX_ERROR_CHARS = 32_768

_BY_REFERENCE = "send large values as a reference, not inside the message"

_TELL, _ASK, _STREAM, _CANCEL, _CREDIT = (int(o) for o in (Op.TELL, Op.ASK, Op.STREAM, Op.CANCEL, Op.CREDIT))
_ITEM = int(Mark.ITEM)
_OK = int(Mark.OK)

_encode = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode
_any_envelope = msgspec.msgpack.Decoder(Envelope[Any])
_any_json = msgspec.json.Decoder(dict[str, Any])


class BusAsk(Answered):
    """An ask from elsewhere; the answer goes to its reply subject, in JSON if it came in JSON."""

    def __init__(self, message: Message, sender: str, inbound: Inbound, reply: str, json: bool) -> None:
        super().__init__(message, sender)
        self.inbound = inbound
        self.reply = reply
        self.json = json

    def resolve(self, value: Any) -> None:
        if not self.abandoned:
            try:
                data = _encode_json(value) if self.json else _encode(Frame(_OK, 0, value))
            except (TypeError, ValueError, OverflowError) as error:
                self.fail(_unfit(self, value, error))
                return
            self.inbound.answer(self.reply, data, self.json)
        self.inbound.over(self)

    def fail(self, error: CallboardError) -> None:
        if not self.abandoned:
            self.inbound.refuse(self.reply, error.to_info(), self.json)
        self.inbound.over(self)

    def expire(self) -> None:
        """The sender has stopped waiting by itself; the handler need not go on."""
        self.abandon()
        self.inbound.over(self)


class BusStream(BusAsk):
    """A stream to a reader elsewhere. JSON readers hold no credit: they get all as it comes."""

    wants_items: ClassVar[bool] = True

    def __init__(
        self, message: Message, sender: str, inbound: Inbound, reply: str, json: bool, credit: int, own: str
    ) -> None:
        super().__init__(message, sender, inbound, reply, json)
        self.own = own
        self.credit = credit
        self.seq = 0
        self.last_credit = inbound.node.loop.time()
        self._batch = Batch(inbound.node.loop, self._send_batch, inbound.links.bus.max_payload // 2)
        self._room: asyncio.Future[None] | None = None
        self._passages: list[Passage] = []

    async def send(self, item: Any) -> None:
        bus = self.inbound.links.bus
        data = _encode_json(item) if self.json else _encode(item)
        too_large = len(data) > bus.max_payload - FRAME_ROOM
        if too_large and self.json:
            raise TooLarge(
                f"an item of {len(data)} bytes is over the bus's limit of {bus.max_payload}", hint=_BY_REFERENCE
            )
        while self.credit <= 0 and not self.json and not self.abandoned:
            self._room = self.inbound.node.loop.create_future()
            await self._room
        if self.abandoned:  # and the handler took no notice of being cancelled
            raise Cancelled("nobody reads the stream any more")
        if self.json:
            bus.send(self.reply, data, self.own)
            if bus.is_full:
                await bus.room(self.inbound.node.ask_timeout)
            return
        self.credit -= 1
        self.seq += 1
        if too_large:
            await self._send_aside(data)
        else:
            self._batch.add(data)

    async def _send_aside(self, data: bytes) -> None:
        """An item over the bus's limit: its frame goes by reference, in its place among the others."""
        links = self.inbound.links
        head = _encode(Frame[None](_ITEM, self._batch.pass_by()))[:-1]
        detour, passage = await links.detours.pack(head + b"\x91" + data, "")
        self._passages.append(passage)
        links.bus.send(self.reply, detour, self.own)

    def abandon(self) -> None:
        super().abandon()
        for passage in self._passages:
            passage.end()

    def _send_batch(self, first: int, tail: bytes) -> None:
        if not self.abandoned:
            self.inbound.links.bus.send(self.reply, _encode(Frame[None](_ITEM, first))[:-1] + tail, self.own)

    def add_credit(self, credit: int) -> None:
        self.credit += credit
        self.last_credit = self.inbound.node.loop.time()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def beat(self, now: float) -> None:
        """A sign of life, which also finds out whether the reader still lives."""
        if self.json:
            return
        if self.credit <= 0 and now - self.last_credit > STALL_LIMIT_S:
            self.fail(SlowConsumer(f"the reader of {type(self.message).__name__} took nothing for {STALL_LIMIT_S:g} s"))
            self.abandon()
        else:
            self.inbound.links.bus.send(self.reply, _encode(Frame(int(Mark.BEAT))), self.own)

    def resolve(self, value: Any) -> None:
        if not self.abandoned:
            self._batch.flush()
            try:
                data = _encode_json(value) if self.json else _encode(Frame(int(Mark.END), self.seq, value))
            except (TypeError, ValueError, OverflowError) as error:
                self.fail(_unfit(self, value, error))
                return
            self.inbound.answer(self.reply, data, self.json)
        self.inbound.over(self)

    def fail(self, error: CallboardError) -> None:
        self._batch.flush()
        super().fail(error)


class Inbound:
    """Routes what comes on `actor.<address>` to mailboxes, and keeps what is under way so it can be cancelled."""

    def __init__(self, node: Node, links: Links) -> None:
        self.node = node
        self.links = links
        self._asks: dict[str, BusAsk] = {}
        self._streams: dict[str, BusStream] = {}
        self._ledgers: dict[str, Ledger] = {}
        # What came for a root while it was not settled whether it is ours: if not, somebody else answers.
        self.early: dict[str, list[tuple[str, str, bytes]]] = {}
        self._numbers = itertools.count(1)
        self._own = f"{links.inbox}p"

    def receive(self, subject: str, reply: str, data: bytes) -> None:
        """A message for one of our actors. Never raises: whatever is wrong with it is its sender's to hear."""
        address = subject[6:]
        if self.links.detours.lines and self.links.detours.is_behind(address, subject, reply, data):
            return
        cell = self.node.actors.get(address)
        leases = self.node.leases
        if leases.held and leases.is_void(address):
            return  # it is for another node, which has the actor now
        if not isinstance(cell, Cell):
            self._nobody(address, reply, data)
            return
        json = data[:1] == b"{"
        try:
            if json:
                self._receive_json(cell, reply, data)
                return
            envelope = cell.spec.decoder.decode(data)
        except UNDECODABLE as error:
            if data[:1] == MARK and self._take_detour(address, subject, reply, data):
                return
            self._undecodable(cell, reply, data, json, error)
            return
        op = envelope.op
        message = envelope.body
        try:
            if envelope.batch:
                self._take_told(cell, envelope.batch, envelope.sender)
            elif message is None:
                self._control(cell, envelope, reply)
            elif op == _ASK:
                ask = BusAsk(message, envelope.sender, self, reply, False)
                if envelope.trace:
                    ask.trace = Trace.parse(envelope.trace)
                self._take(cell, ask, envelope.timeout_ms)
            elif op == _TELL:
                self._take_told(cell, (message,), envelope.sender, envelope.trace)
            elif op == _STREAM:
                own = f"{self._own}{next(self._numbers)}"
                stream = BusStream(message, envelope.sender, self, reply, False, envelope.credit, own)
                if envelope.trace:
                    stream.trace = Trace.parse(envelope.trace)
                self._streams[own] = stream
                self._take(cell, stream, envelope.timeout_ms)
            else:
                raise Malformed(f"an envelope with operation {op} and a message")
        except CallboardError as error:
            self.refuse(reply, error.to_info(), False)

    def _take_detour(self, address: str, subject: str, reply: str, data: bytes) -> bool:
        try:
            self.links.detours.take(address, subject, reply, data)
        except UNDECODABLE:
            return False
        return True

    def _take(self, cell: Cell, ask: BusAsk, timeout_ms: int) -> None:
        self._asks[ask.reply] = ask
        ask.cell = cell
        try:
            self._put(cell, ask)
        except CallboardError as error:
            ask.fail(error)
            return
        if timeout_ms:
            self.node.deadlines.add(ask, timeout_ms / 1000)

    def _put(self, cell: Cell, delivery: Delivery) -> None:
        try:
            cell.put(delivery)
        except MailboxFull:
            ledger = self._ledgers.get(cell.address)
            if ledger is None:
                raise
            ledger.reclaim(self.node.loop.time())
            cell.put(delivery)

    def _take_told(self, cell: Cell, messages: tuple[Message, ...], sender: str, trace: str = "") -> None:
        ledger = self._ledgers.get(cell.address)
        if ledger is not None:
            ledger.spend(sender, len(messages))
        for message in messages:
            try:
                self._put(cell, Told(message, sender, cell, Trace.parse(trace) if trace else None))
            except CallboardError:
                cell.drop(message)

    def _receive_json(self, cell: Cell, reply: str, data: bytes) -> None:
        message = cell.spec.json_decoder.decode(data)
        handler = cell.spec.handlers[type(message)]
        trace = mark_of(data)
        if not reply:
            try:
                self._put(cell, Told(message, "json", cell, trace))
            except CallboardError:
                self._drop(cell, data)
        elif handler.streams:
            own = f"{self._own}{next(self._numbers)}"
            stream = BusStream(message, "json", self, reply, True, 0, own)
            stream.trace = trace
            self._streams[own] = stream
            self._take(cell, stream, 0)
        else:
            ask = BusAsk(message, "json", self, reply, True)
            ask.trace = trace
            self._take(cell, ask, 0)

    def _control(self, cell: Cell, envelope: Envelope[Any], reply: str) -> None:
        """What the runtime says to the runtime about an actor."""
        match envelope.op:
            case Op.CANCEL:
                ask = self._asks.get(reply)
                if ask is not None:
                    ask.abandon()
                    self.over(ask)
            case Op.CREDIT:
                ask = self._asks.get(reply)
                if isinstance(ask, BusStream):
                    ask.add_credit(envelope.credit)
            case Op.GRANT:
                ledger = self._ledgers.get(cell.address)
                if ledger is None:
                    ledger = self._ledgers[cell.address] = Ledger(cell)
                ledger.settle(envelope.sender, envelope.credit, self.node.loop.time())
                self.links.soon(self._grant(cell, ledger, envelope, reply))
            case Op.PING:
                self.answer(reply, _encode(Frame(_OK)), False)
            case Op.WATCH | Op.LINK:
                cell.watchers = {**(cell.watchers or {}), reply: False}
                if envelope.op == Op.LINK:
                    cell.watching(envelope.sender)
                    self.links.watch(cell.address, envelope.sender, link=True, mutual=False)
            case Op.UNWATCH:
                if cell.watchers is not None:
                    cell.watchers.pop(reply, None)
            case _:
                raise Malformed(f"an envelope with operation {envelope.op} and no message")

    async def _grant(self, cell: Cell, ledger: Ledger, envelope: Envelope[Any], reply: str) -> None:
        """Promise room to a sender, waiting for some as long as it is ready to."""
        loop = self.node.loop
        until = loop.time() + envelope.timeout_ms / 1000
        while not cell.closed:
            more = ledger.grant(envelope.sender, loop.time())
            if more:
                self.answer(reply, _encode(Frame(int(Mark.GRANT), more)), False)
                return
            if loop.time() >= until:
                break
            await cell.room(until - loop.time())
        self.refuse(reply, cell.refusal().to_info(), False)

    # Answers

    def answer(self, reply: str, data: bytes, json: bool) -> None:
        bus = self.links.bus
        if len(data) > bus.max_payload and not json:
            self.links.detours.answer(reply, data, lambda error: self.refuse(reply, error.to_info(), False))
        elif len(data) > bus.max_payload:
            too_large = TooLarge(
                f"the answer has {len(data)} bytes, over the bus's limit of {bus.max_payload}", hint=_BY_REFERENCE
            )
            self.refuse(reply, too_large.to_info(), json)
        elif reply:
            bus.send(reply, data)

    def refuse(self, reply: str, error: ErrorInfo, json: bool) -> None:
        if not reply:
            return
        if len(error.detail) + len(error.message) > MAX_ERROR_CHARS:
            head, tail = error.message[: MAX_ERROR_CHARS // 4], error.detail[-MAX_ERROR_CHARS // 2 :]
            error = ErrorInfo(error.code, head, error.hint, tail)
        self.links.bus.send(reply, _encode_json(error) if json else _encode(Frame(int(Mark.ERROR), 0, None, error)))

    def over(self, ask: BusAsk) -> None:
        """A request came to its end, one way or another."""
        self._asks.pop(ask.reply, None)
        if isinstance(ask, BusStream):
            self._streams.pop(ask.own, None)
        slot = ask.slot
        if slot is not None:
            slot.discard(ask)

    # What cannot be delivered

    def _nobody(self, address: str, reply: str, data: bytes) -> None:
        if self._is_ping(data):
            holds = self.links.names.holds(address, _any_envelope.decode(data).sender)
            self.answer(reply, _encode(Frame(_OK if holds else int(Mark.ERROR))), False)
        elif root := self.links.names.claiming(address):
            self.early.setdefault(root, []).append((f"actor.{address}", reply, data))
        elif reply:
            error = NoSuchActor(f"there is no actor {address} on node {self.node.name}")
            self.refuse(reply, error.to_info(), data[:1] == b"{")
        else:
            self._bury(address, data)

    def _is_ping(self, data: bytes) -> bool:
        try:
            return _any_envelope.decode(data).op == Op.PING
        except UNDECODABLE:
            return False

    def _drop(self, cell: Cell, data: bytes) -> None:
        """Bytes that held no credit and found no room, or that are no message of the actor's."""
        cell.dropped += 1
        self._bury(cell.address, data)

    def _bury(self, address: str, data: bytes) -> None:
        """Publish what could not be delivered, out of its envelope if it has one, for who wants to see it."""
        parts = [data]
        if data[:1] != b"{":
            with contextlib.suppress(*UNDECODABLE):
                envelope = _any_envelope.decode(data)
                parts = [_encode(part) for part in (envelope.body, *envelope.batch) if part is not None]
        for part in parts:
            self.node.topics.deliver_bytes(f"dead.{address}", part)
            self.links.bus.send(f"dead.{address}", part)

    def _take_one_by_one(self, cell: Cell, data: bytes) -> bool:
        """Of messages that travelled together, those that decode must not be lost for one that does not."""
        try:
            envelope = _any_envelope.decode(data)
        except UNDECODABLE:
            return False
        if len(envelope.batch) < 2:
            return False
        for part in envelope.batch:
            self.receive(f"actor.{cell.address}", "", _encode(Envelope(_TELL, sender=envelope.sender, batch=(part,))))
        return True

    def _undecodable(self, cell: Cell, reply: str, data: bytes, json: bool, cause: Exception) -> None:
        if not json and self._take_one_by_one(cell, data):
            return
        cell.errors += 1
        error: CallboardError
        try:
            if json:
                body = _any_json.decode(data)
            else:
                envelope = _any_envelope.decode(data)
                body = envelope.batch[0] if envelope.batch else envelope.body
        except UNDECODABLE:
            error = Malformed(
                f"what came for {cell.address} is neither a MessagePack envelope nor JSON",
                hint='JSON looks like {"type": "demo.add", "n": 1}',
            )
        else:
            tag = body.get("type", "") if isinstance(body, dict) else ""
            tags = sorted(tag_of(m) for m in cell.spec.handlers)
            if tag in tags:
                error = Malformed(f"a {tag} for {cell.address} does not fit its schema: {cause}")
            else:
                error = NotUnderstood(
                    f"{cell.address} takes no {tag or 'message without a type'}",
                    hint="it takes " + (", ".join(tags) or "nothing"),
                )
        if reply:
            self.refuse(reply, error.to_info(), json)
        else:
            self._drop(cell, data)

    # Readers that go away

    def reader_gone(self, own: str) -> bool:
        """The server says that nobody reads this stream any more."""
        stream = self._streams.get(own)
        if stream is None:
            return False
        stream.abandon()
        self.over(stream)
        return True

    def beat(self, now: float) -> None:
        for stream in tuple(self._streams.values()):
            stream.beat(now)
        for ledger in self._ledgers.values():
            ledger.reclaim(now)

    def lost(self) -> None:
        """The bus broke: frames under way are lost, so no stream can be whole, and credit counts for nothing."""
        for stream in tuple(self._streams.values()):
            stream.fail(Disconnected("the producer's connection to the bus broke"))
            stream.abandon()
        for ledger in self._ledgers.values():
            ledger.clear()

    def forget(self, address: str) -> None:
        self._ledgers.pop(address, None)

    def discover(self, subject: str, reply: str, data: bytes) -> None:
        """`$SRV.PING|INFO|STATS`, as NATS's own tools ask it."""
        for answer in answer_discovery(self.node, subject):
            self.links.bus.send(reply, answer)

    def close(self) -> None:
        for ask in tuple(self._asks.values()):
            ask.fail(Cancelled(f"node {self.node.name} left the bus"))


def _unfit(ask: BusAsk, value: Any, error: Exception) -> HandlerFailed:
    kind = type(value).__name__
    return HandlerFailed(f"the answer to {type(ask.message).__name__}, a {kind}, cannot cross the bus: {error}")
