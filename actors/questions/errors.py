"""Errors of the board of questions.

QuestionError           question
├── NoSuchQuestion      question.none      no question of that id, or it was forgotten
├── QuestionOver        question.over      it has ended already
├── QuestionInvalid     question.invalid   a schema or a proposal that nobody could answer
├── AnswerInvalid       question.answer    the value is not what the question's schema asks for
└── BoardFull           question.full      so many are open that one more would never be read
"""

from __future__ import annotations

from ...runtime.errors import CallboardError


class QuestionError(CallboardError):
    code = "question"


class NoSuchQuestion(QuestionError):
    code = "question.none"
    default_hint = "`callboard questions` lists those that are open"


class QuestionOver(QuestionError):
    code = "question.over"
    default_hint = "`callboard questions show ID` says how it ended"


class QuestionInvalid(QuestionError):
    code = "question.invalid"


class AnswerInvalid(QuestionError):
    code = "question.answer"
    default_hint = "`callboard questions show ID` shows the schema of the answer"


class BoardFull(QuestionError):
    code = "question.full"
    default_hint = "answer or refuse some: `callboard questions`"
