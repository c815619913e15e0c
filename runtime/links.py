"""The bus side of a node: requests it sends, requests it takes, and who is still there.

Conversations are named by their NATS reply subject, `inbox.<node>.<n>`. A producer of a stream sends its frames with a
reply subject of its own, so that the server itself reports a reader that is gone (no responders), and the handler is
cancelled by its next step.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from ..schemas.base import Message
from ..schemas.runtime import PROTOCOL, Ended, NodeDown, NodeHello, TapRequest, Terminated
from ..schemas.wire import Envelope, Op
from .bus import Bus, BusOptions, Events, Receive
from .calls import Call, Conversation, GrantCall, PingCall, RawCall, RawStream, RemoteStream, WatchCall
from .channels import Channel
from .context import current_place
from .detours import MARK, Detours, Passage
from .errors import (
    ActorStopped,
    CallboardError,
    DeadlineExceeded,
    Disconnected,
    Forbidden,
    MailboxFull,
    NameTaken,
    NoSuchActor,
    NotReachable,
    TooLarge,
)
from .identity import Identity, read_creds
from .inbound import Inbound
from .log import log
from .messages import UNDECODABLE, answers
from .refs import STREAM_WINDOW
from .taps import Taps
from .topics import Listener, check_subject
from .tracing import marked, traceparent

if TYPE_CHECKING:
    from .node import Node

HELLO_EVERY_S = 5.0
# A node that says nothing for so long is taken for gone.
SILENT_NODE_S = 15.0
BEAT_EVERY_S = 1.0
# A node that we keep actors on is asked with each beat; it is gone when so often in a row nobody answers to its name.
MAX_MISSES = 2
CLAIM_TIMEOUT_S = 1.0
# After a reconnect others may still be on their way back: so long, a request that reached nobody is sent again.
RETURN_GRACE_S = 3.0
REPEAT_AFTER_S = 0.1
# A request for credit that somebody else began counts as answered with "full" when it is that old.
GRANT_PROMPT_S = 1.0
# The longest that a receiver is asked to wait for room, which stands for ever.
MAX_WAIT_S = 1e6
# How many families of subjects are remembered as allowed, before they are asked for anew.
MAX_ALLOWED = 4096
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
        self._numbers = itertools.count(1)
        self._conversations: dict[str, Conversation] = {}
        self._channels: dict[str, Channel] = {}
        self._watches: dict[tuple[str, str], WatchCall] = {}
        self.peers: dict[str, NodeHello] = {}
        self._heard: dict[str, float] = {}
        self.hello_number = 0
        self._misses: dict[str, int] = {}
        self._news: asyncio.Future[None] | None = None
        self._roots: dict[str, list[Any]] = {}
        self._claiming: set[str] = set()
        self._back_until = 0.0
        self._refused: set[str] = set()
        self.credit_stalls = 0
        self._allowed: set[str] = set()
        self._taps = Taps(node, self.bus)
        self.detours = Detours(self)
        self._chores: set[asyncio.Task[Any]] = set()
        self._leaving: set[asyncio.Task[Any]] = set()
        self._hello_decoder = msgspec.msgpack.Decoder(NodeHello)
        self._down_decoder = msgspec.msgpack.Decoder(NodeDown)
        self._tap_decoder = msgspec.msgpack.Decoder(TapRequest)

    # Coming and going

    async def open(self) -> None:
        await self.bus.open()
        await self._subscribe(f"{self.inbox}*", self._on_reply)
        may_listen = self.identity.may_subscribe
        if may_listen(f"actor.node.{self.node.name}"):  # others ask, and answer for nobody
            await self.claim(f"node.{self.node.name}")
        for subject in ("nodes.*",) if may_listen("nodes.*") else filter(may_listen, ("nodes.tap",)):
            await self.bus.subscribe(subject, self._on_nodes)
        for verb in filter(may_listen, ("$SRV.PING", "$SRV.INFO", "$SRV.STATS")):
            await self.bus.subscribe(verb, self.inbound.discover)
            await self.bus.subscribe(f"{verb}.>", self.inbound.discover)
        await self.bus.flush()
        self.soon(self._chore())

    async def close(self) -> None:
        self.say_hello(leaving=True)
        for task in tuple(self._chores):
            task.cancel()
        self.inbound.close()
        for root in tuple(self._roots):  # so that who asks next for one of them is told that it is free
            for subscription in self._roots.pop(root):
                self._unsubscribe(subscription)
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=1.0)
        await self.bus.close()
        for conversation in tuple(self._conversations.values()):
            conversation.fail(Disconnected("this process left the bus"))

    def soon(self, work: Any) -> None:
        task = self.node.loop.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def claim(self, root: str) -> None:
        """Answer for `actor.<root>` and all below it. Raises NameTaken when somebody does already.

        Asked twice, since another node may be at it too: the one whose inbox comes first in the alphabet goes on.
        """
        if root in self._roots:
            raise NameTaken(f"there is an actor {root} already")
        subscriptions = self._roots[root] = []
        self._claiming.add(root)
        try:
            await self._check_free(root)
            for subject in (f"actor.{root}", f"actor.{root}.>"):
                subscriptions.append(await self._subscribe(subject, self.inbound.receive))
            await self._check_free(root)
        except BaseException:
            self.unclaim(root)
            if subscriptions:  # until they are gone we hear what is said to the one who got it, and keep quiet
                await asyncio.wait(self._leaving, timeout=CLAIM_TIMEOUT_S)
            self.inbound.early.pop(root, None)
            raise
        finally:
            self._claiming.discard(root)
        self.node.loop.call_soon(self._claimed, root)

    def _claimed(self, root: str) -> None:
        """In the next turn of the loop, when the actor is there."""
        self.say_hello()
        for subject, reply, data in self.inbound.early.pop(root, ()):
            self.inbound.receive(subject, reply, data)

    async def _check_free(self, root: str) -> None:
        call = await self._ping(root)
        if call.future.result() and not (call.silent and root in self.node.takes_over):
            raise NameTaken(f"there is an actor {root} on the bus already")

    def holds(self, root: str, claimant: str) -> bool:
        """Whether a root is ours, there or about to be, as against somebody who claims it."""
        return root in self._roots and (root not in self._claiming or self.inbox < claimant)

    def claiming(self, address: str) -> str:
        """The root of an address where it is not settled yet if we answer for it, else nothing."""
        root = address.partition(".")[0]
        return root if root in self._claiming else address if address in self._claiming else ""

    def unclaim(self, root: str) -> None:
        for subscription in self._roots.pop(root, ()):
            self._unsubscribe(subscription)
        self.say_hello()

    async def _answers(self, root: str) -> bool:
        return (await self._ping(root)).future.result()

    async def _ping(self, root: str) -> PingCall:
        call = PingCall(root, self)
        self._request(call, Envelope(Op.PING, sender=self.inbox))
        self.node.deadlines.add(call, CLAIM_TIMEOUT_S)
        try:
            await call.future
        finally:
            self.done(call)
        return call

    # Asking

    async def ask(self, address: str, message: Message, timeout: float | None) -> Any:
        seconds = self.node.ask_timeout if timeout is None else timeout
        sender = current_place.get().address or self.node.name
        call = Call(address, answers(type(message)).decoder, self.node.loop.create_future(), self)
        left_ms = 0 if seconds == math.inf else max(1, int(seconds * 1000))
        data = encode(Envelope(Op.ASK, message, left_ms, 0, sender, traceparent()))
        if len(data) > self.bus.max_payload:
            data = await self._put_aside(call, data, seconds)
        self._begin(call, data)
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
        self._begin(stream, data)
        if left_ms and timeout is not None:
            self.node.deadlines.add(stream, timeout)
        return stream

    def _request(self, conversation: Conversation, envelope: Envelope[Any]) -> None:
        data = encode(envelope)
        self._check_size(data)
        self._begin(conversation, data)

    async def _put_aside(self, call: Conversation, data: bytes, timeout: float | None) -> bytes:
        """What stands for a request over the limit. Its bytes are kept until they are taken, or the call is over."""
        try:
            async with asyncio.timeout(None if timeout == math.inf else timeout):
                detour, call.passage = await self.detours.pack(data, call.address)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer from {call.address} in time") from None
        return detour

    def begin_detour(self, passage: Passage) -> None:
        passage.reply = f"{self.inbox}{next(self._numbers)}"
        self._conversations[passage.reply] = passage

    def _check_size(self, data: bytes, extra: int = 0) -> None:
        if len(data) + extra > self.bus.max_payload:
            raise TooLarge(
                f"a message of {len(data)} bytes is over the bus's limit of {self.bus.max_payload}",
                hint="send large values as a reference, not inside the message",
            )

    def _begin(self, conversation: Conversation, data: bytes) -> None:
        address = conversation.address
        channel = self._channels.get(address)
        if channel is not None:
            channel.batch.flush()  # what was told before arrives before
        self.bus.check()
        conversation.reply = reply = f"{self.inbox}{next(self._numbers)}"
        conversation.request = data
        self._conversations[reply] = conversation
        self.bus.send(f"actor.{address}", data, reply)

    def control(self, conversation: Conversation, op: Op, credit: int = 0) -> None:
        """Send a cancel or more credit for a conversation of ours. Nobody waits for it."""
        self.bus.send(f"actor.{conversation.address}", encode(Envelope(op, None, 0, credit)), conversation.reply)

    def cancel(self, conversation: Conversation) -> None:
        """Nobody waits for it any more. What has not left for want of a server does not leave at all."""
        if self.bus.is_up or not self.bus.discard(conversation.reply):
            self.control(conversation, Op.CANCEL)

    def done(self, conversation: Conversation) -> None:
        self._conversations.pop(conversation.reply, None)
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
        self._request(call, Envelope(Op.GRANT, None, wait_ms, channel.left(self.node.loop.time()), self.node.name))
        self.node.deadlines.add(call, timeout + self.node.ask_timeout)
        return call

    # Watching

    def watch(self, watcher: str, target: str, *, link: bool, mutual: bool = True) -> None:
        """`link` makes the end of the target a crash of the watcher; `mutual` asks its node for the same in return."""
        self.unwatch(watcher, target)
        call = self._watches[watcher, target] = WatchCall(self, watcher, target, linked=link)
        self._request(call, Envelope(Op.LINK if link and mutual else Op.WATCH, None, 0, 0, watcher))

    def link_back(self, watcher: str, target: str) -> None:
        """Have the target's node link it to the watcher, which sees the target's end by itself."""
        link = encode(Envelope(Op.LINK, None, 0, 0, watcher))
        self.bus.send(f"actor.{target}", link, f"{self.inbox}{next(self._numbers)}")

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
        conversation = self._conversations.get(subject)
        if data[:1] == MARK or (conversation is not None and conversation.behind is not None):
            self.detours.answered(conversation, reply, data)
        elif conversation is not None:
            conversation.more_follows = bool(reply)
            conversation.receive(data)

    def _nobody(self, reply: str) -> None:
        conversation = self._conversations.get(reply)
        if conversation is None:
            self.inbound.reader_gone(reply)
        elif self.node.loop.time() < self._back_until and conversation.may_repeat:
            self.node.loop.call_later(REPEAT_AFTER_S, self._repeat, conversation)
        else:
            conversation.nobody()

    def _repeat(self, conversation: Conversation) -> None:
        if self._conversations.get(conversation.reply) is conversation:
            self.bus.send(f"actor.{conversation.address}", conversation.request, conversation.reply)

    def _denied(self, subject: str) -> None:
        self._refused.add(subject)
        for conversation in tuple(self._conversations.values()):
            if subject in (f"actor.{conversation.address}", conversation.address):
                conversation.fail(self._forbidden(f"publish to {subject}"))

    def _forbidden(self, what: str) -> Forbidden:
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
        for conversation in tuple(self._conversations.values()):
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
        for conversation in tuple(self._conversations.values()):
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
        self._heard = dict.fromkeys(self._heard, now)
        self.say_hello()
        for call in self._watches.values():
            self._repeat(call)  # under its old name: an end that was announced meanwhile may still be on its way

    # Who else is there

    def say_hello(self, *, leaving: bool = False) -> None:
        own = f"node.{self.node.name}"
        if own not in self._roots or own in self._claiming or not self.identity.may_publish("nodes.hello"):
            return  # the name may be another's, whose word this would be taken for
        self.hello_number += 1
        self.bus.send("nodes.hello", encode(NodeHello(self.node.info(), leaving, self.hello_number)))

    def _on_nodes(self, subject: str, reply: str, data: bytes) -> None:
        with contextlib.suppress(*UNDECODABLE):
            match subject:
                case "nodes.hello":
                    self._on_hello(self._hello_decoder.decode(data))
                case "nodes.down":
                    self._on_down(self._down_decoder.decode(data))
                case "nodes.tap":
                    self._taps.observe(self._tap_decoder.decode(data))
                case "nodes.who":
                    self.say_hello()

    def _on_hello(self, hello: NodeHello) -> None:
        name = hello.info.node
        known = self.peers.get(name)
        if known is not None and (hello.leaving or known.info.pid != hello.info.pid):
            ended = ActorStopped(f"node {name} left the bus")
            self._roots_gone(set(known.info.roots) | {f"node.{name}"}, NodeDown(name, error=ended.to_info()))
            self.node.leases.holder_gone(name)
        if known is None and hello.info.protocol != PROTOCOL:
            log.error(
                "node %s (callboard %s) speaks protocol %d, this one %d: they do not understand each other",
                *(name, hello.info.version, hello.info.protocol, PROTOCOL),
            )
        self.node.leases.heard(hello)
        if hello.leaving:
            self.peers.pop(name, None)
            self._heard.pop(name, None)
        else:
            self.peers[name] = hello
            self._heard[name] = self.node.loop.time()
        self._tell_news()

    def heard(self, name: str) -> float:
        """When that node last gave a sign of life, in the loop's time."""
        return self._heard.get(name, 0.0)

    async def news(self, timeout: float | None) -> None:
        """Wait until a node came, went or changed, at most so many seconds."""
        if self._news is None:
            self._news = self.node.loop.create_future()
        await asyncio.wait([self._news], timeout=timeout)

    def _tell_news(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            news.set_result(None)

    def _on_down(self, down: NodeDown) -> None:
        self.node.leases.holder_gone(down.node)
        known = self.peers.pop(down.node, None)
        self._heard.pop(down.node, None)
        roots = {*down.roots, f"node.{down.node}", *(known.info.roots if known is not None else ())}
        self._roots_gone(roots, down)
        self._tell_news()

    def down(self, event: NodeDown) -> None:
        """Announce that a process of ours is gone."""
        self.bus.send("nodes.down", encode(event))
        self._on_down(event)

    def _roots_gone(self, roots: set[str], down: NodeDown) -> None:
        why = f": {down.error.message}" if down.error is not None else ""
        for conversation in tuple(self._conversations.values()):
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

    async def _chore(self) -> None:
        """Now and then: say that we are there, keep idle streams alive, forget peers that fell silent."""
        if self.identity.may_publish("nodes.who"):
            self.bus.send("nodes.who", b"")
        self.say_hello()
        self.soon(self.node.blobs.tidy())  # after processes that were killed
        last_beat = last_hello = self.node.loop.time()
        while True:
            await asyncio.sleep(BEAT_EVERY_S)  # the heartbeat's own period
            now = self.node.loop.time()
            held_up, last_beat = now - last_beat > 2 * BEAT_EVERY_S, now
            self._taps.check(now)
            self.node.leases.check(now)
            if not self.bus.is_up:
                continue
            self.inbound.beat(now)
            if held_up:  # what was sent to us meanwhile is not read yet, so nobody's silence means anything
                continue
            for conversation in tuple(self._conversations.values()):
                conversation.check(now)
            for host in {child.keeps.partition("@")[2] for child in self.node.actors.values() if child.keeps}:
                self.soon(self._feel_pulse(host))
            if now - last_hello >= HELLO_EVERY_S:
                last_hello = now
                self.say_hello()
                for name in [n for n, heard in self._heard.items() if now - heard > SILENT_NODE_S]:
                    silent = ActorStopped(f"node {name} has given no sign of life for {SILENT_NODE_S:g} s")
                    self._on_down(NodeDown(name, error=silent.to_info()))

    async def _feel_pulse(self, host: str) -> None:
        try:
            is_there = await self._answers(f"node.{host}")
        except CallboardError as error:
            log.debug("whether node %s is there cannot be seen: %s", host, error)
            return
        self._misses[host] = 0 if is_there else self._misses.get(host, 0) + 1
        if self._misses[host] >= MAX_MISSES:
            del self._misses[host]
            self.down(NodeDown(host, error=ActorStopped(f"node {host} is gone").to_info()))

    # Publishing

    async def publish(self, subject: str, message: Message) -> None:
        self.bus.check()
        data = encode(message)
        if not subject.startswith("nodes."):
            data = marked(data, current_place.get().trace)
        self._check_size(data)
        if self.bus.is_full:
            await self.bus.room(self.node.ask_timeout)
        if subject in self._refused:
            raise self._forbidden(f"publish to {subject}")
        self.bus.send(subject, data)
        await self._hear_refusal(subject)
        if subject.startswith("nodes."):
            self._on_nodes(subject, "", data)  # the server does not echo, and it is for this node too

    async def _hear_refusal(self, subject: str) -> None:
        """Raises Forbidden where the server refuses what was just sent. Waits for its word once for each two first
        tokens, since that is a round trip and whole families of subjects are allowed or not."""
        family = ".".join(subject.split(".", 2)[:2])
        if family not in self._allowed and self.bus.is_up:
            await self.bus.flush()
            if subject in self._refused:
                raise self._forbidden(f"publish to {subject}")
            if len(self._allowed) >= MAX_ALLOWED:
                self._allowed.clear()
            self._allowed.add(family)

    async def publish_raw(self, subject: str, data: bytes) -> None:
        check_subject(subject)
        self._check_size(data)
        self.bus.check()
        root = subject.removeprefix("actor.")
        if root != subject and not await self._answers(root):
            raise NoSuchActor(f"there is no actor {root}")
        self._refused.discard(subject)
        self.bus.send(subject, data)
        await self.bus.flush()
        if subject in self._refused:
            raise self._forbidden(f"publish to {subject}")

    async def request_raw(self, subject: str, data: bytes, timeout: float | None) -> bytes:
        check_subject(subject)
        self._check_size(data)
        call = RawCall(subject.removeprefix("actor."), self.node.loop.create_future(), self)
        self._begin(call, data)
        self.node.deadlines.add(call, self.node.ask_timeout if timeout is None else timeout)
        try:
            return await call.future
        except asyncio.CancelledError:
            self.cancel(call)
            raise
        finally:
            self.done(call)

    async def exchange(self, subject: str, data: bytes, timeout: float) -> bytes:
        """One request beyond the actors and its answer, as bytes. Raises NotReachable where nobody takes it."""
        call = RawCall(subject, self.node.loop.create_future(), self)
        self.bus.check()
        call.reply = reply = f"{self.inbox}{next(self._numbers)}"
        self._conversations[reply] = call
        self.bus.send(subject, data, reply)
        try:
            async with asyncio.timeout(timeout):
                return await call.future
        except (TimeoutError, NoSuchActor):
            raise NotReachable(f"no daemon is on the bus at {self.options.url}") from None
        finally:
            self.done(call)

    async def stream_raw(self, subject: str, data: bytes, timeout: float | None) -> AsyncIterator[bytes]:
        check_subject(subject)
        self._check_size(data)
        call = RawStream(subject.removeprefix("actor."), self)
        self._begin(call, data)
        try:
            while True:
                yield await call.next(self.node.ask_timeout if timeout is None else timeout)
                if call.ended:
                    return
        finally:
            if not call.ended:
                self.cancel(call)
            self.done(call)

    async def subscribe(self, listener: Listener) -> None:
        def take(subject: str, reply: str, data: bytes) -> None:
            listener.take_bytes(subject, data)

        listener.subscription = await self._subscribe(listener.pattern, take)

    async def _subscribe(self, subject: str, receive: Receive) -> Any:
        """Returns once the server has it. Raises Forbidden where it refuses."""
        self.bus.check()
        self._refused.discard(subject)
        subscription = await self.bus.subscribe(subject, receive)
        await self.bus.flush()
        if subject in self._refused:
            self._unsubscribe(subscription)
            raise self._forbidden(f"listen to {subject}")
        return subscription

    def unsubscribe(self, listener: Listener) -> None:
        if listener.subscription is not None:
            self._unsubscribe(listener.subscription)

    def _unsubscribe(self, subscription: Any) -> None:
        task = self.node.loop.create_task(self.bus.unsubscribe(subscription))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def expired(self, conversation: Conversation) -> None:
        """A deadline passed: say so here, and let the other side stop."""
        if self.bus.is_up:
            conversation.fail(DeadlineExceeded(f"no answer from {conversation.address} in time"))
            self.cancel(conversation)
        else:
            self.cancel(conversation)
            conversation.fail(NotReachable(f"the NATS server at {self.options.url} was away until the deadline passed"))
