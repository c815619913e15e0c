"""What is asked of the samples: which of them, after which examples, in which words."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...runtime.errors import UsageError
from ...schemas.evaluate import Evaluate, LeftOut
from ...schemas.serve import ChatMessage
from .format import Format
from .question import Kind, Question
from .reading import TestSet, read_test_set

# Goes into what a record is known by: raised when the same samples come to be asked or counted in another way.
_RULES = 1


@dataclass(frozen=True)
class Exam:
    """A test set as it is put to a model. `left_out`: samples that stand among the examples themselves."""

    test_set: TestSet
    questions: tuple[Question, ...]
    examples: tuple[Question, ...]
    left_out: tuple[LeftOut, ...]
    chat: bool
    max_tokens: int

    @property
    def format(self) -> Format:
        return self.test_set.format

    @property
    def digest(self) -> str:
        """The same for all who are asked the same."""
        of = (_RULES, self.format.name, self.questions, self.examples, self.chat, self.max_tokens)
        return hashlib.sha256(msgspec.json.encode(of)).hexdigest()

    def before(self, question: Question) -> str:
        """What stands before a question's own prompt."""
        return question.intro + "".join(f"{example.as_example}\n\n" for example in self.examples)

    def turns(self, question: Question) -> tuple[ChatMessage, ...]:
        """The same as a conversation."""
        turns: list[ChatMessage] = []
        for example in self.examples:
            turns += [ChatMessage("user", example.prompt), ChatMessage("assistant", example.example)]
        turns.append(ChatMessage("user", question.prompt))
        first = ChatMessage(turns[0].role, question.intro + turns[0].content)
        return (first, *turns[1:])


def prepare(request: Evaluate) -> Exam:
    """Reads the files. Raises NoSuchData, UnknownFormat, BadRecord, UsageError."""
    if not request.models or len(set(request.models)) < len(request.models):
        raise UsageError("name one or more models, each once")
    for name, value in (("limit", request.limit), ("shots", request.shots), ("max_tokens", request.max_tokens)):
        if value < 0:
            raise UsageError(f"{name} is {value}, below 0")
    test_set = read_test_set(Path(request.data), request.task)
    format = test_set.format
    if request.chat and not format.in_chat:
        raise UsageError(f"the task {format.name} is asked of plain text, not in a chat", hint="leave --chat away")
    if request.max_tokens and not format.max_tokens:
        raise UsageError(f"the task {format.name} has no answers whose length could be bounded")
    examples = _examples(request, format)
    shown = {_essence(example) for example in examples}
    questions = [question for question in test_set.questions if _essence(question) not in shown]
    left_out = [
        LeftOut(question.line, "it is one of the examples")
        for question in test_set.questions
        if _essence(question) in shown
    ]
    if not questions:
        raise UsageError(f"all samples of {request.data} are among the examples", hint="take examples of another file")
    return Exam(
        test_set=test_set,
        questions=tuple(drawn(questions, request.limit, request.seed)),
        examples=tuple(examples),
        left_out=tuple(left_out),
        chat=request.chat,
        max_tokens=request.max_tokens or format.max_tokens,
    )


def drawn(questions: Sequence[Question], count: int, seed: int) -> Sequence[Question]:
    """`count` of them (0: all), in their order. The same seed draws the same."""
    if not count or count >= len(questions):
        return questions
    chosen = random.Random(seed).sample(range(len(questions)), count)
    return [questions[place] for place in sorted(chosen)]


def _examples(request: Evaluate, format: Format) -> Sequence[Question]:
    if not request.shots:
        if request.shots_from:
            raise UsageError("examples are named and none is wanted", hint="say how many: --shots K")
        return ()
    if not request.shots_from:
        raise UsageError("examples are wanted and no file is named", hint="say where they are: --shots-from FILE")
    if format.kind is Kind.TEXT:
        raise UsageError("a text whose perplexity is measured has no examples before it", hint="leave --shots away")
    found = read_test_set(Path(request.shots_from), format.name).questions
    if len(found) < request.shots:
        raise UsageError(
            f"{request.shots_from} has {len(found)} samples, fewer than the {request.shots} examples that are wanted",
            hint="ask for fewer, or name another file",
        )
    return drawn(found, request.shots, request.seed)


def _essence(question: Question) -> tuple[object, ...]:
    return question.prompt, question.choices, question.answers
