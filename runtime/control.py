"""A node's own actor, `node.<name>`: spawns, stops and lists for whoever asks over the bus."""

from __future__ import annotations

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
from .errors import UsageError
from .placement import Process
from .supervision import Restart


class NodeControl(Actor[NoConfig]):
    """Present on every node that is on the bus."""

    @handler(concurrent=True)
    async def spawn_actor(self, message: Spawn) -> Spawned:
        ref = await self.node.spawn(
            message.kind,
            message.config,
            name=message.name,
            where=Process() if message.process else None,
            restart=Restart(message.restart),
        )
        if self.node.roster is not None and message.restart == "permanent":
            self.node.roster.add(msgspec.structs.replace(message, name=ref.address))
        return Spawned(ref.address)

    @handler(concurrent=True)
    async def stop_actor(self, message: StopActor) -> Stopped:
        if message.address == self.address:
            raise UsageError(
                f"{message.address} is the node itself", hint="`callboard down` stops the daemon and all it started"
            )
        await self.node.stop(message.address, message.timeout)
        if self.node.roster is not None:
            self.node.roster.remove(message.address)
        return Stopped(message.address)

    @handler
    async def list_actors(self, message: ListActors) -> ActorList:
        prefix = message.prefix
        found = [
            child
            for address, child in self.node.actors.items()
            if not prefix or address == prefix or address.startswith(f"{prefix}.")
        ]
        return ActorList(tuple(child.info() for child in found[: message.limit]), len(found), self.node.name)

    @handler
    async def list_nodes(self, message: ListNodes) -> NodeList:
        """The nodes this one has heard of, itself first."""
        links = self.node.require_links()
        others = sorted((hello.info for hello in links.peers.values()), key=lambda info: info.node)
        return NodeList((self.node.info(), *others))
