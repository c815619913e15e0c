"""Who can be asked: engines with their adapters, models behind HTTP, scripted ones."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...runtime.errors import ActorStopped, DeadlineExceeded, NoSuchActor, NotUnderstood
from ...schemas.serve import DescribeModel, ModelDescription

if TYPE_CHECKING:
    from ..session import Session

SCHEDULER = "serve.scheduler"
ENGINE = "serve.engine"
# These answer `Generate` as an engine does, but have no description.
OTHERS = ("agent.upstream", "agent.scripted")
# One that lives says what it serves at once.
DESCRIBE_TIMEOUT_S = 3.0
START_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Answerer:
    """`where` is the address to ask, `context_length` 0 where it is not known."""

    where: str
    model: str
    adapter: str = ""
    context_length: int = 0
    default_max_tokens: int = 0

    @property
    def name(self) -> str:
        return f"{self.model} + {self.adapter}" if self.adapter else self.model


async def find_answerers(session: Session) -> list[Answerer]:
    """All that are there, engines first."""
    actors = await session.client.actors()
    schedulers = sorted(info.address for info in actors if info.kind == SCHEDULER)
    described = await asyncio.gather(*(_describe(session, address) for address in schedulers))
    found: list[Answerer] = []
    for address, model in zip(schedulers, described, strict=True):
        if model is not None:
            for adapter in ("", *model.adapters):
                found.append(Answerer(address, model.model, adapter, model.context_length, model.default_max_tokens))
    found += [Answerer(info.address, info.address) for info in actors if info.kind in OTHERS]
    return found


async def _describe(session: Session, address: str) -> ModelDescription | None:
    try:
        return await session.ask(address, DescribeModel(), DESCRIBE_TIMEOUT_S)
    except (NoSuchActor, ActorStopped, DeadlineExceeded, NotUnderstood):
        return None  # it is about to end, or hangs: it cannot be asked anything else either
