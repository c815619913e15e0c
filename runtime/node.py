"""One process on the bus: the actors it hosts, their roots, and the way to all others."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from ..schemas.base import Message
from ..schemas.runtime import Ended, NodeInfo, Terminated
from ..schemas.trace import SpanKind
from .actor import NoConfig
from .cell import Cell
from .context import current_place
from .control import NodeControl
from .deadlines import DeadlineWheel
from .errors import CallboardError, ConfigError, NameTaken, NoStore, NoSuchActor, NotReachable
from .family import Child, Family
from .leases import Leases, Offer
from .placement import ChildSpec, Here, Where
from .refs import Ref
from .supervision import Restart, Supervision
from .topics import Listener, Topics, check_subject
from .tracing import Tracer

if TYPE_CHECKING:
    from .actor import Actor
    from .audit import Audit
    from .blobs import Blobs
    from .bus import BusOptions
    from .company import Company
    from .jetstream import JetStream
    from .links import Links
    from .roster import Roster
    from .settings import Settings
    from .taps import Taps

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ADDRESS = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_RESERVED = {"node", "inbox"}
# The daemon's node.
MAIN = "main"
ASK_TIMEOUT_S = 30.0
DRAIN_TIMEOUT_S = 10.0


class Node:
    """Hosts actors, and reaches all others through the bus when it has one.

    Use it as an async context manager: leaving it drains every actor it hosts (work in hand finishes or is handed
    back) within `drain_timeout` seconds each, then leaves the bus. Without `bus` the node is alone: its actors reach
    each other, and whatever is not here raises NoSuchActor.

    `kinds` resolves a kind's name to its class; `allow` are the modules whose classes may be named `module:Class`.
    `round_trip`, if given, is applied to each message between actors of the process: tests pass one that encodes and
    decodes, so that a message that would not survive the bus fails here too. `logs` is a folder for the output of
    processes it starts; without it they share its own. `offer` is what others may place on this node; without it,
    nothing. `blobs` is a folder for large values, shared with the other
    processes of this host (default: `blobs` in the cache folder).
    """

    def __init__(
        self,
        name: str = "",
        *,
        bus: BusOptions | None = None,
        allow: Sequence[str] = (),
        ask_timeout: float = ASK_TIMEOUT_S,
        drain_timeout: float = DRAIN_TIMEOUT_S,
        round_trip: Callable[[Any], Any] | None = None,
        logs: Path | None = None,
        offer: Offer | None = None,
        blobs: Path | None = None,
    ) -> None:
        self.name = checked_name(name) if name else f"client-{uuid.uuid4().hex[:10]}"
        self.ask_timeout = ask_timeout
        self.drain_timeout = drain_timeout
        self.round_trip = round_trip
        self.allow = tuple(allow)
        self.logs = logs
        self.offer = offer
        self.leases = Leases(self)
        # Names that may be claimed although somebody listens to them: their supervisor knows that it stands still.
        self.takes_over: set[str] = set()
        self.roster: Roster | None = None
        self.company: Company | None = None
        self.audit: Audit | None = None
        # Those that this process was told to go by; None: what `load_settings` finds where it stands.
        self.settings: Settings | None = None
        self.on_terminated: Callable[[Terminated], None] | None = None
        self.on_put_out: Callable[[CallboardError], None] | None = None
        # Begins to leave, where this process is the node's own to end; returns at once.
        self.on_drain: Callable[[], None] | None = None
        self.actors: dict[str, Child] = {}
        self.taps: Taps | None = None
        self.topics = Topics()
        self.tracer = Tracer(self.name)
        self.loop: asyncio.AbstractEventLoop
        self.deadlines: DeadlineWheel
        self.links: Links | None = None
        self._bus_options = bus
        self._roots: Family
        self._unnamed = 0
        self._jetstream: JetStream | None = None
        self._blobs: Blobs | None = None
        self._blob_folder = blobs

    # Coming and going

    async def __aenter__(self) -> Node:
        self.loop = asyncio.get_running_loop()
        self.deadlines = DeadlineWheel(self.loop, self.ask_timeout)
        self._roots = Family(self, Supervision(), None)
        if self._bus_options is not None:
            from .links import Links

            self.links = Links(self, self._bus_options)
            # Before the bus hears of it: whoever finds the node finds its actor.
            control = Cell(self, f"node.{self.name}", NodeControl, NoConfig(), Restart.PERMANENT, self._roots)
            await self._roots.add(control)
            try:
                await self.links.open()
            except BaseException:
                await self._roots.stop_all(0.0)
                await self.links.close()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.offer is not None and self.links is not None:
                self.offer = None
                self.links.peers.say_hello()  # what ends now does so because this node leaves
            await self._roots.stop_all(self.drain_timeout)
        finally:
            if self.links is not None:
                await self.links.detours.close()
            if self._blobs is not None:
                await self._blobs.close()
            if self.links is not None:
                if self.name != MAIN:
                    self.tracer.hand_over(self.links, f"node.{MAIN}")
                await self.links.close()
            self.topics.close()
            self.deadlines.close()

    @property
    def connected(self) -> bool:
        return self.links is not None

    @property
    def blobs(self) -> Blobs:
        """The way to large values: put them here, send the reference."""
        if self._blobs is None:
            from .blobs import Blobs

            self._blobs = Blobs(self, self._blob_folder)
        return self._blobs

    def info(self) -> NodeInfo:
        from .. import __version__

        roots = tuple(sorted(a for a, child in self.actors.items() if "." not in a and isinstance(child, Cell)))
        host, offer = socket.gethostname(), self.offer
        keeps = tuple(child.keeps for child in self.actors.values() if child.keeps)
        if offer is None:
            return NodeInfo(self.name, os.getpid(), host, __version__, roots, keeps=keeps)
        memory, cpus = self.leases.free(offer)
        return NodeInfo(
            self.name,
            os.getpid(),
            host,
            __version__,
            roots,
            accepts=True,
            labels=offer.all_labels,
            memory=memory,
            cpus=cpus,
            keeps=keeps,
        )

    # Actors

    def actor(self, address: str) -> Ref:
        """A reference to the actor of that address, wherever it lives. Raises ConfigError where it can be none's."""
        if not _ADDRESS.fullmatch(address):
            raise ConfigError(f"'{address}' is no address: it is names joined by dots, 'engine.scheduler' say")
        return Ref(address, self)

    async def spawn(
        self,
        kind: type[Actor[Any]] | str,
        config: msgspec.Struct | str | None = None,
        *,
        name: str = "",
        where: Where | None = None,
        restart: Restart = Restart.PERMANENT,
        supervised: Restart = Restart.TEMPORARY,
    ) -> Ref:
        """Start a root: an actor whose address is its bare name, supervised by the node itself.

        Each root has a restart budget of its own. `supervised` is how somebody beyond this node restarts it, which is
        what watchers are told. Raises what its `started` raised, NameTaken, UnknownKind, ConfigError, NoNodeFits.
        """
        return await self.spawn_in(self._roots, "", kind, config, name, where, restart, supervised)

    async def spawn_in(
        self,
        family: Family,
        parent: str,
        kind: type[Actor[Any]] | str,
        config: msgspec.Struct | str | None,
        name: str,
        where: Where | None,
        restart: Restart,
        supervised: Restart = Restart.TEMPORARY,
    ) -> Ref:
        place = where or Here()
        root = place.root or not parent
        name = checked_name(name) if name else self._new_name(kind, root)
        address = name if root else f"{parent}.{name}"
        if address in self.actors:
            raise NameTaken(f"there is an actor {address} already")
        if root and name in _RESERVED:
            raise ConfigError(f"'{name}' is no name for an actor: the runtime's own subjects begin with it")
        child = place.child(ChildSpec(self, address, kind, config, restart, family))
        child.supervised = supervised
        if root and self.links is not None and isinstance(child, Cell):
            await self.links.names.claim(address)
        try:
            await family.add(child)
        except BaseException:
            if root and self.links is not None and isinstance(child, Cell) and address not in self.actors:
                self.links.names.unclaim(address)
            raise
        return Ref(address, self)

    async def stop(self, address: str, timeout: float | None = None) -> None:
        """End an actor of this node: children first, within `timeout` seconds (default: the node's drain time)."""
        child = self.actors.get(address)
        if child is None:
            raise NoSuchActor(f"there is no actor {address} on node {self.name}")
        await child.family.remove(child, self.drain_timeout if timeout is None else timeout)

    async def restart(self, address: str, timeout: float | None = None) -> int:
        """End the present life of an actor of this node and begin the next. How often that has happened to it by now.

        Raises NoSuchActor, ActorStopped where it is just ending, and what its start raised.
        """
        child = self.actors.get(address)
        if child is None:
            raise NoSuchActor(f"there is no actor {address} on node {self.name}")
        await child.family.restart(child, self.drain_timeout if timeout is None else timeout)
        return child.restarts

    def resolve(self, kind: type[Actor[Any]] | str) -> type[Actor[Any]]:
        if isinstance(kind, type):
            return kind
        from .kinds import resolve_kind

        return resolve_kind(kind, self.allow)

    def _new_name(self, kind: type[Actor[Any]] | str, root: bool) -> str:
        base = kind if isinstance(kind, str) else kind.__name__
        self._unnamed += 1
        # A root's name must be free on the whole bus, where others make up names too.
        suffix = secrets.token_hex(4) if root and self.links is not None else str(self._unnamed)
        return f"{re.sub('[^a-z0-9]+', '-', base.lower()).strip('-')[:48]}-{suffix}"

    def forget(self, child: Child) -> None:
        """A child is gone for good; called by its family."""
        self.leases.drop(child.address)  # before the hello that `unclaim` says: it tells what is free
        if self.links is not None and "." not in child.address and isinstance(child, Cell):
            self.links.names.unclaim(child.address)
        if self.links is not None:
            self.links.inbound.forget(child.address)

    def give_up(self, address: str, error: CallboardError) -> bool:
        """An actor that this process supervises does not answer: end its present life, as a crash with that error.

        Its supervisor decides what becomes of it. False where nothing was done: it is not here, it is just starting,
        or it lives in this very process, where a thread that is stuck cannot be ended.
        """
        child = self.actors.get(address)
        return child is not None and child.give_up(error)

    # Watching

    def watch(self, watcher: str, target: str, *, link: bool) -> None:
        child = self.actors.get(target)
        if child is not None:
            if child.watchers is None:
                child.watchers = {}
            child.watchers[watcher] = link or child.watchers.get(watcher, False)
            if link:
                self._link_back(child, watcher)
        elif self.is_local(target) or self.links is None:
            self.notify(watcher, Terminated(target, Ended.NOT_THERE), linked=link)
        else:
            self.links.watch(watcher, target, link=link)

    def _link_back(self, child: Child, watcher: str) -> None:
        if not isinstance(child, Cell):
            self.require_links().link_back(watcher, child.address)
        elif (other := self.actors.get(watcher)) is not None:
            other.watchers = {**(other.watchers or {}), child.address: True}
            child.watching(watcher)

    def watch_root(self, address: str) -> None:
        """Have `on_terminated` called when that actor of this node ends."""
        child = self.actors.get(address)
        if child is None:
            self.notify("", Terminated(address, Ended.NOT_THERE), linked=False)
        else:
            child.watchers = {**(child.watchers or {}), "": False}

    def unwatch(self, watcher: str, target: str) -> None:
        child = self.actors.get(target)
        if child is not None:
            if child.watchers is not None:
                child.watchers.pop(watcher, None)
        elif self.links is not None:
            self.links.unwatch(watcher, target)

    def notify(self, watcher: str, event: Terminated, *, linked: bool) -> None:
        """Bring a `Terminated` to whoever watches: the process itself (""), an actor here, or one across the bus."""
        if not watcher and self.on_terminated is not None:
            self.on_terminated(event)
            return
        child = self.actors.get(watcher)
        if child is not None:
            child.terminated(event, linked=linked)
        elif self.links is not None and watcher.startswith("inbox."):
            self.links.endings.tell(watcher, event)

    def put_out(self, error: CallboardError) -> None:
        """The server does not let this node in any more: its listeners end with the error, `on_put_out` hears it."""
        self.topics.fail(error)
        if self.on_put_out is not None:
            self.on_put_out(error)

    # The way to others

    def is_local(self, address: str) -> bool:
        """Whether an address is under the care of this node, there or not."""
        root = address.partition(".")[0]
        return root in self.actors and isinstance(self.actors[root], Cell)

    def remote(self, address: str) -> Links:
        """What reaches an address that is not hosted here. Raises NoSuchActor if it could only be here."""
        if self.links is None or self.is_local(address):
            raise NoSuchActor(f"there is no actor {address}")
        return self.links

    async def publish(self, subject: str, message: Message) -> None:
        """Publish on a subject, `topic.news` say, to all that listen, here and across the bus."""
        check_subject(subject)
        trace = current_place.get().trace
        if trace is not None and not trace.sending:
            with self.tracer.sending(trace, SpanKind.PUBLISH, message, subject):
                return await self.publish(subject, message)
        self.topics.deliver(subject, message, trace)
        if self.links is not None:
            await self.links.publisher.publish(subject, message)

    @asynccontextmanager
    async def listen(self, pattern: str, *types: type[Message], size: int = 1024) -> AsyncIterator[Listener]:
        """Listen to subjects that match `pattern` (`*` is one token, `>` is all that follow).

        Iterating gives `(subject, message)` pairs: messages of the given types, decoded, or with no types plain
        dictionaries. What does not fit in `size` waiting messages is dropped and counted in `dropped`.
        """
        check_subject(pattern, pattern=True)
        listener = Listener(pattern, types, size, self.tracer)
        self.topics.add(listener)
        try:
            if self.links is not None:
                await self.links.subscribe(listener)
            yield listener
        finally:
            self.topics.remove(listener)
            if self.links is not None:
                self.links.unsubscribe(listener)

    @property
    def jetstream(self) -> JetStream:
        """Durable storage on the bus. Raises NoStore where the node is alone; what the server lacks shows in use."""
        if self._jetstream is None:
            from .jetstream import JetStream

            if self.links is None:
                raise NoStore("this node is alone, so it has nowhere to keep anything: it was started without a bus")
            self._jetstream = JetStream(self.links.bus, self.links.bus_name, self.ask_timeout)
        return self._jetstream

    def require_links(self) -> Links:
        if self.links is None:
            raise NotReachable("this node is alone: it was started without a bus")
        return self.links


def checked_name(name: str) -> str:
    """One token of an address. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"'{name}' is no name for an actor: use letters, digits, '-' and '_', at most 64")
    return name
