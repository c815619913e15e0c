"""Media between a message's blobs and the values that tools and callers hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack

from anyio.to_thread import run_sync

from ...runtime.blobs import Blobs
from ...runtime.errors import BlobError, BusError, NoSuchActor
from ...schemas.blob import Blob
from ...schemas.tool import Media
from .errors import ToolArguments
from .values import BY_KIND, File


async def media_in(blobs: Blobs, media: Iterable[Media], opened: AsyncExitStack) -> dict[str, File]:
    """By name, for as long as `opened` stands: pages of the blobs' own files, not copies.

    Raises ToolArguments for a name that is there twice, or bytes that cannot be had.
    """
    found: dict[str, File] = {}
    for each in media:
        if each.name in found:
            raise ToolArguments(f"two entries of `media` are called '{each.name}'")
        try:
            view = await opened.enter_async_context(blobs.open(each.blob))
        except (BlobError, BusError, NoSuchActor) as error:
            raise ToolArguments(f"the bytes of '{each.name}' cannot be had: {error}", hint=error.hint) from error
        found[each.name] = BY_KIND[each.kind](data=view, mime=each.mime, name=each.name)
    return found


async def media_out(blobs: Blobs, media: Mapping[str, File], ttl: float) -> tuple[Media, ...]:
    """Blobs of them, put for `ttl` seconds."""
    return tuple([Media(name, file.kind, file.mime, await _put(blobs, file, ttl)) for name, file in media.items()])


async def _put(blobs: Blobs, file: File, ttl: float) -> Blob:
    view = await run_sync(lambda: file.view) if file.is_on_disk else file.view
    return await blobs.put(view, ttl=ttl)


async def media_read(blobs: Blobs, media: Iterable[Media]) -> dict[str, File]:
    """Their bytes, in memory of our own. Raises BlobGone, BlobDamaged and what else `Blobs.get` does."""
    return {
        each.name: BY_KIND[each.kind](data=await blobs.get(each.blob), mime=each.mime, name=each.name) for each in media
    }
