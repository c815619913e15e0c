"""What the page's own routes take and answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from ...schemas import agent, question
from ...schemas.train import TrainJob

# What people write on the page; longer ones are mistakes.
Text = Annotated[str, msgspec.Meta(max_length=100_000)]
Name = Annotated[str, msgspec.Meta(max_length=200)]


class ApprovalAnswer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """As `AnswerApproval`. `arguments`: JSON in place of what was shown."""

    verdict: Literal["approve", "deny", "feedback"]
    arguments: Text = ""
    text: Text = ""
    by: Name = ""
    scope: Literal["once", "run", "session", "forever"] = "once"
    stop: bool = False


class QuestionAnswer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """As `AnswerQuestion`. `value`: any JSON value that fits the question's schema; without one, its proposal."""

    outcome: Literal["accepted", "refused", "cancelled"]
    value: Any = msgspec.UNSET
    note: Text = ""
    by: Name = ""


class CurvesQuery(msgspec.Struct, kw_only=True):
    """`log`: losses and gradient norms on a logarithmic axis."""

    job: Annotated[list[str], msgspec.Meta(min_length=1)]
    smoothing: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.8
    log: Literal["0", "1"] = "0"


def _plain(name: str, kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """A message as the page is told it: all of its fields, and no tag."""
    fields = [(field.name, field.type) for field in msgspec.structs.fields(kind)]
    return msgspec.defstruct(name, fields, kw_only=True, namespace={"__doc__": kind.__doc__})


JOB = _plain("WebJob", TrainJob)
APPROVAL = _plain("WebApproval", agent.Approval)
ANSWERED_APPROVAL = _plain("WebAnsweredApproval", agent.Answered)
QUESTION = _plain("WebQuestion", question.Question)
ANSWERED_QUESTION = _plain("WebAnsweredQuestion", question.Answered)
_DOC = "`available`: whether the company has anybody who knows."
JOBS = msgspec.defstruct(
    "WebJobs", [("available", bool), ("jobs", list[JOB])], kw_only=True, namespace={"__doc__": _DOC}
)
WAITING = msgspec.defstruct(
    "WebWaiting",
    [("available", bool), ("approvals", list[APPROVAL]), ("questions", list[QUESTION])],
    kw_only=True,
    namespace={"__doc__": _DOC},
)
