"""What pausing, resuming, redirecting and cancelling do to a run: the events, or why not. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...runtime.errors import UsageError
from ...schemas.agent import Control, ControlRun
from ...schemas.agent_log import AnyEvent, Paused, Redirected, Resumed
from ...schemas.agent_parts import RunStatus
from .answering import MAX_TEXT
from .errors import RunOver

if TYPE_CHECKING:
    from .run import Run


def control(run: Run, message: ControlRun) -> Sequence[AnyEvent]:
    """Raises RunOver, except for cancelling a run that is cancelled; pausing a paused run changes nothing."""
    log = run.log
    if log.ended is not None:
        if message.what is Control.CANCEL and log.ended.status is RunStatus.CANCELLED:
            return ()
        raise RunOver(f"the run {log.run} has ended: {log.ended.status.value}")
    if len(message.text) > MAX_TEXT:
        raise UsageError(f"a redirect has {MAX_TEXT} characters at most")
    match message.what:
        case Control.PAUSE:
            return () if log.paused else (Paused(by=message.by),)
        case Control.RESUME:
            return (Resumed(by=message.by),) if log.paused else ()
        case Control.REDIRECT:
            if not message.text:
                raise UsageError("a redirect says what is wanted now")
            return (Redirected(text=message.text, by=message.by),)
        case Control.CANCEL:
            why = message.text or f"cancelled by {message.by or 'a person'}"
            return (run.ending(RunStatus.CANCELLED, why=why, code="agent.cancelled"),)
