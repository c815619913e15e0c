"""What becomes of a person's answer to something that waits: the events, or the error that the person gets. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...runtime.errors import UsageError
from ...schemas.agent import AnswerApproval
from ...schemas.agent_log import AnyEvent, ApprovalAsked, ApprovalGiven
from ...schemas.agent_parts import ApprovalKind, Verdict
from .calls import MAX_ARGUMENTS, pattern_of
from .errors import ApprovalAnswered, ApprovalExpired, NoSuchApproval, RunOver
from .log import RunLog

MAX_TEXT = 50_000
GIVEN = (Verdict.APPROVE, Verdict.DENY, Verdict.FEEDBACK)


def check_answer(message: AnswerApproval) -> None:
    """Raises UsageError for an answer that can be given to nothing."""
    if message.verdict not in GIVEN:
        raise UsageError(f"'{message.verdict.value}' is no answer that a person gives")
    if message.verdict is Verdict.FEEDBACK and not message.text:
        raise UsageError("feedback without a text says nothing")
    if len(message.text) > MAX_TEXT:
        raise UsageError(f"an answer has {MAX_TEXT} characters at most")
    if message.arguments:
        if message.verdict is not Verdict.APPROVE:
            raise UsageError("arguments go with an approval")
        if len(message.arguments) > MAX_ARGUMENTS:
            raise UsageError(f"arguments have {MAX_ARGUMENTS} characters at most")
        try:
            edited = msgspec.json.decode(message.arguments)
        except msgspec.DecodeError as error:
            raise UsageError(f"the arguments are no JSON: {error}") from error
        if not isinstance(edited, dict):
            raise UsageError("the arguments must be a JSON object")


def asked_in(log: RunLog, id_: str) -> tuple[ApprovalAsked | None, ApprovalGiven | None]:
    """What was asked under that id, and the answer to it."""
    asked = next((e for e in log.events if isinstance(e, ApprovalAsked) and e.id == id_), None)
    given = next((e for e in log.events if isinstance(e, ApprovalGiven) and e.id == id_), None)
    return asked, given


def answer(log: RunLog, message: AnswerApproval) -> Sequence[AnyEvent]:
    """The events of an answer; none where the same person gave the same answer before."""
    open_ = log.approvals.get(message.id)
    if open_ is None:
        _refuse(log, message)
        return ()
    if open_.kind is ApprovalKind.QUESTION and message.verdict is Verdict.APPROVE and not message.text:
        raise UsageError("a question is answered with a text")
    return (
        ApprovalGiven(
            id=message.id,
            step=open_.step,
            verdict=message.verdict,
            by=message.by,
            text=message.text,
            arguments=message.arguments,
            scope=message.scope,
            pattern=pattern_of(message.pattern, message.arguments or open_.arguments),
            repeat=message.repeat,
        ),
    )


def _refuse(log: RunLog, message: AnswerApproval) -> None:
    """Returns where this very answer was given before."""
    asked, given = asked_in(log, message.id)
    if asked is None:
        raise NoSuchApproval(f"nothing waits under '{message.id}'")
    if given is None:
        raise RunOver(f"the run {log.run} ended before '{message.id}' was answered; nothing was run")
    if given.verdict is Verdict.EXPIRED:
        raise ApprovalExpired(f"'{message.id}' was not answered in time, which counts as denied; nothing was run")
    said = (given.by, given.verdict, given.text, given.arguments)
    if said != (message.by, message.verdict, message.text, message.arguments):
        by = given.by or "somebody"
        raise ApprovalAnswered(
            f"'{message.id}' was answered already, by {by}: {given.verdict.value}", hint="the first answer counts"
        )
