"""Questions to people: an approval, a missing value, a page to visit. Anybody asks, any client answers.

The board (actor `questions`) keeps them. Whoever asks waits for the answer, and may ask again under the same key after
a restart, its own or the board's: the same question is meant, and an answer that was given meanwhile is there.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from .base import Message, Request

OPENED = "topic.questions.opened"
CLOSED = "topic.questions.closed"
STARTED = "topic.questions.started"


class Outcome(enum.StrEnum):
    """How a question ended. `ACCEPTED` alone comes with a value."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    """By whoever asked, who needs no answer any more, or by somebody who put it away without deciding."""
    EXPIRED = "expired"


class Question(msgspec.Struct, frozen=True):
    """One question on the board. `schema`: JSON Schema of the value that is wanted.

    `kind` tells clients how to show it: `approval`, `elicitation`, `sampling`, or what else its asker says. `proposal`:
    JSON that fits the schema, to be accepted as it is or edited. `details`: JSON with what the one who answers should
    know, a tool and its arguments say. `link`: a page to visit. `asked`, `expires`: seconds since 1970, `expires` 0 for
    never. `approval`: the approval of the actor `agents` that it stands for; who lists those too shows one of the two.
    """

    id: str
    text: str
    asker: str
    kind: str = ""
    schema: str = "{}"
    proposal: str = ""
    details: str = ""
    link: str = ""
    asked: float = 0.0
    expires: float = 0.0
    approval: str = ""


class Answered(Message, frozen=True, tag="question.answered"):
    """`value`: JSON, empty unless accepted. `note`: why, in words. `by`: who answered, as they call themselves."""

    id: str
    outcome: Outcome
    value: str = ""
    note: str = ""
    by: str = ""
    at: float = 0.0


class AskQuestion(Request[Answered], frozen=True, tag="question.ask"):
    """Put a question on the board and wait for its end, as long as the request's deadline allows.

    A request that ends early leaves the question there. With `key`, a question of the same asker and key that is open,
    or was closed within the days that the board remembers, is the one that is meant. `ttl`: seconds that it stays open,
    0 for ever. The other fields as in `Question`. QuestionInvalid, BoardFull.
    """

    text: str
    asker: str
    kind: str = ""
    schema: str = "{}"
    proposal: str = ""
    details: str = ""
    link: str = ""
    key: str = ""
    ttl: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    approval: str = ""


class QuestionList(Message, frozen=True, tag="question.list.result"):
    """Oldest first. `answers`: how those of `questions` ended that did."""

    questions: tuple[Question, ...]
    answers: tuple[Answered, ...] = ()


class PutQuestion(Request[QuestionList], frozen=True, tag="question.put"):
    """Put a question on the board without waiting: answers with the question, and its end where it has one already.

    For whoever has many open, and hears of their ends on `topic.questions.closed`. QuestionInvalid, BoardFull.
    """

    ask: AskQuestion


class ListQuestions(Request[QuestionList], frozen=True, tag="question.list"):
    """The open ones, those of one asker, or (`id`) one alone, open or closed. `closed`: also those that are over."""

    asker: str = ""
    id: str = ""
    closed: bool = False


class AnswerQuestion(Request[Answered], frozen=True, tag="question.answer"):
    """Accept with a value (JSON that the question's schema allows; empty: its proposal), or refuse, or put it away.

    NoSuchQuestion; QuestionOver where it has ended in another way; AnswerInvalid where the value does not fit.
    """

    id: str
    outcome: Outcome = Outcome.ACCEPTED
    value: str = ""
    note: str = ""
    by: str = ""


class CancelQuestion(Request[Answered], frozen=True, tag="question.cancel"):
    """Take a question back, as its asker, by its id or by asker and key. NoSuchQuestion; QuestionOver where it was
    answered before."""

    id: str = ""
    note: str = ""
    asker: str = ""
    key: str = ""


class QuestionOpened(Message, frozen=True, tag="question.opened"):
    """Published on `topic.questions.opened`. Without details, which are the board's to tell."""

    id: str
    text: str
    asker: str
    kind: str = ""


class QuestionClosed(Message, frozen=True, tag="question.closed"):
    """Published on `topic.questions.closed`. The value is for whoever asked alone."""

    id: str
    outcome: Outcome
    asker: str = ""
    by: str = ""


class BoardStarted(Message, frozen=True, tag="question.board.started"):
    """Published on `topic.questions.started`: there is a board now, or again."""


class QuestionPut(Message, frozen=True, tag="question.log.put"):
    """In the board's log: a question, and the key it was asked under."""

    question: Question
    key: str = ""


class QuestionEnded(Message, frozen=True, tag="question.log.ended"):
    """In the board's log: its end."""

    answered: Answered


class BoardRead(Message, frozen=True, tag="question.log.read"):
    """In the board's log: what was on its way before this is there, or never will be."""
