"""The actor `questions`: what is asked of people, until somebody answers.

Its log holds a message for each question and each end, so that both outlive any process. Who asks waits in a handler;
who comes again under the same key, after whatever crash, waits for the same question.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import msgspec

from ...runtime.actor import Actor, handler
from ...runtime.errors import ActorStopped, BusError, Fenced, StoreError, StoreUnavailable
from ...runtime.event_log import EventLog
from ...runtime.log import log
from ...schemas.base import Message
from ...schemas.question import (
    CLOSED,
    OPENED,
    STARTED,
    Answered,
    AnswerQuestion,
    AskQuestion,
    BoardRead,
    BoardStarted,
    CancelQuestion,
    ListQuestions,
    Outcome,
    PutQuestion,
    Question,
    QuestionClosed,
    QuestionEnded,
    QuestionList,
    QuestionOpened,
    QuestionPut,
)
from .check import check_answer, check_question
from .errors import AnswerInvalid, BoardFull, NoSuchQuestion, QuestionOver
from .state import BoardState

T = TypeVar("T")

KIND = "question.board"
ADDRESS = "questions"
# A store that does not answer is asked again after that.
STORE_AGAIN_S = 2.0

_Event = QuestionPut | QuestionEnded | BoardRead


class BoardConfig(msgspec.Struct, frozen=True):
    """`max_open`: questions at once. `remember_s`: how long the end of one is known. `log`: "" for the actor's name."""

    max_open: int = 1000
    remember_s: float = 7 * 86400.0
    log: str = ""


