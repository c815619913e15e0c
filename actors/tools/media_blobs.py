"""Media between a message's blobs and the values that tools and callers hold."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack

from anyio.to_thread import run_sync

from ...runtime.blobs import Blobs
from ...runtime.errors import BlobError, BusError, NoSuchActor
from ...runtime.node import Node
from ...runtime.refs import Ref
from ...schemas.blob import Blob
from ...schemas.tool import Media
from .carrying import fetch
from .errors import MediaAway, ToolArguments
from .values import BY_KIND, File


async def media_in(node: Node, media: Iterable[Media], opened: AsyncExitStack) -> dict[str, File]:
    """By name, for as long as `opened` stands: pages of the blobs' own files, not copies.

    Raises ToolArguments for a name that is there twice, or bytes that cannot be had; MediaAway for bytes that are on
    another host, where this process may not ask for them.
    """
    blobs = node.blobs
    found: dict[str, File] = {}
    for each in media:
        if each.name in found:
            raise ToolArguments(f"two entries of `media` are called '{each.name}'")
        if not _may_fetch(node, each.blob) and not await blobs.is_here(each.blob):
            raise MediaAway(f"the bytes of '{each.name}' are on another host than this tool")
        try:
            view = await opened.enter_async_context(blobs.open(each.blob))
        except (BlobError, BusError, NoSuchActor) as error:
            raise ToolArguments(f"the bytes of '{each.name}' cannot be had: {error}", hint=error.hint) from error
        found[each.name] = BY_KIND[each.kind](data=view, mime=each.mime, name=each.name)
    return found


def _may_fetch(node: Node, blob: Blob) -> bool:
    return node.links is None or node.links.identity.may_publish(f"actor.node.{blob.owner}")


async def media_out(blobs: Blobs, media: Mapping[str, File], ttl: float) -> tuple[Media, ...]:
    """Blobs of them, put for `ttl` seconds."""
    return tuple([Media(name, file.kind, file.mime, await _put(blobs, file, ttl)) for name, file in media.items()])


async def _put(blobs: Blobs, file: File, ttl: float) -> Blob:
    view = await run_sync(lambda: file.view) if file.is_on_disk else file.view
    return await blobs.put(view, ttl=ttl)


async def media_read(blobs: Blobs, media: Iterable[Media], tool: Ref) -> dict[str, File]:
    """The bytes of a result, for as long as anybody has them; those on another host come by way of the tool.

    Raises BlobGone, BlobDamaged and what else `Blobs.open` does.
    """
    found: dict[str, File] = {}
    for each in media:
        is_here = await blobs.is_here(each.blob)
        data = await _kept(blobs, each.blob) if is_here else await fetch(tool, each.blob)
        found[each.name] = BY_KIND[each.kind](data=data, mime=each.mime, name=each.name)
    return found


async def _kept(blobs: Blobs, blob: Blob) -> bytes | memoryview:
    """Without a copy where they are pages of a file: the mapping stays while a view of it does, also when the file has
    gone."""
    async with blobs.open(blob) as view:
        return memoryview(view.obj) if isinstance(view.obj, mmap.mmap) else bytes(view)
