"""On which node an actor is, for policies that speak of nodes."""

from __future__ import annotations

from ...runtime.errors import CallboardError
from ...runtime.node import Node
from ...schemas.runtime import ListNodes

MAIN = "node.main"
TIMEOUT_S = 5.0


class Nodes:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def of(self, address: str) -> str | None:
        """The node that hosts the actor now; None where nobody says. Asked anew each time, since actors move."""
        root = address.partition(".")[0]
        try:
            listed = await self._node.actor(MAIN).ask(ListNodes(), TIMEOUT_S)
        except CallboardError:
            return None
        return next((node.node for node in listed.nodes if root in node.roots), None)
