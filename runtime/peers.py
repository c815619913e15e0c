"""The other nodes on the bus: who is there, who went, who fell silent."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec

from ..schemas.runtime import PROTOCOL, NodeDown, NodeHello, TapRequest
from .errors import ActorStopped, CallboardError
from .log import log
from .messages import UNDECODABLE

if TYPE_CHECKING:
    from .links import Links

HELLO_EVERY_S = 5.0
# A node that says nothing for so long is taken for gone.
SILENT_NODE_S = 15.0
# A node that we keep actors on is asked with each beat; it is gone when so often in a row nobody answers to its name.
MAX_MISSES = 2

_encode = msgspec.msgpack.Encoder().encode


class Peers:
    """What one node knows of the others, and tells them of itself.

    `known` has the last hello of each by its name; `hello_number` counts those of this node.
    """

    def __init__(self, links: Links) -> None:
        self.known: dict[str, NodeHello] = {}
        self.hello_number = 0
        self._links = links
        self._node = links.node
        self._heard: dict[str, float] = {}
        self._last_hello = 0.0
        self._misses: dict[str, int] = {}
        self._news: asyncio.Future[None] | None = None
        self._hello_decoder = msgspec.msgpack.Decoder(NodeHello)
        self._down_decoder = msgspec.msgpack.Decoder(NodeDown)
        self._tap_decoder = msgspec.msgpack.Decoder(TapRequest)

    def greet(self) -> None:
        """Say that we are there, and ask who else is."""
        if self._links.identity.may_publish("nodes.who"):
            self._links.bus.send("nodes.who", b"")
        self.say_hello()
        self._last_hello = self._node.loop.time()

    def back(self, now: float) -> None:
        """The server is back: nobody was silent while it was away."""
        self._heard = dict.fromkeys(self._heard, now)
        self.say_hello()

    def say_hello(self, *, leaving: bool = False) -> None:
        links = self._links
        if not links.names.has(f"node.{self._node.name}") or not links.identity.may_publish("nodes.hello"):
            return  # the name may be another's, whose word this would be taken for
        self.hello_number += 1
        links.bus.send("nodes.hello", _encode(NodeHello(self._node.info(), leaving, self.hello_number)))

    def receive(self, subject: str, reply: str, data: bytes) -> None:
        with contextlib.suppress(*UNDECODABLE):
            match subject:
                case "nodes.hello":
                    self._on_hello(self._hello_decoder.decode(data))
                case "nodes.down":
                    self._on_down(self._down_decoder.decode(data))
                case "nodes.tap":
                    self._links.taps.observe(self._tap_decoder.decode(data))
                case "nodes.who":
                    self.say_hello()

    def _on_hello(self, hello: NodeHello) -> None:
        name = hello.info.node
        known = self.known.get(name)
        if known is not None and (hello.leaving or known.info.pid != hello.info.pid):
            ended = ActorStopped(f"node {name} left the bus")
            self._links.roots_gone(set(known.info.roots) | {f"node.{name}"}, NodeDown(name, error=ended.to_info()))
            self._node.leases.holder_gone(name)
        if known is None and hello.info.protocol != PROTOCOL:
            log.error(
                "node %s (callboard %s) speaks protocol %d, this one %d: they do not understand each other",
                *(name, hello.info.version, hello.info.protocol, PROTOCOL),
            )
        self._node.leases.heard(hello)
        if hello.leaving:
            self.known.pop(name, None)
            self._heard.pop(name, None)
        else:
            self.known[name] = hello
            self._heard[name] = self._node.loop.time()
        self._tell_news()

    def heard(self, name: str) -> float:
        """When that node last gave a sign of life, in the loop's time."""
        return self._heard.get(name, 0.0)

    async def news(self, timeout: float | None) -> None:
        """Wait until a node came, went or changed, at most so many seconds."""
        if self._news is None:
            self._news = self._node.loop.create_future()
        await asyncio.wait([self._news], timeout=timeout)

    def _tell_news(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            news.set_result(None)

    def _on_down(self, down: NodeDown) -> None:
        self._node.leases.holder_gone(down.node)
        known = self.known.pop(down.node, None)
        self._heard.pop(down.node, None)
        roots = {*down.roots, f"node.{down.node}", *(known.info.roots if known is not None else ())}
        self._links.roots_gone(roots, down)
        self._tell_news()

    def down(self, event: NodeDown) -> None:
        """Announce that a process of ours is gone."""
        self._links.bus.send("nodes.down", _encode(event))
        self._on_down(event)

    def beat(self, now: float) -> None:
        """Now and then: say that we are there, feel the pulse of nodes that we keep actors on, forget silent ones."""
        for host in {child.keeps.partition("@")[2] for child in self._node.actors.values() if child.keeps}:
            self._links.soon(self._feel_pulse(host))
        if now - self._last_hello < HELLO_EVERY_S:
            return
        self._last_hello = now
        self.say_hello()
        for name in [n for n, heard in self._heard.items() if now - heard > SILENT_NODE_S]:
            silent = ActorStopped(f"node {name} has given no sign of life for {SILENT_NODE_S:g} s")
            self._on_down(NodeDown(name, error=silent.to_info()))

    async def _feel_pulse(self, host: str) -> None:
        try:
            is_there = await self._links.names.answers(f"node.{host}")
        except CallboardError as error:
            log.debug("whether node %s is there cannot be seen: %s", host, error)
            return
        self._misses[host] = 0 if is_there else self._misses.get(host, 0) + 1
        if self._misses[host] >= MAX_MISSES:
            del self._misses[host]
            self.down(NodeDown(host, error=ActorStopped(f"node {host} is gone").to_info()))
