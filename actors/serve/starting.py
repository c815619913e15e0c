"""Finding the engine on the bus, and starting it where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from ...runtime.errors import DeadlineExceeded, NameTaken, NoSuchActor
from ...runtime.refs import Ref
from ...schemas.serve_stats import EngineStats, GetStats

if TYPE_CHECKING:
    from ...runtime.client import Client
    from .engine import EngineConfig

KIND = "serve.engine"
ENGINE = "engine"
SCHEDULER = "engine.scheduler"

# Loading takes seconds for a small model and may take minutes for a large one.
START_TIMEOUT_S = 150.0
LOOK_EVERY_S = 0.1


async def ensure_engine(
    bus: Client, config: Callable[[], EngineConfig], starting: Callable[[], None] = lambda: None
) -> Ref:
    """The scheduler of the company's engine, ready to be asked.

    If there is no engine, `starting` is called and the daemon starts one with `config()`, in a process of its own;
    whoever does the same at the same time gets the same engine. Raises what its start raised (NoSuchModel,
    ModelDamaged, ...), NotReachable, DeadlineExceeded.
    """
    if await _look(bus) is None:
        starting()
        try:
            await bus.spawn(KIND, config(), name=ENGINE, process=True)
        except NameTaken:
            await _wait(bus)
    return bus.actor(SCHEDULER)


async def _look(bus: Client) -> EngineStats | None:
    try:
        # An engine that is still loading answers when it is done.
        return await bus.actor(ENGINE).ask(GetStats(), timeout=START_TIMEOUT_S)
    except NoSuchActor:
        return None


async def _wait(bus: Client) -> None:
    with anyio.move_on_after(START_TIMEOUT_S):
        while await _look(bus) is None:
            await anyio.sleep(LOOK_EVERY_S)  # its process has not joined the bus yet, and nothing tells when it does
        return
    raise DeadlineExceeded(
        f"the engine was not ready within {START_TIMEOUT_S:g} s", hint="`callboard logs engine` says what it does"
    )
