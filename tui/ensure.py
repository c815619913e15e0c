"""Starting what a page needs and is not there yet: the actors that keep jobs, runs and tools."""

from __future__ import annotations

import contextlib
import json
from typing import Any, TypeVar

from ..runtime.errors import NameTaken, NoSuchActor
from ..runtime.settings import load_settings
from ..schemas.base import Request
from .session import Session

R = TypeVar("R")

# Starting an actor may load a model.
START_TIMEOUT_S = 150.0
ENGINE, SCHEDULER = "engine", "engine.scheduler"


async def ask_or_start(session: Session, address: str, kind: str, request: Request[R], *, process: bool = False) -> R:
    """Ask an actor, which the daemon starts where there is none. Raises what either raises."""
    try:
        return await session.ask(address, request, START_TIMEOUT_S)
    except NoSuchActor:
        await start(session, kind, address, process=process)
    return await session.ask(address, request, START_TIMEOUT_S)


async def start(session: Session, kind: str, name: str, config: str = "{}", *, process: bool = False) -> None:
    with contextlib.suppress(NameTaken):  # somebody was faster
        await session.client.spawn(kind, config, name=name, process=process)


async def model_address(session: Session, wanted: str) -> str:
    """Who answers for a model: an actor of that name, or the company's engine, which is started where there is none."""
    actors = {info.address for info in await session.client.actors()}
    if wanted and wanted in actors:
        return SCHEDULER if wanted == ENGINE else wanted
    if ENGINE not in actors:
        settings = load_settings({"model": wanted or None})
        config: dict[str, Any] = {"model": settings.model, **settings.engine}
        await start(session, "serve.engine", ENGINE, json.dumps(config), process=True)
    return SCHEDULER
