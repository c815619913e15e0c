"""Conversations whose keys and values are kept for their next turn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...schemas.serve import SessionInfo
from .prefix_tree import Node, PrefixTree


@dataclass(eq=False)
class Session:
    node: Node
    expires_at: float


class Sessions:
    """Pins the blocks of conversations until a time to live after their last turn.

    A pin keeps blocks from being evicted before others, no more: under real pressure the session whose last turn is
    longest ago is let go, and its next turn is computed anew. The same holds for one that expired, and for the oldest
    where there are more than `max_sessions`.
    """

    def __init__(self, tree: PrefixTree, max_sessions: int, ttl_s: float) -> None:
        self._tree = tree
        self._max_sessions = max_sessions
        self._ttl_s = ttl_s
        self._sessions: dict[str, Session] = {}  # the last turn longest ago first
        self._next_expiry = math.inf

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, name: object) -> bool:
        return name in self._sessions

    def keep(self, name: str, node: Node, now: float, ttl_s: float = 0.0) -> None:
        """A turn ended: keep what leads to `node`, as far as it is still there, instead of what was kept before."""
        while node.block < 0 and node.parent is not None:
            node = node.parent
        self._tree.pin(node)
        self.close(name)
        session = self._sessions[name] = Session(node, now + (ttl_s or self._ttl_s))
        self._next_expiry = min(self._next_expiry, session.expires_at)
        if len(self._sessions) > self._max_sessions:
            self.let_go_oldest()

    def pin(self, name: str, now: float, ttl_s: float = 0.0) -> bool:
        """Keep a session for that long from now; whether it was there."""
        session = self._sessions.get(name)
        if session is not None:
            session.expires_at = now + (ttl_s or self._ttl_s)
            self._next_expiry = min(self._next_expiry, session.expires_at)
        return session is not None

    def infos(self, now: float) -> list[SessionInfo]:
        return [
            SessionInfo(name, _depth(session.node), max(0.0, session.expires_at - now))
            for name, session in self._sessions.items()
        ]

    def close(self, name: str) -> bool:
        """Let go of a session; whether it was there."""
        session = self._sessions.pop(name, None)
        if session is not None:
            self._tree.unpin(session.node)
        return session is not None

    def expire(self, now: float) -> None:
        """Let go of those whose time is over."""
        if now < self._next_expiry:
            return
        for name in [name for name, session in self._sessions.items() if session.expires_at <= now]:
            self.close(name)
        self._next_expiry = min((session.expires_at for session in self._sessions.values()), default=math.inf)

    def let_go_oldest(self) -> bool:
        """Make room; False if there is no session left."""
        oldest = next(iter(self._sessions), None)
        return oldest is not None and self.close(oldest)

    def flush(self) -> None:
        """The cache is lost, and the tree flushed: nothing is kept any more."""
        self._sessions.clear()
        self._next_expiry = math.inf


def _depth(node: Node) -> int:
    """How many blocks lead to it, itself included."""
    depth = 0
    at: Node | None = node
    while at is not None and at.block >= 0:
        depth += 1
        at = at.parent
    return depth
