"""Images, sounds and files on their way to and from a tool that can neither fetch nor hand out anything itself.

A tool's process has the role `tool`: it may ask no other node for a blob, nor put one into the object store. On its own
host it reads and writes the files that blobs are in. So the node that supervises it brings here what comes from
elsewhere, and stands for what the tool made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import msgspec

from ....runtime.errors import BlobGone
from ....schemas.tool import Media, ToolPiece, ToolProgress, ToolResult

if TYPE_CHECKING:
    from ....runtime.node import Node
    from ....schemas.blob import Blob

# How long what a tool gave stays here for who got it. Who needs it for longer holds it.
RESULT_S = 900.0

Answer = ToolProgress | ToolPiece | ToolResult


class Courier:
    """For one relay. What it adopted stays for its time also when the relay has ended."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._adopted: dict[str, Blob] = {}

    @asynccontextmanager
    async def brought(self, media: tuple[Media, ...]) -> AsyncIterator[None]:
        """Within the block, these are readable on this host. Raises BlobGone, BlobDamaged, Disconnected."""
        held: list[Blob] = []
        try:
            for medium in media:
                await self._node.blobs.hold(medium.blob)
                held.append(medium.blob)
            yield
        finally:
            if held:
                with anyio.CancelScope(shield=True):
                    for blob in held:
                        await self._node.blobs.release(blob)

    async def adopted(self, answer: Answer) -> Answer:
        """The answer, with this node as the owner of what it refers to."""
        if isinstance(answer, ToolProgress) or not any(medium.blob.id for medium in answer.media):
            return answer
        return msgspec.structs.replace(answer, media=tuple([await self._adopt(medium) for medium in answer.media]))

    async def _adopt(self, medium: Media) -> Media:
        blob = medium.blob
        if blob.id and blob.id not in self._adopted:
            blob = self._adopted[blob.id] = await self._node.blobs.adopt(blob, ttl=RESULT_S)
            self._node.loop.call_later(RESULT_S, self._let_go_soon, blob.id)
        return msgspec.structs.replace(medium, blob=self._adopted.get(blob.id, blob))

    def adopted_blob(self, blob_id: str) -> Blob:
        """Raises BlobGone where it was let go, or was never a result's."""
        blob = self._adopted.get(blob_id)
        if blob is None:
            raise BlobGone(f"blob {blob_id} is not here any more", hint="what a tool gives stays for some minutes")
        return blob

    async def let_go(self, blob_ids: Iterable[str]) -> None:
        """Who got them has read them."""
        for blob_id in blob_ids:
            blob = self._adopted.pop(blob_id, None)
            if blob is not None:
                await self._node.blobs.release(blob)

    def _let_go_soon(self, blob_id: str) -> None:
        if self._node.links is not None:
            self._node.links.soon(self.let_go((blob_id,)))
