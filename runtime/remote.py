"""An actor on another node, seen from the node that supervises it."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import anyio

from ..schemas.runtime import PROTOCOL, ActorInfo, Ended, NodeInfo, Spawn, StopActor, Terminated
from .errors import (
    ActorStopped,
    CallboardError,
    DeadlineExceeded,
    Disconnected,
    NameTaken,
    NoNodeFits,
    NoSuchActor,
    NotReachable,
    UnknownKind,
    from_info,
)
from .family import Child
from .leases import node_label
from .log import log
from .placement import ChildSpec, OnNode
from .supervision import Restart

if TYPE_CHECKING:
    pass

# Beyond the actor's own time, how long a node may take to say that it has stopped it.
STOP_PATIENCE_S = 5.0
# How often a name is tried again whose last bearer is about to end: its node's hello says when, if it comes.
NAME_RETRY_S = 1.0

# A node that answers so cannot take the actor, and another one may.
_TRY_ANOTHER = (NoSuchActor, ActorStopped, NoNodeFits, UnknownKind)


class RemoteChild(Child):
    """Picks a node, has it start the actor under a lease, and reports the end of that to the family."""

    __slots__ = ("_config", "_kind", "_node", "_starting", "_where", "host")

    def __init__(self, spec: ChildSpec, where: OnNode) -> None:
        super().__init__(spec.address, spec.restart, spec.family)
        spec.node.require_links()
        self._node = spec.node
        self._kind = spec.kind_name
        self._config = spec.config_text
        self._where = where
        self._starting: anyio.CancelScope | None = None
        self.host = ""

    @property
    def keeps(self) -> str:
        return f"{self.address}@{self.host}" if self.host else ""

    async def start(self) -> None:
        self.state = "starting"
        self.since = time.time()
        with anyio.CancelScope() as self._starting:
            try:
                await self._place()
            except BaseException:
                self._let_go()
                raise
            finally:
                self._starting = None
        if self.closed:
            raise ActorStopped(f"{self.address} was stopped while it started")
        self.state = "running"
        self._node.require_links().watch(self.address, self.address, link=False)

    async def _place(self) -> None:
        """On the first of the nodes that fit which takes it."""
        links, loop = self._node.require_links(), self._node.loop
        patience = None if self.restarts else self._where.patience
        until = None if patience is None else loop.time() + patience
        refusals: dict[str, CallboardError] = {}
        asked = False
        while True:
            host = self._pick(refusals)
            if host is not None:
                try:
                    return await self._start_on(host)
                except _TRY_ANOTHER as error:
                    log.info("%s is not placed on node %s: %s", self.address, host, error)
                    refusals[host] = error
                    continue
                except NameTaken:
                    if not self.restarts:
                        raise
                    await links.peers.news(NAME_RETRY_S)
                    continue
            left = None if until is None else until - loop.time()
            if left is not None and left <= 0:
                raise self._nobody(refusals)
            if not asked:
                log.info("%s waits for a node that fits", self.address)
                links.bus.send("nodes.who", b"")  # what is known of them may be some seconds old
                asked = True
            await links.peers.news(left)
            refusals.clear()  # they may have room by now

    async def _start_on(self, host: str) -> None:
        links, where = self._node.require_links(), self._where
        self.host = host  # before it is asked: a hello that goes out meanwhile must say so
        spawn = Spawn(
            self._kind,
            self.address,
            self._config,
            where.process,
            Restart.TEMPORARY.value,
            where.labels,
            where.memory,
            where.cpus,
            lease=self._node.name,
            lease_hello=links.peers.hello_number,
            takeover=self.restarts > 0,
            supervised=self.restart.value,
        )
        await self._node.actor(f"node.{host}").ask(spawn, timeout=where.ready_timeout)

    def _pick(self, refusals: dict[str, CallboardError]) -> str | None:
        fit = [
            hello.info
            for name, hello in self._node.require_links().peers.known.items()
            if name not in refusals and self._fits(hello.info)
        ]
        best = min(fit, key=lambda info: (len(info.roots), -info.memory, info.node), default=None)
        return None if best is None else best.node

    def _fits(self, info: NodeInfo) -> bool:
        where = self._where
        return (
            info.accepts
            and info.protocol == PROTOCOL
            and set(where.labels) <= {*info.labels, node_label(info.node)}
            and where.memory <= info.memory
            and where.cpus <= info.cpus
        )

    def _nobody(self, refusals: dict[str, CallboardError]) -> CallboardError:
        for error in refusals.values():
            if not isinstance(error, NoSuchActor | ActorStopped):
                return error
        where = self._where
        wanted = [*where.labels]
        wanted += [f"{where.memory} bytes of memory"] if where.memory else []
        wanted += [f"{where.cpus:g} CPUs"] if where.cpus else []
        return NoNodeFits(f"no node for {self.address}" + (f" has {', '.join(wanted)}" if wanted else ""))

    def terminated(self, event: Terminated, *, linked: bool) -> None:
        if self.closed or self.state != "running":
            return
        host = self._node.require_links().peers.known.get(self.host)
        error: CallboardError | None = None
        if event.reason is not Ended.STOPPED:
            error = from_info(event.error) if event.error is not None else ActorStopped(f"{self.address} is gone")
        elif host is None or not host.info.accepts:
            error = ActorStopped(f"node {self.host}, where {self.address} lived, left the bus")
        self.state = "crashed"
        log.error("%s on node %s ended%s", self.address, self.host, f": {error}" if error is not None else "")
        self._let_go()
        self.family.child_ended(self, error)

    def _let_go(self) -> None:
        """Say that the node need not keep it any more: it may have fallen silent only to us."""
        if self.host:
            self.host = ""
            self._node.require_links().peers.say_hello()

    async def stop(self, timeout: float) -> None:
        self.closed = True
        self.state = "stopping"
        if self._starting is not None:
            self._starting.cancel()
        elif self.host:
            self._node.require_links().unwatch(self.address, self.address)
            control = self._node.actor(f"node.{self.host}")
            with contextlib.suppress(NoSuchActor, ActorStopped):
                try:
                    await control.ask(StopActor(self.address, timeout), timeout=timeout + STOP_PATIENCE_S)
                except (DeadlineExceeded, Disconnected, NotReachable) as error:
                    log.error("node %s does not say whether it stopped %s: %s", self.host, self.address, error)
            self._let_go()
        self.state = "stopped"

    def info(self) -> ActorInfo:
        return ActorInfo(
            address=self.address,
            kind=self._kind,
            state=self.state,
            node=self._node.name,
            pid=0,
            restarts=self.restarts,
            place="remote",
            since=self.since,
            supervisor=self.family.owner,
        )
