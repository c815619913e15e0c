"""An approval as a question of the board, and the answer to that as one to the approval. Pure."""

from __future__ import annotations

import json
import time

import msgspec

from ...schemas.agent import AnswerApproval, Approval
from ...schemas.agent_parts import ApprovalKind, Scope, Verdict
from ...schemas.question import Answered, AskQuestion, Outcome
from .answering import MAX_TEXT

# Of the details of a question: the board takes no more, and what is not shown whole is not put to anybody.
MAX_DETAILS = 64 << 10
REFUSE = "refuse"
SCOPES = {"once": Scope.ONCE, "run": Scope.RUN, "always": Scope.FOREVER}

_TEXT = json.dumps({"type": "string", "minLength": 1, "maxLength": MAX_TEXT})


def question_of(approval: Approval, asker: str) -> AskQuestion | None:
    """None where the board could not show it whole."""
    details = msgspec.json.encode(
        {
            "run": approval.run,
            "tool": approval.tool,
            "arguments": msgspec.Raw(approval.arguments.encode() or b"{}"),
            "why": approval.why,
            "thought": approval.text if approval.kind is not ApprovalKind.QUESTION else "",
        }
    ).decode()
    if len(details.encode()) > MAX_DETAILS or len(approval.text.encode()) > MAX_DETAILS:
        return None
    ttl = max(approval.expires_at - time.time(), 1.0)
    if approval.kind is ApprovalKind.QUESTION:
        return AskQuestion(
            approval.text, asker, "question", _TEXT, details=details, key=approval.id, ttl=ttl, approval=approval.id
        )
    what = "repeat a call that was interrupted" if approval.kind is ApprovalKind.AGAIN else "make a call"
    return AskQuestion(
        f"An agent wants to {what}: {approval.tool}",
        asker,
        "approval",
        _choices(approval),
        json.dumps({"choice": "once"}),
        details,
        key=approval.id,
        ttl=ttl,
        approval=approval.id,
    )


def _choices(approval: Approval) -> str:
    """An interrupted call is repeated as it was, this once."""
    if approval.kind is ApprovalKind.AGAIN:
        properties: dict[str, object] = {"choice": {"enum": ["once", REFUSE]}}
    else:
        arguments = {"type": "object", "description": "in place of those of the call"}
        properties = {"choice": {"enum": [*SCOPES, REFUSE]}, "arguments": arguments}
    return json.dumps(
        {"type": "object", "properties": properties, "required": ["choice"], "additionalProperties": False}
    )


def answer_of(id_: str, answered: Answered) -> AnswerApproval | None:
    """None for an end that decides nothing: put away, taken back, expired."""
    if answered.outcome is Outcome.REFUSED:
        return AnswerApproval(id=id_, verdict=Verdict.DENY, text=answered.note[:MAX_TEXT], by=answered.by)
    if answered.outcome is not Outcome.ACCEPTED:
        return None
    value = json.loads(answered.value)  # the board has held it against the schema above
    if isinstance(value, str):
        return AnswerApproval(id=id_, verdict=Verdict.APPROVE, text=value, by=answered.by)
    if value["choice"] == REFUSE:
        return AnswerApproval(id=id_, verdict=Verdict.DENY, text=answered.note[:MAX_TEXT], by=answered.by)
    return AnswerApproval(
        id=id_,
        verdict=Verdict.APPROVE,
        arguments=json.dumps(value["arguments"]) if value.get("arguments") is not None else "",
        by=answered.by,
        scope=SCOPES[value["choice"]],
    )
