"""What a run and its executor need of each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ...schemas.agent_log import AnyEvent, ModelRequest
from ...schemas.agent_parts import Spent
from .calls import Ask
from .log import RunLog, Step
from .policy import Policy

if TYPE_CHECKING:
    from .run import Run


class Host(Protocol):
    """What a run needs of its executor."""

    policy: Policy
    ask: Ask

    def now(self) -> float: ...
    async def write(self, run: Run, first: int, events: Sequence[AnyEvent]) -> None: ...
    def model_effect(self, run: Run, step: str, request: ModelRequest, seconds: float) -> Coroutine[Any, Any, Any]: ...
    def tool_effect(self, run: Run, step: Step, seconds: float) -> Coroutine[Any, Any, Any] | None: ...
    def accounts(self, run: Run) -> Sequence[tuple[RunLog, Spent]]: ...
    def crashed(self, error: BaseException) -> None: ...
    def settled(self, run: Run) -> None: ...


@dataclass(slots=True)
class Said:
    """Something that a person or another run says. `make` gives its events, or raises what the one who says it gets."""

    make: Callable[[Run], Sequence[AnyEvent]]
    done: asyncio.Future[None]
