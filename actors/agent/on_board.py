"""What waits for people in an executor's runs, also as questions on the company's board, so that any client answers it.

`agents` decides: the board is told what opened and closed there, and an answer on the board is given to the run as
anybody's is. Whatever was missed, since either of the two was away, is compared when both are there again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from ...runtime.errors import (
    ActorStopped,
    BusError,
    CallboardError,
    NoSuchActor,
    StoreUnavailable,
    UsageError,
)
from ...runtime.log import log
from ...runtime.node import Node
from ...runtime.topics import Listener
from ...schemas.agent import AnswerApproval, Approval
from ...schemas.question import (
    Answered,
    AskQuestion,
    BoardStarted,
    CancelQuestion,
    ListQuestions,
    PutQuestion,
    QuestionClosed,
)
from .board_question import answer_of, question_of
from .errors import AgentError

BOARD = "questions"
# Of one executor at once, so that others find room on the board; the rest follow as these are answered.
MAX_ON_BOARD = 200
ASK_S = 10.0
# What was published while nobody could hear it is not said again.
LOOK_EVERY_S = 60.0
# A board that has just said that it is there may not be reachable yet, and one that failed may be back.
AGAIN_S = 0.5
EXPECT_S = 10.0


class OnBoard:
    """For one executor. `approvals`: all that waits there; `answer`: gives an answer to it."""

    def __init__(
        self,
        node: Node,
        asker: str,
        approvals: Callable[[], Iterable[Approval]],
        answer: Callable[[AnswerApproval], Coroutine[Any, Any, object]],
    ) -> None:
        self._node = node
        self._asker = asker
        self._approvals = approvals
        self._answer = answer
        self._due: dict[str, Approval] = {}  # by their ids: to be put on the board
        self._over: set[str] = set()  # approvals to be taken from it
        self._shown: dict[str, str] = {}  # approvals by the ids of their questions
        self._closed: set[str] = set()  # questions of ours that have ended
        self._putting = ""
        self._full = False
        self._expected_until = 0.0
        self._compare = True
        self._absent = False  # there is no board, until one says that it is there
        self._told = False
        self._wake = asyncio.Event()

    def opened(self, approval: Approval) -> None:
        if not self._absent:
            self._due[approval.id] = approval
            self._wake.set()

    def closed(self, id_: str) -> None:
        was_put = self._due.pop(id_, None) is None or self._putting == id_
        if was_put and not self._absent:
            self._over.add(id_)
            self._wake.set()

    async def run(self) -> None:
        async with self._node.listen("topic.questions.*", QuestionClosed, BoardStarted) as news:
            hearing = asyncio.create_task(self._hear(news))
            try:
                while True:
                    self._wake.clear()
                    rest = await self._settle()
                    try:
                        async with asyncio.timeout(rest):
                            await self._wake.wait()
                    except TimeoutError:
                        self._compare = True
                    self._absent = False
            finally:
                hearing.cancel()

    async def _hear(self, news: Listener) -> None:
        try:
            async for _, message in news:
                if isinstance(message, BoardStarted):
                    self._compare = True
                    self._expected_until = asyncio.get_running_loop().time() + EXPECT_S
                elif message.asker == self._asker:
                    self._closed.add(message.id)
                elif not self._full:
                    continue
                self._wake.set()
        except CallboardError as error:
            log.warning("answers on the board of questions are seen late: %s", error)

    async def _settle(self) -> float:
        """Do what there is to do. Returns how long to rest unless there is news."""
        self._full = False
        try:
            if self._compare:
                await self._look()
            await self._put()
            await self._take_answers()
            await self._take_back()
        except NoSuchActor:
            self._forget()
            return self._miss()
        except (ActorStopped, BusError, StoreUnavailable) as error:
            log.info("the board of questions is asked again: %s", error)
            self._forget()
            return AGAIN_S
        except CallboardError as error:
            self._full = error.code == "question.full"
            log.warning("what waits for people is not on the board of questions for now: %s", error)
            self._forget()
        return LOOK_EVERY_S

    def _miss(self) -> float:
        """There is no board. Whoever wants one starts it, and it says so when it is there."""
        if asyncio.get_running_loop().time() < self._expected_until:
            return AGAIN_S
        if not self._told:
            log.info("there is no board of questions: what waits for people is at `agents` alone")
        self._told = self._absent = True
        return LOOK_EVERY_S

    def _forget(self) -> None:
        """The next look finds out."""
        self._compare = True
        self._due.clear()
        self._over.clear()

    async def _look(self) -> None:
        """Compare the board with what waits. What was answered there meanwhile is told when it is put again."""
        found = await self._node.actor(BOARD).ask(ListQuestions(self._asker), ASK_S)
        self._compare = self._told = False
        waits = {one.id: one for one in self._approvals()}
        self._shown = {one.id: one.approval for one in found.questions if one.approval in waits}
        self._over = {one.approval for one in found.questions if one.approval not in waits}
        self._due = {id_: one for id_, one in waits.items() if id_ not in set(self._shown.values())}

    async def _put(self) -> None:
        for id_, approval in list(self._due.items()):
            if len(self._shown) >= MAX_ON_BOARD:
                return
            if id_ not in self._due:
                continue
            question = question_of(approval, self._asker)
            if question is None:
                log.info("%s has too much to show for the board of questions: it is at `agents` alone", id_)
                self._due.pop(id_)
                continue
            await self._put_one(id_, question)

    async def _put_one(self, id_: str, question: AskQuestion) -> None:
        self._putting = id_
        try:
            there = await self._node.actor(BOARD).ask(PutQuestion(question), ASK_S)
        finally:
            self._putting = ""
        if self._due.pop(id_, None) is None:
            return  # it closed meanwhile, and is taken back
        if there.answers:
            await self._give(id_, there.answers[0])
        else:
            self._shown[there.questions[0].id] = id_

    async def _take_answers(self) -> None:
        while self._closed:
            id_ = self._closed.pop()
            if (approval := self._shown.pop(id_, None)) is None:
                continue
            found = await self._node.actor(BOARD).ask(ListQuestions(id=id_, closed=True), ASK_S)
            for answered in found.answers:
                await self._give(approval, answered)
            self._wake.set()  # there is room for another

    async def _give(self, approval: str, answered: Answered) -> None:
        message = answer_of(approval, answered)
        if message is None:
            return  # put away, or expired there: it goes on waiting here
        try:
            await self._answer(message)
        except (AgentError, UsageError) as error:  # somebody was faster, or its run is over: that stands
            log.info("the answer on the board to %s counts for nothing: %s", approval, error)

    async def _take_back(self) -> None:
        for id_ in list(self._over):
            for question in [one for one, approval in self._shown.items() if approval == id_]:
                del self._shown[question]
            try:
                cancel = CancelQuestion(asker=self._asker, key=id_, note="answered elsewhere, or its run is over")
                await self._node.actor(BOARD).ask(cancel, ASK_S)
            except NoSuchActor:
                raise
            except CallboardError as error:
                if not error.code.startswith("question"):
                    raise
                log.debug("a question is not taken back: %s", error)  # it never was there, or was answered there
            self._over.discard(id_)
