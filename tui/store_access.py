"""The company's model store: asked, and started with the daemon where it is not there yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ..runtime.errors import NameTaken, NoSuchActor
from ..schemas.models import STORE, STORE_KIND, ListStore, StoreListing

if TYPE_CHECKING:
    from ..runtime.client import Client
    from ..schemas.base import Request

R = TypeVar("R")


async def ask_store(client: Client, request: Request[R]) -> R:
    """Raises what the store does, NotReachable where no daemon is on the bus."""
    store = client.actor(STORE)
    try:
        return await store.ask(request)
    except NoSuchActor:
        try:
            await client.spawn(STORE_KIND, name=STORE)
        except NameTaken:
            pass  # somebody else has just started it
        return await store.ask(request)


async def list_store(client: Client) -> StoreListing:
    return await ask_store(client, ListStore())
