"""When a run has had enough: its own budget, and those of the runs above it, whose means it spends. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...schemas.agent_parts import Spent
from .log import RunLog


@dataclass(frozen=True, slots=True)
class Reached:
    run: str
    limit: str
    text: str


def over_budget(accounts: Iterable[tuple[RunLog, Spent]], pending: int = 0) -> Reached | None:
    """The first budget that allows no further step. `accounts`: runs and what they spent, with all below them.
    `pending` steps are under way, and will be spent too."""
    for log, spent in accounts:
        budget = log.started.budget
        tokens = spent.prompt_tokens + spent.completion_tokens
        for limit, used, most in (
            ("steps", spent.steps + pending, budget.steps),
            ("tokens", tokens, budget.tokens),
            ("seconds", round(spent.seconds, 3), budget.seconds),
            ("cost", spent.cost, budget.cost),
        ):
            if most and used >= most:
                return Reached(log.run, limit, f"{used:g} of {most:g} {limit} are spent")
    return None


def seconds_left(accounts: Iterable[tuple[RunLog, Spent]]) -> float:
    """How long the next step may take at most; 0 where no budget says."""
    left = [log.started.budget.seconds - spent.seconds for log, spent in accounts if log.started.budget.seconds]
    return max(min(left), 0.001) if left else 0.0
