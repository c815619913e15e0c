"""Images, sounds and files on their way to and from a tool that can neither fetch nor hand out anything itself.

A tool's process has the role `tool`: it may ask no other node for a blob, nor put one into the object store. On its own
host it reads and writes the files that blobs are in. So the node that supervises it brings here what comes from
elsewhere, and stands for what the tool made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import msgspec

from ....schemas.tool import Media, ToolPiece, ToolProgress, ToolResult

if TYPE_CHECKING:
    from ....runtime.node import Node
    from ....schemas.blob import Blob

# How long what a tool gave stays here for who got it. Who needs it for longer holds it.
RESULT_S = 900.0

Answer = ToolProgress | ToolPiece | ToolResult


@asynccontextmanager
async def brought(node: Node, media: tuple[Media, ...]) -> AsyncIterator[None]:
    """Within the block, these are readable on this host. Raises BlobGone, BlobDamaged, Disconnected."""
    held: list[Blob] = []
    try:
        for medium in media:
            await node.blobs.hold(medium.blob)
            held.append(medium.blob)
        yield
    finally:
        if held:
            with anyio.CancelScope(shield=True):
                for blob in held:
                    await node.blobs.release(blob)


async def adopted(node: Node, answer: Answer) -> Answer:
    """The answer, with this node as the owner of what it refers to."""
    if isinstance(answer, ToolProgress) or not any(medium.blob.id for medium in answer.media):
        return answer
    media: list[Media] = []
    for medium in answer.media:
        blob = await node.blobs.adopt(medium.blob, ttl=RESULT_S)
        node.loop.call_later(RESULT_S, _let_go, node, blob)
        media.append(msgspec.structs.replace(medium, blob=blob))
    return msgspec.structs.replace(answer, media=tuple(media))


def _let_go(node: Node, blob: Blob) -> None:
    if node.links is not None:
        node.links.soon(node.blobs.release(blob))
