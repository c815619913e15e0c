"""A run that begins as another one did, up to any event of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...schemas.agent import ForkRun
from ...schemas.agent_log import (
    AnyEvent,
    ApprovalAsked,
    ApprovalGiven,
    Forked,
    ModelAnswered,
    ModelCalled,
    ModelFailed,
    Paused,
    Redirected,
    Resumed,
    RunEnded,
    RunStarted,
    ToolAnswered,
    ToolCalled,
)
from .errors import RunInvalid

# An answer of a person goes with the step that it was about.
_OF_A_STEP = (ModelCalled, ToolCalled, ApprovalAsked, ApprovalGiven)
_ENDS = (ModelAnswered, ModelFailed, ToolAnswered)
# What was so at that moment, and not a part of how far the run had come.
_PASSING = (RunEnded, Paused, Resumed)


def forked(message: ForkRun, events: Sequence[AnyEvent], now: float) -> tuple[AnyEvent, ...]:
    """The events of the fork. Steps that were under way at its place are left out: they begin anew, as its own.

    Raises RunInvalid for a place that there is not.
    """
    at = message.at or len(events)
    if not 1 <= at <= len(events):
        raise RunInvalid(f"the run {message.run} has events 1 to {len(events)}, not {message.at}")
    first = events[0]
    if not isinstance(first, RunStarted):
        raise RunInvalid(f"the run {message.run} does not begin with its start")
    taken = events[1:at]
    over = {event.step for event in taken if isinstance(event, _ENDS)}
    kept = [
        event
        for event in taken
        if not isinstance(event, _PASSING) and (not isinstance(event, _OF_A_STEP) or event.step in over)
    ]
    started = msgspec.structs.replace(first, parent="", parent_step="", forked_from=message.run, forked_at=at, at=now)
    change = Forked(at=now, planner=message.planner, model=message.model, options=message.options, by=message.by)
    redirect = (Redirected(at=now, text=message.text, by=message.by),) if message.text else ()
    return (started, *kept, change, *redirect)
