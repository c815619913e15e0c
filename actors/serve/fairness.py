"""Who is next: higher priorities first, and among equals whoever has been served least.

Each client has a counter of the tokens that were computed for it, and the waiting request of the client with the
lowest one goes first (the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models", OSDI
'24). A client that comes, or comes back, begins at the lowest counter of those that are there, so nobody saves up
credit while away; one that has used more keeps its own.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sequence import Sequence

# A generated token takes a pass over all weights, one of a prompt a part of it.
GENERATED_WEIGHT = 2.0
# Clients that have nothing under way are remembered, so that going away for a moment does not wipe a counter.
MAX_AWAY = 1024


class Account:
    """What a client was served. `num_active`: its sequences that wait or run."""

    __slots__ = ("client", "num_active", "served")

    def __init__(self, client: str) -> None:
        self.client = client
        self.served = 0.0
        self.num_active = 0


class Accounts:
    """The counters of all clients, over all replicas."""

    def __init__(self) -> None:
        self._active: dict[str, Account] = {}
        self._away: dict[str, Account] = {}  # who went away longest ago first

    def enter(self, client: str) -> Account:
        """A sequence of that client begins to wait."""
        account = self._active.get(client)
        if account is None:
            account = self._away.pop(client, None) or Account(client)
            lowest = min((other.served for other in self._active.values()), default=0.0)
            account.served = max(account.served, lowest)
            self._active[client] = account
        account.num_active += 1
        return account

    def leave(self, account: Account) -> None:
        """A sequence of that client is over."""
        account.num_active -= 1
        if not account.num_active:
            del self._active[account.client]
            self._away[account.client] = account
            if len(self._away) > MAX_AWAY:
                del self._away[next(iter(self._away))]


class _Level:
    """The waiting sequences of one priority."""

    __slots__ = ("clients", "resumed")

    def __init__(self) -> None:
        self.resumed: deque[Sequence] = deque()
        self.clients: dict[Account, deque[Sequence]] = {}


class FairQueue:
    """Waiting sequences. Those that ran before come first in their priority: their client has paid for them."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        """All, in no order that means anything."""
        for level in self._levels.values():
            yield from level.resumed
            for waiting in level.clients.values():
                yield from waiting

    @property
    def top_priority(self) -> int | None:
        return max(self._levels, default=None)

    def append(self, sequence: Sequence) -> None:
        level = self._level(sequence.priority)
        waiting = level.clients.get(sequence.account)
        if waiting is None:
            waiting = level.clients[sequence.account] = deque()
        waiting.append(sequence)
        self._size += 1

    def resume(self, sequence: Sequence) -> None:
        """Queue one that had to give way, before all others of its priority."""
        self._level(sequence.priority).resumed.appendleft(sequence)
        self._size += 1

    def remove(self, sequence: Sequence) -> None:
        level = self._levels[sequence.priority]
        waiting = level.clients.get(sequence.account)
        if waiting is not None and sequence in waiting:
            waiting.remove(sequence)
            if not waiting:
                del level.clients[sequence.account]
        else:
            level.resumed.remove(sequence)
        if not level.clients and not level.resumed:
            del self._levels[sequence.priority]
        self._size -= 1

    def candidates(self) -> Iterator[Sequence]:
        """All, the one to be served next first. The one at hand may be removed, and its client's counter may rise."""
        for priority in sorted(self._levels, reverse=True):
            level = self._levels[priority]
            yield from _walk(level.resumed)
            walks = [_Walk(account, waiting) for account, waiting in level.clients.items()]
            heapq.heapify(walks)
            while walks:
                walk = walks[0]
                yield walk.head
                if walk.advance():
                    heapq.heapreplace(walks, walk)
                else:
                    heapq.heappop(walks)

    def _level(self, priority: int) -> _Level:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _Level()
        return level


class _Walk:
    """One client's sequences in turn, ordered among other clients' by what it was served, then by age."""

    __slots__ = ("account", "head", "index", "served", "waiting")

    def __init__(self, account: Account, waiting: deque[Sequence]) -> None:
        self.account = account
        self.waiting = waiting
        self.index = 0
        self.head = waiting[0]
        self.served = account.served

    def advance(self) -> bool:
        """Go on to the next one, whether the head was removed or not; False at the end."""
        if self.index < len(self.waiting) and self.waiting[self.index] is self.head:
            self.index += 1
        if self.index >= len(self.waiting):
            return False
        self.head = self.waiting[self.index]
        self.served = self.account.served
        return True

    def __lt__(self, other: _Walk) -> bool:
        mine, others = (self.served, self.head.sequence_id), (other.served, other.head.sequence_id)
        return mine < others


def _walk(waiting: deque[Sequence]) -> Iterator[Sequence]:
    index = 0
    while index < len(waiting):
        head = waiting[index]
        yield head
        if index < len(waiting) and waiting[index] is head:
            index += 1
