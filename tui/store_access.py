"""The company's model store: asked, and started with the daemon where it is not there yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ..schemas.models import STORE, STORE_KIND, ListStore, StoreListing
from .ensure import ask_or_start

if TYPE_CHECKING:
    from ..schemas.base import Request
    from .session import Session

R = TypeVar("R")


async def ask_store(session: Session, request: Request[R]) -> R:
    """Raises what the store does, NotReachable where no daemon is on the bus."""
    return await ask_or_start(session, STORE, STORE_KIND, request)


async def list_store(session: Session) -> StoreListing:
    return await ask_store(session, ListStore())
