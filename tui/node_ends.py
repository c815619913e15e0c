"""What stopping and restarting mean for a node: an actor's own process, a machine that joined, the daemon, a
program."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from ..runtime.client import MAIN
from ..runtime.errors import UsageError
from ..schemas.runtime import ActorInfo, NodeInfo

_NAMED = 4


class NodeKind(enum.Enum):
    """By whom a node's process lives, and so what can be done to it."""

    DAEMON = "the daemon"
    PROCESS = "an actor's own process"
    JOINED = "joined"
    PROGRAM = "somebody's program"


@dataclass(frozen=True)
class NodeEnd:
    """`below`: the actors that it hosts, beside the node's own and, of an actor's process, that actor."""

    info: NodeInfo
    kind: NodeKind
    below: tuple[str, ...]

    @classmethod
    def of(cls, info: NodeInfo, seen: Iterable[ActorInfo]) -> NodeEnd:
        """`seen`: what each node says of its actors, so that one in a process of its own is there twice: a program may
        host an actor of its own name too, but nobody supervises that from elsewhere."""
        seen = list(seen)
        hosted = sorted({one.address for one in seen if one.node == info.node and one.place == "here"})
        is_process = any(one.address == info.node and one.place != "here" for one in seen)
        if f"node.{info.node}" == MAIN:
            kind = NodeKind.DAEMON
        elif info.accepts:
            kind = NodeKind.JOINED
        elif is_process:
            kind = NodeKind.PROCESS
        else:
            kind = NodeKind.PROGRAM
        own = {f"node.{info.node}", info.node if kind is NodeKind.PROCESS else ""}
        return cls(info, kind, tuple(address for address in hosted if address not in own))

    @property
    def where(self) -> str:
        return f"process {self.info.pid} on {self.info.host}"

    def stopping(self) -> tuple[str, str]:
        """The question to ask first, and what will end. Raises UsageError where it is not ours to end."""
        name = self.info.node
        if self.kind is NodeKind.PROCESS:
            with_it = f" With it end {_listed(self.below)}." if self.below else ""
            return (
                f"End the process of {name}?",
                f"It is {self.where}. Its actor finishes what it has within ten seconds and is not started again."
                + with_it,
            )
        if self.kind is NodeKind.JOINED:
            roots = tuple(address for address in self.below if "." not in address)
            move = f" {_listed(roots)} move to other nodes that fit, or wait for one." if roots else ""
            detail = f"It is {self.where}. It takes nothing new, finishes what it has, and its process ends.{move}"
            return f"Drain {name}?", detail
        if self.kind is NodeKind.DAEMON:
            raise UsageError(
                f"{name} is the daemon, {self.where}", hint="`callboard down` ends it and everything that it started"
            )
        raise UsageError(f"{name} is a program that nobody here started", hint=f"end {self.where} where it was started")

    def restarting(self) -> tuple[str, str]:
        """The same for a new process in its place."""
        name = self.info.node
        if self.kind is NodeKind.PROCESS:
            with_it = f" With it end {_listed(self.below)}." if self.below else ""
            return (
                f"Restart the process of {name}?",
                f"It is {self.where}. It ends once the message in hand is finished, and a new process takes its "
                f"place; what waits is handed back.{with_it}",
            )
        hints = {
            NodeKind.DAEMON: "`callboard down` and `callboard up` do; permanent actors come back with it",
            NodeKind.JOINED: f"x drains it; `callboard node` on {self.info.host} joins again",
            NodeKind.PROGRAM: f"start it again where it runs: {self.where}",
        }
        raise UsageError(f"{name} cannot be restarted from here", hint=hints[self.kind])


def _listed(addresses: tuple[str, ...]) -> str:
    shown = ", ".join(addresses[:_NAMED])
    return shown if len(addresses) <= _NAMED else f"{shown} and {len(addresses) - _NAMED} more"