class Board(Actor[BoardConfig]):
    """Handlers run beside each other, for those that ask wait for days. What changes the board takes turns."""

    async def started(self) -> None:
        self._ends: dict[str, asyncio.Future[Answered]] = {}
        self._alarm = asyncio.Event()
        self._turns = asyncio.Lock()
        self._writes: set[asyncio.Task[Any]] = set()
        self._unsure = False
        name = self.config.log or f"questions.{self.address}"
        self._log: EventLog[Any] = await EventLog.open(self.node, name, _Event, own=True)
        self._state = await self._read()
        self.start_soon(self._expire)
        self.start_soon(self._tell, STARTED, BoardStarted())

    def draining(self) -> None:
        """Those that wait ask the next life, under their keys."""
        for end in self._ends.values():
            end.set_exception(ActorStopped(f"{self.address} ended; its questions are kept"))
            end.exception()  # whoever waited may have gone
        self._ends.clear()

    # Asking

    @handler(concurrent=True)
    async def ask(self, message: AskQuestion) -> Answered:
        question = await self._there(message)
        if (answered := self._state.answers.get(question.id)) is not None:
            return answered
        if question.id not in self._ends:
            self._ends[question.id] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._ends[question.id])

    @handler(concurrent=True)
    async def put(self, message: PutQuestion) -> QuestionList:
        question = await self._there(message.ask)
        answered = self._state.answers.get(question.id)
        return QuestionList((question,), () if answered is None else (answered,))

    async def _there(self, message: AskQuestion) -> Question:
        """The question, put on the board unless it is there."""
        known = self._state.of_key(message.asker, message.key)
        return known if known is not None else await self._whole(self._put(message))

    async def _put(self, message: AskQuestion) -> Question:
        check_question(message.schema, message.proposal, text=message.text, details=message.details, link=message.link)
        async with self._turn():
            if (known := self._state.of_key(message.asker, message.key)) is not None:
                return known
            if len(self._state.open) >= self.config.max_open:
                raise BoardFull(f"{len(self._state.open)} questions are open already")
            now = time.time()
            question = Question(
                id=secrets.token_hex(6),
                text=message.text,
                asker=message.asker,
                kind=message.kind,
                schema=message.schema,
                proposal=message.proposal,
                details=message.details,
                link=message.link,
                asked=now,
                expires=now + message.ttl if message.ttl else 0.0,
                approval=message.approval,
            )
            await self._write(QuestionPut(question, message.key))
        self._alarm.set()
        await self._tell(OPENED, QuestionOpened(question.id, question.text, question.asker, question.kind))
        return question

    # Answering

    @handler(concurrent=True)
    async def answer(self, message: AnswerQuestion) -> Answered:
        question = self._question(message.id)
        value = ""
        if message.outcome is Outcome.ACCEPTED:
            value = message.value or question.proposal
            if not value:
                raise AnswerInvalid("an answer that accepts has a value")
            check_answer(question.schema, value)
        elif message.value:
            raise AnswerInvalid(f"a question that is {message.outcome} has no value")
        if message.outcome is Outcome.EXPIRED:
            raise AnswerInvalid("a question expires by itself")
        answered = Answered(message.id, message.outcome, value, message.note, message.by, time.time())
        return await self._whole(self._end(answered))

    @handler(concurrent=True)
    async def cancel(self, message: CancelQuestion) -> Answered:
        question = self._state.of_key(message.asker, message.key) or self._question(message.id)
        answered = Answered(question.id, Outcome.CANCELLED, note=message.note, by=question.asker, at=time.time())
        return await self._whole(self._end(answered))

    @handler(concurrent=True)
    async def list_all(self, message: ListQuestions) -> QuestionList:
        """Raises NoSuchQuestion for an id."""
        if message.id:
            found = [self._question(message.id)]
        else:
            found = [
                question
                for question in self._state.questions.values()
                if (not message.asker or question.asker == message.asker)
                and (message.closed or question.id in self._state.open)
            ]
        found.sort(key=lambda question: question.asked)
        answers = self._state.answers
        return QuestionList(tuple(found), tuple(answers[one.id] for one in found if one.id in answers))

    def _question(self, id: str) -> Question:
        if id not in self._state.questions:
            raise NoSuchQuestion(f"there is no question {id}")
        return self._state.questions[id]

    async def _end(self, answered: Answered) -> Answered:
        """Close a question once; the same end again is no error. Raises QuestionOver."""
        async with self._turn():
            question = self._question(answered.id)
            if (known := self._state.answers.get(answered.id)) is not None:
                if (known.outcome, known.value) == (answered.outcome, answered.value):
                    return known
                raise QuestionOver(f"question {answered.id} is {known.outcome} already")
            await self._write(QuestionEnded(answered))  # nobody is told before it is on the disk
            self._wake(answered)
            await self._tidy()
        await self._tell(CLOSED, QuestionClosed(answered.id, answered.outcome, question.asker, answered.by))
        return answered

    def _wake(self, answered: Answered) -> None:
        if (end := self._ends.pop(answered.id, None)) is not None:
            end.set_result(answered)

    async def _tell(self, subject: str, message: Message) -> None:
        try:
            await self.publish(subject, message)
        except BusError as error:  # who listens asks for the list when it is back
            log.info("%s is not said: %s", subject, error)

    # Time

    async def _expire(self) -> None:
        """Closes what is past its time, when it is."""
        while True:
            self._alarm.clear()
            now = time.time()
            for question in self._state.due(now):
                log.info("question %s of %s expired", question.id, question.asker)
                try:
                    await self._end(Answered(question.id, Outcome.EXPIRED, at=now))
                except QuestionOver as error:
                    log.debug("question %s did not expire: %s", question.id, error)
                except Fenced:
                    raise
                except StoreError as error:
                    log.warning("question %s does not expire yet: %s", question.id, error)
                    await anyio.sleep(STORE_AGAIN_S)  # nothing tells when the store is back
            next_at = self._state.next_expiry()
            with anyio.move_on_after(None if next_at is None else max(0.01, next_at - time.time())):
                await self._alarm.wait()

    # The log

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Within it the state is what the log says, and nobody else changes it."""
        async with self._turns:
            if self._unsure:
                await self._log.append(BoardRead())
                self._state = await self._read()
                self._unsure = False
                for answered in self._state.answers.values():
                    self._wake(answered)
            yield

    async def _read(self) -> BoardState:
        state, end = BoardState(), self._log.last
        if end:
            async for event in self._log.read():
                if event.number > end:
                    break
                state.apply(event.value)
        state.forget(time.time() - self.config.remember_s)
        return state

    async def _write(self, event: _Event) -> None:
        try:
            await self._log.append(event)
        except StoreUnavailable:
            self._unsure = True
            raise
        except Fenced as error:
            self.start_soon(_raise, error)
            raise
        self._state.apply(event)

    async def _tidy(self) -> None:
        """Drop what ended long ago, and say the rest anew where most of the log is of no more use."""
        self._state.forget(time.time() - self.config.remember_s)
        if not self._state.worth_compaction():
            return
        try:
            first = 0
            for event in self._state.events():
                appended = await self._log.append(event)
                first = first or appended.first
            await self._log.truncate(first or self._log.last + 1)
        except Fenced:
            raise
        except StoreError as error:  # what is there twice does no harm
            log.warning("the log of questions is not made shorter: %s", error)
            return
        self._state.compacted()

    async def _whole(self, write: Coroutine[Any, Any, T]) -> T:
        """A write goes on when its caller has gone: log and state change together."""
        task = asyncio.ensure_future(write)
        self._writes.add(task)
        task.add_done_callback(self._written)
        return await asyncio.shield(task)

    def _written(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("a change of the board failed: %s", error)  # its caller was told, if there still is one

    async def stopped(self) -> None:
        if self._writes:
            await asyncio.wait(self._writes)


async def _raise(error: Exception) -> None:
    raise error
