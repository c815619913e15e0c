"""What the page's own routes take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

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
