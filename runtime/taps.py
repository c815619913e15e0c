"""Mirrors a node's messages to `tap.<address>` while somebody observes; unobserved it costs one comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..schemas.runtime import Tapped, TapRequest
from .log import log
from .topics import matches

if TYPE_CHECKING:
    from .bus import Bus
    from .deliveries import Delivery
    from .node import Node

_encode = msgspec.msgpack.Encoder().encode


class Taps:
    """What is observed on this node, and until when. Observers renew their request before it runs out."""

    def __init__(self, node: Node, bus: Bus) -> None:
        self._node = node
        self._bus = bus
        self._until: dict[str, float] = {}
        self._patterns: list[list[str]] = []

    def observe(self, request: TapRequest) -> None:
        self._until[request.pattern] = self._node.loop.time() + request.seconds
        self._update()

    def check(self, now: float) -> None:
        """Forget observers whose time ran out."""
        if any(until < now for until in self._until.values()):
            self._until = {pattern: until for pattern, until in self._until.items() if until >= now}
            self._update()

    def mirror(self, address: str, delivery: Delivery) -> None:
        tokens = address.split(".")
        if any(matches(pattern, tokens) for pattern in self._patterns):
            try:
                body = msgspec.Raw(_encode(delivery.message))
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                # Within a process it does its work all the same, and its sender is not to fail for being watched.
                log.warning("what %s got cannot be shown: %s", address, error)
                return
            tapped = Tapped(address, delivery.sender, body)
            self._node.topics.deliver(f"tap.{address}", tapped)
            self._bus.send(f"tap.{address}", _encode(tapped))

    def _update(self) -> None:
        self._patterns = [pattern.split(".") for pattern in self._until]
        self._node.taps = self if self._patterns else None
