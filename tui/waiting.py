"""What waits for a person, on every page: approvals of agents and questions of the board.

One task of the app keeps both lists. It asks for them when the bus is there, when one of the free subjects says that
something opened or closed, and now and then, since what was published while nobody could hear it is not said again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..runtime.errors import ActorStopped, CallboardError, NoSuchActor
from ..schemas.agent import Approval, ApprovalClosed, ApprovalOpened, Approvals, ListApprovals
from ..schemas.question import ListQuestions, Question, QuestionClosed, QuestionList, QuestionOpened
from .notice import ring

if TYPE_CHECKING:
    from ..runtime.topics import Listener
    from .app import CallboardApp
    from .session import Session

AGENTS, QUESTIONS = "agents", "questions"
PAGE = "approvals"
# For what was missed.
LOOK_EVERY_S = 60.0
# News that come together are looked at together.
TOGETHER_S = 0.1
AGAIN_S = 1.0


class Waiting:
    """`approvals` and `questions`, oldest first. `on_change` are called when they change."""

    def __init__(self, app: CallboardApp, session: Session) -> None:
        self.approvals: tuple[Approval, ...] = ()
        self.questions: tuple[Question, ...] = ()
        self.on_change: list[Callable[[], None]] = []
        self._app = app
        self._session = session
        self._known: set[str] | None = None
        self._news = asyncio.Event()
        session.on_change.append(self._news.set)

    def look(self) -> None:
        """Ask for the lists now."""
        self._news.set()

    async def run(self) -> None:
        while True:
            while not self._session.connected:
                self._news.clear()
                await self._news.wait()
            try:
                await self._follow()
            except CallboardError:  # the connection is on its way out, or back; its line says so
                await asyncio.sleep(AGAIN_S)

    async def _follow(self) -> None:
        losses = self._session.losses
        types = (ApprovalOpened, ApprovalClosed, QuestionOpened, QuestionClosed)
        async with (
            self._session.listen("topic.agents.approval.*", *types) as approvals,
            self._session.listen("topic.questions.*", *types) as questions,
        ):
            hearing = [asyncio.create_task(self._hear(listener)) for listener in (approvals, questions)]
            try:
                while self._session.connected and self._session.losses == losses:
                    self._news.clear()
                    await self._look()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_EVERY_S):
                            await self._news.wait()
                    await asyncio.sleep(TOGETHER_S)
            finally:
                for task in hearing:
                    task.cancel()

    async def _hear(self, listener: Listener) -> None:
        with contextlib.suppress(CallboardError):  # the connection is lost, which the session says
            async for _ in listener:
                self._news.set()

    async def _look(self) -> None:
        try:
            approvals: Approvals = await self._session.ask(AGENTS, ListApprovals())
            found = approvals.approvals
        except (NoSuchActor, ActorStopped):
            found = ()
        try:
            listed: QuestionList = await self._session.ask(QUESTIONS, ListQuestions())
            asked = tuple(one for one in listed.questions if not one.approval)  # those are in the other list
        except (NoSuchActor, ActorStopped):
            asked = ()
        self._take(found, asked)

    def _take(self, approvals: tuple[Approval, ...], questions: tuple[Question, ...]) -> None:
        if (approvals, questions) == (self.approvals, self.questions) and self._known is not None:
            return
        self.approvals, self.questions = approvals, questions
        ids = {one.id: _line(one) for one in (*approvals, *questions)}
        new = [] if self._known is None else [line for id, line in ids.items() if id not in self._known]
        self._known = set(ids)
        self._app.set_badge(PAGE, len(ids))
        if new:
            words = new[0] if len(new) == 1 else f"{new[0]}, and {len(new) - 1} more"
            self._app.notify(words, title="Waits for you (F9)", markup=False)
            ring(self._app, f"Callboard: {words}")
        for tell in tuple(self.on_change):
            tell()


def _line(one: Approval | Question) -> str:
    """Without arguments: a notification is seen by whoever looks over the shoulder."""
    if isinstance(one, Question):
        return f"{one.asker} asks: {one.text}"
    return one.text if one.kind.value == "question" else f"an agent wants to call {one.tool}"
