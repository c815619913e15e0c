"""A node's own actor, `node.<name>`: spawns, stops and lists for whoever asks over the bus."""

from __future__ import annotations

import traceback

import msgspec

from ..schemas.runtime import (
    ActorList,
    ListActors,
    ListNodes,
    NodeList,
    Spawn,
    Spawned,
    StopActor,
    Stopped,
)
from .actor import Actor, NoConfig, handler
from .errors import CallboardError, HandlerFailed, NoSuchActor, UsageError
from .log import log
from .placement import Process
from .supervision import Restart


class NodeControl(Actor[NoConfig]):
    """Present on every node that is on the bus."""

    @handler(concurrent=True)
    async def spawn_actor(self, message: Spawn) -> Spawned:
        by = self._sender()
        where = Process() if message.process else None
        restart = Restart(message.restart)
        try:
            ref = await self.node.spawn(message.kind, message.config, name=message.name, where=where, restart=restart)
        except CallboardError as error:
            self._audit("spawn", message.name or message.kind, by, outcome=error.code)
            raise
        except Exception as error:  # of somebody's `started`, or of their module: not a crash of this actor
            log.error("%s could not be started", message.name or message.kind, exc_info=error)
            raise HandlerFailed(
                f"{message.name or message.kind} could not be started: {type(error).__name__}: {error}",
                detail="".join(traceback.format_exception(error)),
            ) from error
        self._audit("spawn", ref.address, by, detail=f"kind {message.kind}")
        if self.node.roster is not None and restart is Restart.PERMANENT:
            self.node.roster.add(msgspec.structs.replace(message, name=ref.address))
        return Spawned(ref.address)

    @handler(concurrent=True)
    async def stop_actor(self, message: StopActor) -> Stopped:
        address = message.address
        if address.startswith("node."):
            raise UsageError(
                f"{address} is a node's own actor, which ends with its process",
                hint="`callboard down` stops the daemon and all it started",
            )
        by = self._sender()
        # Forgotten first: one that waits to be brought back is not there to be stopped, and must not come any more.
        was_known = self.node.roster is not None and self.node.roster.remove(address)
        try:
            await self.node.stop(address, message.timeout)
        except NoSuchActor:
            if not was_known:
                raise
        self._audit("stop", address, by)
        return Stopped(address)

    def _sender(self) -> str:
        """Who asks, as it says of itself; which machine and process that is, the hellos of the nodes tell."""
        sender = self._cell.sender() or "a program without a name"
        links = self.node.links
        hello = links.peers.get(sender) if links is not None else None
        return sender if hello is None else f"{sender} (pid {hello.info.pid} on {hello.info.host})"

    def _audit(self, action: str, what: str, by: str, *, detail: str = "", outcome: str = "done") -> None:
        if self.node.audit is not None:
            self.node.audit.record(action, what, by=by, proven=False, detail=detail, outcome=outcome)

    @handler
    async def list_actors(self, message: ListActors) -> ActorList:
        prefix = message.prefix
        found = [
            address
            for address in self.node.actors
            if not prefix or address == prefix or address.startswith(f"{prefix}.")
        ]
        page = sorted(address for address in found if address > message.after)[: message.limit]
        return ActorList(tuple(self.node.actors[address].info() for address in page), len(found), self.node.name)

    @handler
    async def list_nodes(self, message: ListNodes) -> NodeList:
        """The nodes this one has heard of, itself first."""
        links = self.node.require_links()
        others = sorted((hello.info for hello in links.peers.values()), key=lambda info: info.node)
        return NodeList((self.node.info(), *others))
