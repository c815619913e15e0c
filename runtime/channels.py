"""Credit for plain messages over the bus, so that what is accepted always finds room in the mailbox.

A sender spends credit that the receiver granted and keeps room for. Credit that lies unused is void after a while on
the sender's side, and later on the receiver's, so a sender that died does not hold room for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..schemas.wire import Envelope, Op
from .batches import Batch

if TYPE_CHECKING:
    from .calls import GrantCall
    from .cell import Cell
    from .links import Links

WINDOW = 1024
SENDER_LEASE_S = 5.0
RECEIVER_LEASE_S = 15.0


class Channel:
    """The sender's side: credit towards one actor."""

    __slots__ = ("_head", "_links", "address", "asking", "batch", "credit", "granted_at")

    def __init__(self, address: str, links: Links) -> None:
        self.address = address
        self._links = links
        self._head = msgspec.msgpack.encode(Envelope[None](Op.TELL, sender=links.node.name))
        self.batch = Batch(links.node.loop, self._send, links.bus.max_payload // 2)
        self.credit = 0
        self.granted_at = 0.0
        self.asking: GrantCall | None = None

    def take(self, now: float) -> bool:
        """Spend one, if there is one that is not stale."""
        if self.left(now) <= 0:
            return False
        self.credit -= 1
        return True

    @property
    def is_low(self) -> bool:
        return self.credit <= WINDOW // 2 and self.asking is None

    def grant(self, credit: int, now: float) -> None:
        # A grant that took long must not renew what the receiver has taken back meanwhile.
        self.credit = self.left(now) + credit
        self.granted_at = now

    def reset(self) -> None:
        self.credit = 0

    def left(self, now: float) -> int:
        """The credit that is not stale."""
        if now - self.granted_at > SENDER_LEASE_S:
            self.credit = 0
        return self.credit

    def _send(self, first: int, tail: bytes) -> None:
        self._links.bus.send(f"actor.{self.address}", self._head[:-1] + tail)


class Ledger:
    """The receiver's side: the room of one actor's mailbox that is promised to senders."""

    __slots__ = ("_cell", "_promised")

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._promised: dict[str, tuple[int, float]] = {}

    def settle(self, sender: str, remaining: int, now: float) -> None:
        """A sender says how much credit it has left: so much is promised to it, and no more than there is room for.

        To be called in the order in which messages come, since those that are on their way here are not in it.
        """
        promised = self._promised.get(sender, (0, 0.0))[0]
        self._promise(sender, max(0, min(remaining, promised + max(0, self._room), WINDOW)), now)

    def grant(self, sender: str, now: float) -> int:
        """Promise room to a sender. Returns how much more than it has; 0 when there is none."""
        if self._room <= 0:
            self.reclaim(now)
        promised = self._promised.get(sender, (0, 0.0))[0]
        room = self._room
        more = max(0, min(WINDOW - promised, max(1, room // 2))) if room > 0 else 0
        if more:
            self._promise(sender, promised + more, now)
        return more

    def spend(self, sender: str, count: int) -> None:
        """Messages came on credit: the room that was kept is free for them now."""
        promised, at = self._promised.get(sender, (0, 0.0))
        spent = min(promised, count)
        self._promised[sender] = (promised - spent, at)
        self._cell.held -= spent

    def reclaim(self, now: float) -> None:
        """Take back what was promised long ago and never used."""
        for sender, (promised, at) in tuple(self._promised.items()):
            if now - at > RECEIVER_LEASE_S:
                del self._promised[sender]
                self._give_back(promised)

    def clear(self) -> None:
        promised = sum(promised for promised, _ in self._promised.values())
        self._promised.clear()
        self._give_back(promised)

    @property
    def promised(self) -> int:
        return sum(promised for promised, _ in self._promised.values())

    @property
    def _room(self) -> int:
        return self._cell.capacity - len(self._cell.inbox) - self._cell.held

    def _promise(self, sender: str, promised: int, now: float) -> None:
        before = self._promised.get(sender, (0, 0.0))[0]
        self._promised[sender] = (promised, now)
        if promised < before:
            self._give_back(before - promised)
        else:
            self._cell.held += promised - before

    def _give_back(self, count: int) -> None:
        if count:
            self._cell.held -= count
            self._cell.room_made(count)
