"""Which engine of a company serves a model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from ...runtime.client import Client
from ...runtime.errors import ActorStopped, DeadlineExceeded, NoSuchActor
from ...runtime.refs import Ref
from ...schemas.serve import DescribeModel, ModelDescription
from ..models.store import is_path

SCHEDULER_KIND = "serve.scheduler"
# A scheduler that lives says what it serves at once.
DESCRIBE_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Serving:
    """`adapter`: the LoRA adapter that the name stands for, "" for the model itself."""

    scheduler: Ref
    adapter: str = ""


def absolute_model(model: str) -> str:
    """A path as an engine in any folder understands it; names stay."""
    return str(Path(model).expanduser().absolute()) if is_path(model) else model


async def serving(bus: Client, model: str) -> Serving | None:
    """Who serves the model, or the adapter, of that name now; None for nobody. Raises NotReachable."""
    schedulers = [bus.actor(info.address) for info in await bus.actors() if info.kind == SCHEDULER_KIND]
    described = [
        (scheduler, served)
        for scheduler, served in zip(schedulers, await asyncio.gather(*map(_describe, schedulers)), strict=True)
        if served is not None
    ]
    for scheduler, served in described:
        if served.model in (model, absolute_model(model)):
            return Serving(scheduler)
    return next((Serving(scheduler, model) for scheduler, served in described if model in served.adapters), None)


async def _describe(scheduler: Ref) -> ModelDescription | None:
    try:
        return await scheduler.ask(DescribeModel(), timeout=DESCRIBE_TIMEOUT_S)
    except (NoSuchActor, ActorStopped, DeadlineExceeded):
        return None  # it ended since it was listed, or is stuck
