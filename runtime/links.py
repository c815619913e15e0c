"""The bus side of a node: what it sends to actors elsewhere, and what comes back.

Conversations are named by their NATS reply subject, `inbox.<node>.<n>`. A producer of a stream sends its frames with a
reply subject of its own, so that the server itself reports a reader that is gone (no responders), and the handler is
cancelled by its next step.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from ..schemas.base import Message
from ..schemas.runtime import Ended, NodeDown, Terminated
from ..schemas.wire import Envelope, Op
from .bus import Bus, BusOptions, Events, Receive
from .calls import Call, Conversation, GrantCall, RemoteStream, WatchCall
from .channels import Channel
from .context import current_place
from .detours import MARK, Detours, Passage
from .endings import Endings
from .errors import (
    ActorStopped,
    CallboardError,
    DeadlineExceeded,
    Disconnected,
    Forbidden,
    MailboxFull,
    NotReachable,
    TooLarge,
)
from .identity import Identity, read_creds
from .inbound import Inbound
from .log import log
from .messages import answers
from .names import Names
from .peers import Peers
from .publisher import Publisher
from .refs import STREAM_WINDOW
from .taps import Taps
from .topics import Listener
from .tracing import traceparent

if TYPE_CHECKING:
    from .node import Node

BEAT_EVERY_S = 1.0
# After a reconnect others may still be on their way back: so long, a request that reached nobody is sent again.
RETURN_GRACE_S = 3.0
REPEAT_AFTER_S = 0.1
# A request for credit that somebody else began counts as answered with "full" when it is that old.
GRANT_PROMPT_S = 1.0
# The longest that a receiver is asked to wait for room, which stands for ever.
MAX_WAIT_S = 1e6
# What an envelope adds to its message, at most: a sender's address and a few numbers.
ENVELOPE_ROOM = 1024

encode = msgspec.msgpack.Encoder().encode


class Links:
    """Asks, tells, streams and watches across the bus, for one node."""

    def __init__(self, node: Node, options: BusOptions) -> None:
        self.node = node
        self.identity = read_creds(options.creds) if options.creds else Identity()
        self.bus_name = self.identity.inbox or options.node_id or node.name
        self.options = options = replace(options, node_id=self.bus_name)
        # An earlier process of this name may still be sent answers: they must not be taken for ours.
        self.inbox = f"inbox.{self.bus_name}.{secrets.token_hex(4)}."
        events = Events(self._lost, self._back, self._denied, self._nobody, self._put_out)
        self.bus = Bus(options, node.name, events)
        self.inbound = Inbound(node, self)
        self.endings = Endings(self)
        self.numbers = itertools.count(1)
        self.conversations: dict[str, Conversation] = {}
        self._channels: dict[str, Channel] = {}
        self._watches: dict[tuple[str, str], WatchCall] = {}
        self._back_until = 0.0
        self.refused: set[str] = set()
        self.credit_stalls = 0
        self.taps = Taps(node, self.bus)
        self.detours = Detours(self)
        self.names = Names(self)
        self.peers = Peers(self)
        self.publisher = Publisher(self)
        self._chores: set[asyncio.Task[Any]] = set()
        self.leaving: set[asyncio.Task[Any]] = set()

    # Coming and going

    async def open(self) -> None:
        await self.bus.open()
        await self.subscribe_to(f"{self.inbox}*", self._on_reply)
        may_listen = self.identity.may_subscribe
        if may_listen(f"actor.node.{self.node.name}"):  # others ask, and answer for nobody
            await self.names.claim(f"node.{self.node.name}")
        for subject in ("nodes.*",) if may_listen("nodes.*") else filter(may_listen, ("nodes.tap",)):
            await self.bus.subscribe(subject, self.peers.receive)
        for verb in filter(may_listen, ("$SRV.PING", "$SRV.INFO", "$SRV.STATS")):
            await self.bus.subscribe(verb, self.inbound.discover)
            await self.bus.subscribe(f"{verb}.>", self.inbound.discover)
        await self.bus.flush()
        self.soon(self._beat())

    async def close(self) -> None:
        self.peers.say_hello(leaving=True)
        for task in tuple(self._chores):
            task.cancel()
        self.inbound.close()
        self.endings.close()
        self.names.clear()
        if self.leaving:
            await asyncio.wait(self.leaving, timeout=1.0)
        await self.bus.close()
        for conversation in tuple(self.conversations.values()):
            conversation.fail(Disconnected("this process left the bus"))

    def soon(self, work: Any) -> None:
        task = self.node.loop.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    # Asking

    async def ask(self, address: str, message: Message, timeout: float | None) -> Any:
        seconds = self.node.ask_timeout if timeout is None else timeout
        sender = current_place.get().address or self.node.name
        call = Call(address, answers(type(message)).decoder, self.node.loop.create_future(), self)
        left_ms = 0 if seconds == math.inf else max(1, int(seconds * 1000))
        data = encode(Envelope(Op.ASK, message, left_ms, 0, sender, traceparent()))
        if len(data) > self.bus.max_payload:
            data = await self._put_aside(call, data, seconds)
        self.begin(call, data)
        if left_ms:
            self.node.deadlines.add(call, seconds)
        try:
            return await call.future
        except asyncio.CancelledError:
            self.cancel(call)
            raise
        finally:
            self.done(call)

    async def open_stream(self, address: str, message: Message, timeout: float | None) -> RemoteStream:
        sender = current_place.get().address or self.node.name
        stream = RemoteStream(address, answers(type(message)), self, STREAM_WINDOW)
        left_ms = 0 if timeout is None or timeout == math.inf else max(1, int(timeout * 1000))
        data = encode(Envelope(Op.STREAM, message, left_ms, STREAM_WINDOW, sender, traceparent()))
        if len(data) > self.bus.max_payload:
            data = await self._put_aside(stream, data, timeout)
        self.begin(stream, data)
        if left_ms and timeout is not None:
            self.node.deadlines.add(stream, timeout)
        return stream

    def request(self, conversation: Conversation, envelope: Envelope[Any]) -> None:
        data = encode(envelope)
        self.check_size(data)
        self.begin(conversation, data)

    async def _put_aside(self, call: Conversation, data: bytes, timeout: float | None) -> bytes:
        """What stands for a request over the limit. Its bytes are kept until they are taken, or the call is over."""
        try:
            async with asyncio.timeout(None if timeout == math.inf else timeout):
                detour, call.passage = await self.detours.pack(data, call.address)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer from {call.address} in time") from None
        return detour

    def begin_detour(self, passage: Passage) -> None:
        passage.reply = f"{self.inbox}{next(self.numbers)}"
        self.conversations[passage.reply] = passage

    def check_size(self, data: bytes, extra: int = 0) -> None:
        if len(data) + extra > self.bus.max_payload:
            raise TooLarge(
                f"a message of {len(data)} bytes is over the bus's limit of {self.bus.max_payload}",
                hint="send large values as a reference, not inside the message",
            )

    def begin(self, conversation: Conversation, data: bytes) -> None:
        address = conversation.address
        channel = self._channels.get(address)
        if channel is not None:
            channel.batch.flush()  # what was told before arrives before
        self.bus.check()
        conversation.reply = reply = f"{self.inbox}{next(self.numbers)}"
        conversation.request = data
        self.conversations[reply] = conversation
        self.bus.send(f"actor.{address}", data, reply)

    def control(self, conversation: Conversation, op: Op, credit: int = 0) -> None:
        """Send a cancel or more credit for a conversation of ours. Nobody waits for it."""
        self.bus.send(f"actor.{conversation.address}", encode(Envelope(op, None, 0, credit)), conversation.reply)

    def cancel(self, conversation: Conversation) -> None:
        """Nobody waits for it any more. What has not left for want of a server does not leave at all."""
        if self.bus.is_up or not self.bus.discard(conversation.reply):
            self.control(conversation, Op.CANCEL)

    def done(self, conversation: Conversation) -> None:
        self.conversations.pop(conversation.reply, None)
        slot = conversation.slot
        if slot is not None:
            slot.discard(conversation)
            conversation.slot = None
        if conversation.passage is not None:
            conversation.passage.end()

    # Telling

    async def tell(self, address: str, message: Message, timeout: float) -> None:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = Channel(address, self)
        data = encode(message)
        detour, trace = None, current_place.get().trace
        if len(data) > self.bus.max_payload - ENVELOPE_ROOM:
            told = Envelope(Op.TELL, message, 0, 0, self.node.name, "" if trace is None else str(trace))
            data = encode(told)
            detour = await self.detours.pack(data, address)
        if not channel.take(self.node.loop.time()):
            try:
                await self._wait_for_credit(channel, timeout)
            except BaseException:
                if detour is not None:
                    detour[1].end()
                raise
        if detour is not None:
            channel.batch.flush()
            self.bus.send(f"actor.{address}", detour[0], detour[1].reply)
        elif trace is None:
            channel.batch.add(data)
        else:
            channel.batch.flush()  # what was told before arrives before
            alone = Envelope(Op.TELL, message, 0, 0, self.node.name, str(trace))
            self.bus.send(f"actor.{address}", encode(alone))
        if channel.is_low:
            self._ask_for_credit(channel, 0.0)
        if self.bus.is_full:
            await self.bus.room(self.node.ask_timeout)

    async def _wait_for_credit(self, channel: Channel, timeout: float) -> None:
        """Returns with one credit spent. Raises MailboxFull when there is none within `timeout`."""
        self.credit_stalls += 1
        loop = self.node.loop
        until = loop.time() + timeout
        while not channel.take(loop.time()):
            left = max(0.0, until - loop.time())
            call = channel.asking or self._ask_for_credit(channel, left)
            patience = None
            if call.timeout > left:  # another sender is ready to wait longer than we are
                patience = max(left, call.begun + GRANT_PROMPT_S - loop.time())
            try:
                async with asyncio.timeout(patience):
                    await asyncio.shield(call.future)
            except TimeoutError:
                raise MailboxFull(f"the mailbox of {channel.address} is full") from None
            except MailboxFull:
                if loop.time() >= until:
                    raise

    def _ask_for_credit(self, channel: Channel, timeout: float) -> GrantCall:
        call = GrantCall(channel, self, timeout)
        channel.asking = call
        wait_ms = int(min(timeout, MAX_WAIT_S) * 1000)
        self.request(call, Envelope(Op.GRANT, None, wait_ms, channel.left(self.node.loop.time()), self.node.name))
        self.node.deadlines.add(call, timeout + self.node.ask_timeout)
        return call

    # Watching

    def watch(self, watcher: str, target: str, *, link: bool, mutual: bool = True) -> None:
        """`link` makes the end of the target a crash of the watcher; `mutual` asks its node for the same in return."""
        self.unwatch(watcher, target)
        call = self._watches[watcher, target] = WatchCall(self, watcher, target, linked=link)
        self.request(call, Envelope(Op.LINK if link and mutual else Op.WATCH, None, 0, 0, watcher))

    def link_back(self, watcher: str, target: str) -> None:
        """Have the target's node link it to the watcher, which sees the target's end by itself."""
        link = encode(Envelope(Op.LINK, None, 0, 0, watcher))
        self.bus.send(f"actor.{target}", link, f"{self.inbox}{next(self.numbers)}")

    def unwatch(self, watcher: str, target: str) -> None:
        call = self._watches.pop((watcher, target), None)
        if call is not None:
            self.control(call, Op.UNWATCH)
            self.done(call)

    def watch_ended(self, call: WatchCall, event: Terminated) -> None:
        self._watches.pop((call.watcher, call.address), None)
        self.done(call)
        self.node.notify(call.watcher, event, linked=call.linked)

    # What comes in

    def _on_reply(self, subject: str, reply: str, data: bytes) -> None:
        conversation = self.conversations.get(subject)
        if data[:1] == MARK or (conversation is not None and conversation.behind is not None):
            self.detours.answered(conversation, reply, data)
        elif conversation is not None:
            conversation.more_follows = bool(reply)
            conversation.receive(data)

    def _nobody(self, reply: str) -> None:
        conversation = self.conversations.get(reply)
        if conversation is None:
            self.inbound.reader_gone(reply)
        elif self.is_gathering and conversation.may_repeat:
            self.node.loop.call_later(REPEAT_AFTER_S, self._repeat, conversation)
        else:
            conversation.nobody()

    def _repeat(self, conversation: Conversation) -> None:
        if self.conversations.get(conversation.reply) is conversation:
            self.bus.send(f"actor.{conversation.address}", conversation.request, conversation.reply)

    def _denied(self, subject: str) -> None:
        self.refused.add(subject)
        for conversation in tuple(self.conversations.values()):
            if subject in (f"actor.{conversation.address}".lower(), conversation.address.lower()):
                conversation.fail(self.forbidden(f"publish to {subject}"))

    def forbidden(self, what: str) -> Forbidden:
        role = self.identity.role
        if role in ("", "node", "main"):
            return Forbidden(f"this user may not {what}")
        return Forbidden(
            f"{self.identity.name} has the role {role}, which may not {what}",
            hint="`callboard creds new --help` says what each role may do",
        )

    def _put_out(self, error: CallboardError) -> None:
        """The server does not let this user in any more: for good, so nobody is to wait."""
        log.error("%s", error)
        for conversation in tuple(self.conversations.values()):
            conversation.fail(error)
        for channel in self._channels.values():
            channel.reset()
        self.inbound.lost()
        self.node.put_out(error)

    def _lost(self) -> None:
        """The server is gone: what was under way may or may not be carried out, and its answers are lost.

        What has not left yet waits for the server's return, or for its deadline.
        """
        unsent = self.bus.unsent()
        for conversation in tuple(self.conversations.values()):
            if conversation.reply not in unsent:
                if isinstance(conversation, Call | RemoteStream):
                    self.control(conversation, Op.CANCEL)  # goes out when the server is back
                conversation.fail(Disconnected("the connection to the bus broke while the request was under way"))
        for channel in self._channels.values():
            channel.reset()
        self.inbound.lost()

    def _back(self) -> None:
        now = self.node.loop.time()
        self._back_until = now + RETURN_GRACE_S
        self.peers.back(now)
        self.endings.back()
        for call in self._watches.values():
            self._repeat(call)  # under its old name: an end that was announced meanwhile may still be on its way

    @property
    def is_gathering(self) -> bool:
        """Whether the bus was away a moment ago, so that others may still be on their way back."""
        return self.node.loop.time() < self._back_until

    def roots_gone(self, roots: set[str], down: NodeDown) -> None:
        why = f": {down.error.message}" if down.error is not None else ""
        for conversation in tuple(self.conversations.values()):
            address = conversation.address
            if address not in roots and address.partition(".")[0] not in roots:
                continue
            error = ActorStopped(f"{address} ended before it answered{why}")
            if isinstance(conversation, WatchCall):
                info = down.error or error.to_info()
                self.watch_ended(conversation, Terminated(address, Ended.NODE_DOWN, info, down.restarting))
            else:
                self.cancel(conversation)  # it may only have fallen silent
                conversation.fail(error)
        for address in [a for a in self._channels if a.partition(".")[0] in roots]:
            del self._channels[address]

    async def _beat(self) -> None:
        """Now and then: keep idle streams alive, end what nobody renews, see who is still there."""
        self.peers.greet()
        self.soon(self.node.blobs.tidy())  # after processes that were killed
        last_beat = self.node.loop.time()
        while True:
            await asyncio.sleep(BEAT_EVERY_S)  # the heartbeat's own period
            now = self.node.loop.time()
            held_up, last_beat = now - last_beat > 2 * BEAT_EVERY_S, now
            self.taps.check(now)
            self.node.leases.check(now)
            if not self.bus.is_up:
                continue
            self.inbound.beat(now)
            if not self.is_gathering:
                self.endings.tidy(now)
            if held_up:  # what was sent to us meanwhile is not read yet, so nobody's silence means anything
                continue
            for conversation in tuple(self.conversations.values()):
                conversation.check(now)
            self.peers.beat(now)

    # Listening

    async def subscribe(self, listener: Listener) -> None:
        def take(subject: str, reply: str, data: bytes) -> None:
            listener.take_bytes(subject, data)

        listener.subscription = await self.subscribe_to(listener.pattern, take)

    async def subscribe_to(self, subject: str, receive: Receive) -> Any:
        """Returns once the server has it. Raises Forbidden where it refuses."""
        self.bus.check()
        self.refused.discard(subject.lower())
        subscription = await self.bus.subscribe(subject, receive)
        await self.bus.flush()
        if subject.lower() in self.refused:
            self.unsubscribe_from(subscription)
            raise self.forbidden(f"listen to {subject}")
        return subscription

    def unsubscribe(self, listener: Listener) -> None:
        if listener.subscription is not None:
            self.unsubscribe_from(listener.subscription)

    def unsubscribe_from(self, subscription: Any) -> None:
        task = self.node.loop.create_task(self.bus.unsubscribe(subscription))
        self.leaving.add(task)
        task.add_done_callback(self.leaving.discard)

    def expired(self, conversation: Conversation) -> None:
        """A deadline passed: say so here, and let the other side stop."""
        if self.bus.is_up:
            conversation.fail(DeadlineExceeded(f"no answer from {conversation.address} in time"))
            self.cancel(conversation)
        else:
            self.cancel(conversation)
            conversation.fail(NotReachable(f"the NATS server at {self.options.url} was away until the deadline passed"))
