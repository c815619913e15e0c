"""The names that a node answers for on the bus. An actor's name is its root's; each root has one owner."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..schemas.wire import Envelope, Op
from .calls import PingCall
from .errors import NameTaken

if TYPE_CHECKING:
    from .links import Links

CLAIM_TIMEOUT_S = 1.0


class Names:
    """Claims roots of addresses for one node, and gives them back."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._held: dict[str, list[Any]] = {}
        self._claiming: set[str] = set()

    async def claim(self, root: str) -> None:
        """Answer for `actor.<root>` and all below it. Raises NameTaken when somebody does already.

        Asked twice, since another node may be at it too: the one whose inbox comes first in the alphabet goes on.
        """
        if root in self._held:
            raise NameTaken(f"there is an actor {root} already")
        subscriptions = self._held[root] = []
        self._claiming.add(root)
        try:
            await self._check_free(root)
            for subject in (f"actor.{root}", f"actor.{root}.>"):
                subscriptions.append(await self._links.subscribe_to(subject, self._links.inbound.receive))
            await self._check_free(root)
        except BaseException:
            self.unclaim(root)
            if subscriptions:  # until they are gone we hear what is said to the one who got it, and keep quiet
                await asyncio.wait(self._links.leaving, timeout=CLAIM_TIMEOUT_S)
            self._links.inbound.early.pop(root, None)
            raise
        finally:
            self._claiming.discard(root)
        self._links.node.loop.call_soon(self._claimed, root)

    def _claimed(self, root: str) -> None:
        """In the next turn of the loop, when the actor is there."""
        self._links.peers.say_hello()
        for subject, reply, data in self._links.inbound.early.pop(root, ()):
            self._links.inbound.receive(subject, reply, data)

    async def _check_free(self, root: str) -> None:
        may_take = root in self._links.node.takes_over
        call = await self._ping(root)
        if call.silent and not may_take:
            # Somebody is too busy to answer, or we were, and the answer that nobody is there came late: ask again.
            call = await self._ping(root)
        if call.future.result() and not (call.silent and may_take):
            raise NameTaken(f"there is an actor {root} on the bus already")

    def has(self, root: str) -> bool:
        """Whether it is ours, beyond doubt."""
        return root in self._held and root not in self._claiming

    def holds(self, root: str, claimant: str) -> bool:
        """Whether a root is ours, there or about to be, as against somebody who claims it."""
        return root in self._held and (root not in self._claiming or self._links.inbox < claimant)

    def claiming(self, address: str) -> str:
        """The root of an address where it is not settled yet if we answer for it, else nothing."""
        root = address.partition(".")[0]
        return root if root in self._claiming else address if address in self._claiming else ""

    def unclaim(self, root: str) -> None:
        for subscription in self._held.pop(root, ()):
            self._links.unsubscribe_from(subscription)
        self._links.peers.say_hello()

    async def answers(self, root: str) -> bool:
        return (await self._ping(root)).future.result()

    async def _ping(self, root: str) -> PingCall:
        call = PingCall(root, self._links)
        self._links.request(call, Envelope(Op.PING, sender=self._links.inbox))
        self._links.node.deadlines.add(call, CLAIM_TIMEOUT_S)
        try:
            await call.future
        finally:
            self._links.done(call)
        return call

    def clear(self) -> None:
        """Give back all, so that who asks next for one of them is told that it is free."""
        for root in tuple(self._held):
            for subscription in self._held.pop(root):
                self._links.unsubscribe_from(subscription)
