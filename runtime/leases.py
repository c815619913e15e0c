"""What a node offers to others, and the leases under which they have actors here.

An actor that another node supervises lives here on a lease: each hello of that node renews it, and names the actors
that it keeps here. When the node is gone, silent, or keeps the actor no more (it may have given this node up and
started the actor elsewhere), the actor ends. The lease runs out sooner than a silent node counts as gone, so that two
of one name never live at once on nodes whose clocks run alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..schemas.runtime import NodeHello, Spawn
from .errors import NoNodeFits, NoSuchActor
from .log import log

if TYPE_CHECKING:
    from .node import Node

LEASE_S = 10.0
# How long an actor whose lease has ended may take to finish.
LAST_WORK_S = 1.0


@dataclass(frozen=True)
class Offer:
    """What others may place here: `memory` in bytes and `cpus` in all, 0 for what the machine has.

    `signers` are the public keys of those whose code a kind may run here; what is signed, and how, is the kind's to
    check. Each is a label too (`signer_label`), so that such an actor is placed where it has a chance.
    """

    labels: tuple[str, ...] = ()
    memory: int = 0
    cpus: float = 0.0
    signers: tuple[str, ...] = ()

    @property
    def all_labels(self) -> tuple[str, ...]:
        return (*self.labels, *(signer_label(signer) for signer in self.signers))


def node_label(name: str) -> str:
    """The label that each node has by itself, so that an actor may be placed on that one."""
    return f"node={name}"


def signer_label(signer: str) -> str:
    """The label of a node that runs what this signer signed."""
    return f"signer={signer}"


@dataclass
class Lease:
    """`hello` is the number of the last hello that its holder had sent when it asked."""

    holder: str
    hello: int
    memory: int
    cpus: float
    granted: float


class Leases:
    """The actors of one node that other nodes supervise."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._leases: dict[str, Lease] = {}
        self._void: set[str] = set()
        self._checked = math.inf
        self.held = False

    def __len__(self) -> int:
        return len(self._leases)

    def is_void(self, address: str) -> bool:
        """Whether an actor's lease has run out and somebody else may have it, though it has not quite ended here.

        A process that stood still finds this out with the first message that it reads, before it handles any.
        """
        now = self._node.loop.time()
        if now - self._checked > LEASE_S:
            self.check(now)
        return address.partition(".")[0] in self._void

    def free(self, offer: Offer) -> tuple[int, float]:
        """The bytes of memory and the CPUs that nothing here was promised."""
        import os

        import psutil

        machine = psutil.virtual_memory()
        left = (offer.memory or machine.total) - sum(lease.memory for lease in self._leases.values())
        cpus = (offer.cpus or os.cpu_count() or 1) - sum(lease.cpus for lease in self._leases.values())
        return max(0, min(left, machine.available)), max(0.0, cpus)

    def grant(self, spawn: Spawn) -> None:
        """Keep what the actor was promised. Raises NoNodeFits where it is not there, or nothing is offered at all."""
        offer = self._node.offer
        if offer is None:
            raise NoNodeFits(f"node {self._node.name} takes no actors of others")
        if missing := set(spawn.labels) - {*offer.all_labels, node_label(self._node.name)}:
            raise NoNodeFits(f"node {self._node.name} has no label {', '.join(sorted(missing))}")
        memory, cpus = self.free(offer)
        if spawn.memory > memory or spawn.cpus > cpus:
            raise NoNodeFits(f"node {self._node.name} has {memory} bytes of memory and {cpus:g} CPUs left")
        if spawn.name not in self._node.actors:
            now = self._node.loop.time()
            self._leases[spawn.name] = Lease(spawn.lease, spawn.lease_hello, spawn.memory, spawn.cpus, now)
            self._checked = min(self._checked, now)
            self.held = True

    def drop(self, address: str) -> None:
        self._leases.pop(address, None)
        self._void.discard(address)
        self.held = bool(self._leases or self._void)
        if not self._leases:
            self._checked = math.inf

    def heard(self, hello: NodeHello) -> None:
        """End what that node has kept and keeps no more."""
        name = hello.info.node
        for address, lease in tuple(self._leases.items()):
            if lease.holder != name or hello.number <= lease.hello:
                continue
            if hello.leaving or f"{address}@{self._node.name}" not in hello.info.keeps:
                self._end(address, f"node {name} keeps it no more", void=True)

    def holder_gone(self, name: str) -> None:
        for address, lease in tuple(self._leases.items()):
            if lease.holder == name:
                self._end(address, f"node {name}, which supervises it, is gone")

    def check(self, now: float) -> None:
        """End what nobody has renewed for too long: the bus is cut, or the holder is, or this process stood still."""
        stood_still = now - self._checked > LEASE_S
        links = self._node.require_links()
        for address, lease in tuple(self._leases.items()):
            silent = now - max(links.peers.heard(lease.holder), lease.granted) > LEASE_S
            if silent or (stood_still and now - lease.granted > LEASE_S):
                self._end(address, f"nothing was heard of node {lease.holder} for {LEASE_S:g} s", void=True)
        if self._leases:
            self._checked = now

    def _end(self, address: str, why: str, *, void: bool = False) -> None:
        log.warning("%s is ended: %s", address, why)
        del self._leases[address]
        if void:
            self._void.add(address)
        self._node.require_links().soon(self._stop(address))

    async def _stop(self, address: str) -> None:
        try:
            await self._node.stop(address, LAST_WORK_S)
        except NoSuchActor:
            log.debug("%s had ended by itself", address)
        self.drop(address)
