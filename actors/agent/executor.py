"""The actor that carries runs out. All that it knows of them is in its journal, of which it is the owner.

Killed and started again, anywhere, it reads the journal and goes on after the last event of each run. Another one that
was given the same journal fences it off: its next write fails, it ends, and it is not started again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

import msgspec

from ...runtime.actor import Actor, handler
from ...schemas.agent import (
    AnswerApproval,
    Answered,
    ApprovalOpened,
    Approvals,
    AttachRun,
    BeginRun,
    ControlRun,
    GetRun,
    ListApprovals,
    ListRuns,
    Pruned,
    PruneRuns,
    RunInfo,
    RunList,
)
from ...schemas.agent_log import AnyEvent, Entry, ModelRequest
from ...schemas.agent_parts import RunStatus, Spent
from .answering import answer, asked_in, check_answer
from .calls import RECALL, REMEMBER, Ask, pattern_of
from .children import Children
from .control import control
from .effects import Tools, ToolWork, ask_model, call_tool, use_memory
from .errors import NoSuchApproval, NoSuchRun
from .expiry import Expiry, expired
from .grants import Granted, Grants, reaches
from .info import approval_of
from .journal import Journal
from .log import RunLog, Step
from .news import News, announce, approval_news
from .nodes import Nodes
from .on_board import OnBoard
from .policy import Policy
from .run import Run
from .table import Table


class ExecutorConfig(msgspec.Struct, frozen=True):
    """`journal`: the name of the event log that this one owns. `questions`: what waits is on the board too."""

    journal: str = "agents.0"
    policy: Policy = Policy()
    questions: bool = True


class Executor(Actor[ExecutorConfig]):
    """Answers for the runs of its journal what `agents` is asked. Its handlers run beside each other."""

    def __init__(self) -> None:
        self._failed = False
        self._table: Table | None = None
        self._board: OnBoard | None = None

    @property
    def table(self) -> Table:
        assert self._table is not None, "it is there once the actor has started"
        return self._table

    async def started(self) -> None:
        self.policy = self.config.policy
        self._tools = Tools(self.node)
        self._grants = Grants(self.node)
        self.ask = Ask(self._tools.open, Nodes(self.node).of, self._grants.of)
        self._expiry = Expiry(self._expire, self.start_soon)
        journal, kept = await Journal.open(self.node, self.config.journal)
        self._table = Table(self, journal, kept)
        self.children = Children(self.table)
        for one in kept.values():
            for approval in one.approvals:
                self._expiry.add(approval.id, approval.expires_at)
        for run in await self.table.load_unfinished():
            for asked in run.log.approvals.values():
                self._expiry.add(asked.id, asked.expires_at)
            run.kick()
        if self.config.questions:
            self._board = OnBoard(self.node, self.config.journal, self.table.approvals, self.answer)
            self.start_soon(self._board.run)

    async def stopped(self) -> None:
        self._failed = True
        if self._table is not None:
            self._expiry.close()
            self._table.close()

    # What a run needs of its host

    def now(self) -> float:
        return time.time()

    async def write(self, run: Run, first: int, events: Sequence[AnyEvent]) -> None:
        await self.table.write(run, first, events)
        if news := approval_news(run.log, events):
            self.start_soon(announce, self.node, news)
            self._tell_board(run.log, news)
        for asked in run.log.approvals.values():
            self._expiry.add(asked.id, asked.expires_at)

    def _tell_board(self, log: RunLog, news: Sequence[News]) -> None:
        if (board := self._board) is None:
            return
        for one in news:
            if not isinstance(one, ApprovalOpened):
                board.closed(one.id)
            elif (asked := log.approvals.get(one.id)) is not None:
                board.opened(approval_of(log.run, asked))

    def accounts(self, run: Run) -> Sequence[tuple[RunLog, Spent]]:
        return self.children.accounts(run)

    def model_effect(self, run: Run, step: str, request: ModelRequest, seconds: float) -> Coroutine[Any, Any, Any]:
        return ask_model(self.node, request, run.log.started, run.id, step, seconds)

    def tool_effect(self, run: Run, step: Step, seconds: float) -> Coroutine[Any, Any, Any] | None:
        if step.child:
            self.start_soon(self.children.start, run, step)
            return None
        session = run.log.started.session or run.id.partition(".")[0]
        media = run.log.media_in(step.arguments)
        work = ToolWork(
            step.id, step.tool, step.arguments, f"{run.id}/{step.id}", session, media, step.repeatable, seconds
        )
        if step.tool in (REMEMBER, RECALL):
            return use_memory(self.node, run.log.started.memory, work)
        return call_tool(self.node, self._tools, work)

    def settled(self, run: Run) -> None:
        if not self._failed and run.is_quiet:
            self.start_soon(self.children.settle, run)

    def crashed(self, error: BaseException) -> None:
        """What was written is not known: end, and be started again from the journal (unless another owns it now)."""
        if not self._failed:
            self._failed = True
            self.start_soon(_raise, error)

    # Asking

    @handler(concurrent=True)
    async def begin(self, message: BeginRun) -> RunInfo:
        run = self.table.begin(message.run, message.events)
        if run is not None:
            await run.say(lambda _: ())
        return self.table.info(message.run)

    @handler(concurrent=True)
    async def get(self, message: GetRun) -> RunInfo:
        await self.table.ensure(message.run)
        return self.table.info(message.run)

    @handler(concurrent=True)
    async def list_runs(self, message: ListRuns) -> RunList:
        return RunList(tuple(self.table.infos(message)))

    @handler(concurrent=True)
    async def prune(self, message: PruneRuns) -> Pruned:
        return Pruned(await self.table.prune(message.before))

    @handler(concurrent=True)
    async def attach(self, message: AttachRun) -> AsyncIterator[Entry | RunInfo]:
        table, number = self.table, message.after
        await table.ensure(message.run)
        while True:
            for event in await table.events(message.run, number):
                number += 1
                yield Entry(message.run, number, event)
            info = table.info(message.run)
            if number < info.events:
                continue
            if info.ended_at or not message.follow:
                yield info
                return
            await table.news(message.run)

    @handler(concurrent=True)
    async def list_approvals(self, message: ListApprovals) -> Approvals:
        if message.run:
            self.table.info(message.run)
        return Approvals(tuple(self.table.approvals(message.run)))

    @handler(concurrent=True)
    async def answer(self, message: AnswerApproval) -> Answered:
        check_answer(message)
        new: list[bool] = []

        def make(run: Run) -> Sequence[AnyEvent]:
            events = answer(run.log, message)
            new.append(bool(events))
            if events and message.stop:
                why = f"stopped by {message.by or 'a person'}"
                return (*events, run.ending(RunStatus.CANCELLED, why=why, code="agent.cancelled"))
            return events

        id_ = message.id.partition(":")[0]
        try:
            await self.table.say(id_, lambda run: expired(run.log, message.id, self.now()))
            run = await self.table.say(id_, make)
        except NoSuchRun:
            raise NoSuchApproval(f"nothing waits under '{message.id}'") from None
        asked, _ = asked_in(run.log, message.id)
        session = reaches(message.scope, run.log.started.session)
        if asked is not None and session is not None:
            pattern = pattern_of(message.pattern, message.arguments or asked.arguments)
            await self._grants.add(Granted(asked.tool, pattern, message.verdict, session, message.by, message.id))
        return Answered(message.id, message.verdict, message.by, repeated=not new[0])

    @handler(concurrent=True)
    async def control(self, message: ControlRun) -> RunInfo:
        run = await self.table.say(message.run, lambda run: control(run, message))
        await self.children.pass_on(run, message)
        return self.table.info(message.run)

    async def _expire(self, id_: str) -> None:
        await self.table.say(id_.partition(":")[0], lambda run: expired(run.log, id_, self.now()))


async def _raise(error: BaseException) -> None:
    raise error
