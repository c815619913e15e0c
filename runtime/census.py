"""Which actors there are, as their own nodes list them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from ..schemas.runtime import ActorInfo, ListActors
from .errors import ActorStopped, DeadlineExceeded, NoSuchActor

if TYPE_CHECKING:
    from .node import Node

# A node that does not list its actors by then is left out.
LIST_TIMEOUT_S = 3.0
# A page of actors is well within the least payload that a server is set to.
ACTORS_PER_PAGE = 1000


async def actors_of(node: Node, nodes: Iterable[str], prefix: str = "") -> list[ActorInfo]:
    """Every actor of those nodes, or those below `prefix`, by address. A node that does not answer is left out.

    An actor in a process of its own is there once: as its own node sees it, and with its supervisor's count of
    restarts, and its supervisor.
    """
    found: dict[str, ActorInfo] = {}
    for info in await seen_by(node, nodes, prefix):
        known = found.get(info.address)
        if known is not None and known.place != info.place:
            own = info if info.place == "here" else known
            info = msgspec.structs.replace(
                own, restarts=max(info.restarts, known.restarts), supervisor=info.supervisor or known.supervisor
            )
        found[info.address] = info
    return sorted(found.values(), key=lambda info: info.address)


async def seen_by(node: Node, nodes: Iterable[str], prefix: str = "") -> list[ActorInfo]:
    """What each of those nodes says it has: an actor in a process of its own twice. A node that left meanwhile, or is
    stuck, says nothing."""
    listings = await asyncio.gather(*(_list_node(node, name, prefix) for name in nodes))
    return [info for listing in listings for info in listing]


async def actors_around(node: Node, prefix: str = "") -> list[ActorInfo]:
    """The same of `node` itself and of all nodes that it has heard of. It needs no daemon, but a node's role."""
    peers = node.links.peers.known if node.links is not None else {}
    return await actors_of(node, {node.name, *peers}, prefix)


async def _list_node(node: Node, name: str, prefix: str) -> list[ActorInfo]:
    found: list[ActorInfo] = []
    control = node.actor(f"node.{name}")
    with contextlib.suppress(NoSuchActor, ActorStopped, DeadlineExceeded):
        while True:
            after = found[-1].address if found else ""
            page = await control.ask(ListActors(prefix, ACTORS_PER_PAGE, after), timeout=LIST_TIMEOUT_S)
            found.extend(page.actors)
            if len(page.actors) < ACTORS_PER_PAGE:
                break
    return found
