"""One run under way: what came in is taken, the planner decides, all of it is written at once, and then it is done.

A run is no task. A pump works while there is something to work on, effects (a model call, a tool call) are tasks of
their own, and a run that waits for people, or for a run that it started, is an entry in a table.

    take what came in -> decide -> one write -> begin what was decided -> again, until there is nothing to do

A call that may be made twice (read-only or idempotent, and any model call) begins beside the write that records it; any
other begins when that write is on the disk, so that after a death of its owner it is known to have been under way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from ...runtime.errors import CallboardError, StoreError
from ...runtime.log import log as logger
from ...schemas.agent_log import (
    AnyEvent,
    BudgetReached,
    LoopSeen,
    ModelAnswered,
    ModelCalled,
    ModelFailed,
    ModelRequest,
    RunEnded,
    ToolAnswered,
)
from ...schemas.agent_parts import Outcome, RunStatus
from .budget import over_budget, seconds_left
from .calls import after_answer, is_step_id, question, settle
from .digest import digest
from .errors import NoRoomInRun
from .hosting import Host, Said
from .log import RunLog, Step, StepState
from .planner import Ask as AskPerson
from .planner import Call, Decision, Finish, GiveUp, ModelCall, Planner, ToolCalls, Wait
from .recovery import recover

# The same call with the same result: from the third on the model is told, with the sixth the run ends.
TELL_LOOP = 3
STOP_LOOP = 6
# Decisions in a row that begin nothing and end nothing: a planner that goes round in circles.
MAX_IDLE_DECISIONS = 200


class Run:
    """`durable`: how many of the log's events are on the disk; `stored`: those in the run's own log, by its last move.

    All changes go through `put` and `say`, and happen in the pump, one after the other.
    """

    def __init__(self, host: Host, log: RunLog, planner: Planner, durable: int, stored: int) -> None:
        self.host = host
        self.log = log
        self.planner = planner
        self.durable = durable
        self.stored = stored
        self.effects: dict[str, asyncio.Task[Any]] = {}
        self._inputs: deque[AnyEvent | Said] = deque()
        self._begun: set[str] = set()
        self._pump: asyncio.Task[None] | None = None
        self._starting: list[tuple[bool, str, Callable[[], Coroutine[Any, Any, Any] | None]]] = []
        self._idle = 0

    @property
    def id(self) -> str:
        return self.log.run

    @property
    def is_quiet(self) -> bool:
        """Whether nothing goes on by itself."""
        return self._pump is None and not self.effects and not self._inputs

    def put(self, event: AnyEvent) -> None:
        """What an effect ended in."""
        self._inputs.append(event)
        self.kick()

    async def say(self, make: Callable[[Run], Sequence[AnyEvent]]) -> None:
        """Returns when it is on the disk. Raises what `make` raises."""
        done = asyncio.get_running_loop().create_future()
        self._inputs.append(Said(make, done))
        self.kick()
        await done

    def kick(self) -> None:
        if self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Let go of it at once; what is on the disk is what it is."""
        for task in (self._pump, *self.effects.values()):
            if task is not None:
                task.cancel()

    async def _run(self) -> None:
        waiting: list[Said] = []
        try:
            while True:
                self._take(waiting)
                await self._go_on()
                new = self.log.events[self.durable :]
                self._begin(repeatable=True)
                if new:
                    try:
                        await self.host.write(self, self.durable + 1, new)
                    except NoRoomInRun as error:
                        self._give_up(error)
                        continue
                    self.durable += len(new)
                self._begin(repeatable=False)
                for said in waiting:
                    if not said.done.done():
                        said.done.set_result(None)
                waiting.clear()
                if self.log.ended is not None:
                    self._cancel_effects()
                if not self._inputs and not (new and self._has_more()):
                    return
        except asyncio.CancelledError as error:
            self._fail(waiting, error)
            raise
        except Exception as error:
            self._fail(waiting, error)
            self.host.crashed(error)
        finally:
            self._pump = None
            self.host.settled(self)

    def _give_up(self, error: NoRoomInRun) -> None:
        """What was decided last can be written nowhere: it has not happened, and the run ends."""
        self._cancel_effects()
        self._starting.clear()
        self.log = RunLog(self.id, self.log.events[: self.durable])
        self.end(RunStatus.FAILED, why=str(error), code=error.code)

    def _fail(self, waiting: Sequence[Said], error: BaseException) -> None:
        for said in (*waiting, *(one for one in self._inputs if isinstance(one, Said))):
            if not said.done.done():
                said.done.set_exception(_as_store_error(error))

    def _has_more(self) -> bool:
        """Whether the last turn may be followed by another without news: nothing is open, and it is not over."""
        return self.log.ended is None and not self.log.paused and not self.log.open_steps

    def _take(self, waiting: list[Said]) -> None:
        while self._inputs:
            one = self._inputs.popleft()
            if isinstance(one, Said):
                try:
                    events = one.make(self)
                except CallboardError as error:
                    if not one.done.done():
                        one.done.set_exception(error)
                    continue
                for event in events:
                    self.stage(event)
                waiting.append(one)
            elif self.log.ended is None and getattr(one, "step", "") in self.log.open_steps:
                self.stage(one)

    def stage(self, event: AnyEvent) -> None:
        if not event.at:
            event = msgspec.structs.replace(event, at=self.host.now())
        self.log.apply(event)
        if isinstance(event, ToolAnswered) and self.log.ended is None:
            self._look_for_loop(event)

    def _look_for_loop(self, event: ToolAnswered) -> None:
        count = self.log.repeated()
        if count >= STOP_LOOP:
            step = self.log.steps[event.step]
            self.end(RunStatus.STOPPED, why=f"{step.tool} was called {count} times with the same result", code="loop")
        elif count >= TELL_LOOP:
            self.stage(LoopSeen(step=event.step, count=count))

    def end(self, status: RunStatus, answer: str = "", why: str = "", code: str = "") -> None:
        self.stage(self.ending(status, answer, why, code))

    def ending(self, status: RunStatus, answer: str = "", why: str = "", code: str = "") -> RunEnded:
        """The event of an end, with what was reached so far where there is no answer."""
        if not answer and status is not RunStatus.FINISHED:
            try:
                answer = self.planner.reached(self.log)
            except Exception as error:  # somebody else's planner: the run ends all the same
                logger.warning("the planner of %s cannot say what was reached: %r", self.id, error)
        return RunEnded(status=status, answer=answer, why=why, code=code)

    # Going on

    async def _go_on(self) -> None:
        log = self.log
        if log.ended is not None:
            return
        for step in list(log.open_steps.values()):
            if step.state is StepState.READY:
                await self._settle_answer(step)
            elif step.state is StepState.CALLED and step.id not in self._begun and not step.child:
                recover(self, step)
            elif step.child and step.id not in self._begun:
                self.start_tool(step)
        while log.ended is None and not log.paused and (self.planner.eager or not log.open_steps):
            if not await self._decide():
                return

    async def _settle_answer(self, step: Step) -> None:
        try:
            events = await after_answer(self.log, step, self.host.policy, self.host.ask, self.host.now())
        except StoreError:
            raise
        except CallboardError as error:
            events = [_failed(step.id, error)]
        for event in events:
            self.stage(event)
        if step.state is StepState.CALLED:
            self.start_tool(step)

    async def _decide(self) -> bool:
        """One decision; whether the planner is to be asked again at once."""
        log = self.log
        reached = over_budget(self.host.accounts(self), len(log.open_steps))
        if reached is not None:
            self.stage(BudgetReached(run=reached.run, limit=reached.limit, text=reached.text))
            self.end(RunStatus.STOPPED, why=reached.text, code="budget")
            return False
        try:
            decision = self.planner.decide(log)
        except Exception as error:  # somebody else's code, over a log that a model wrote: the run ends, not its owner
            logger.warning("the planner of %s failed", self.id, exc_info=error)
            self.end(RunStatus.FAILED, why=f"the planner failed: {error!r}", code="agent.planner")
            return False
        self._idle += 1
        if self._idle > MAX_IDLE_DECISIONS:
            self.end(RunStatus.FAILED, why="the planner goes round in circles", code="agent.planner")
            return False
        for note in decision.notes:
            self.stage(note)
        return await self._carry_out(decision)

    async def _carry_out(self, decision: Decision) -> bool:
        log = self.log
        match decision:
            case ModelCall(request=request, id=id_):
                if not self._check_id(id_ := id_ or log.next_id("m")):
                    return False
                called_ = ModelCalled(
                    step=id_, purpose=request.purpose, digest=digest(request), notes=len(decision.notes)
                )
                self.stage(called_)
                self.start_model(id_, request)
                return self.planner.eager
            case ToolCalls(calls=calls):
                if not calls:
                    self.end(RunStatus.FAILED, why="the planner wants to call nothing", code="agent.planner")
                for call in calls:
                    if log.ended is None:
                        await self._call(call)
                return log.ended is None and (self.planner.eager or not log.open_steps)
            case AskPerson(question=text):
                self.stage(question(log, log.next_id("q"), text, self.host.policy, self.host.now()))
                return self.planner.eager
            case Finish(answer=answer):
                self.end(RunStatus.FINISHED, answer)
            case GiveUp(why=why, reached=reached, code=code):
                self.end(RunStatus.FAILED, reached, why, code)
            case Wait():
                if not log.open_steps:
                    self.end(RunStatus.FAILED, why="the planner waits, and nothing is under way", code="agent.planner")
        return False

    async def _call(self, call: Call) -> None:
        log, host = self.log, self.host
        if not self._check_id(id_ := call.id or log.next_id("t")):
            return
        if over_budget(host.accounts(self), len(log.open_steps)) is not None:
            words = "not run: the budget allows no further step"
            refused = ToolAnswered(step=id_, outcome=Outcome.FAILED, text=words, code="agent.budget")
            self.stage(msgspec.structs.replace(refused, tool=call.tool, arguments=call.arguments[:2000]))
            return
        try:
            events = await settle(log, call, id_, host.policy, host.ask, host.now())
        except StoreError:
            raise
        except CallboardError as error:
            failed = _failed(id_, error)
            events = [msgspec.structs.replace(failed, tool=call.tool, arguments=call.arguments)]
        for event in events:
            self.stage(event)
        step = log.steps[id_]
        if step.state is StepState.CALLED and log.ended is None:
            self.start_tool(step)

    def _check_id(self, id_: str) -> bool:
        if is_step_id(id_) and id_ not in self.log.steps:
            return True
        words = "is there already" if id_ in self.log.steps else "is no name for a step"
        self.end(RunStatus.FAILED, why=f"the planner's step '{id_[:80]}' {words}", code="agent.planner")
        return False

    # Effects

    def start_model(self, id_: str, request: ModelRequest) -> None:
        self._begun.add(id_)
        seconds = seconds_left(self.host.accounts(self))
        self._starting.append((True, id_, lambda: self.host.model_effect(self, id_, request, seconds)))

    def start_tool(self, step: Step) -> None:
        self._begun.add(step.id)
        seconds = seconds_left(self.host.accounts(self))
        self._starting.append(
            (step.repeatable and not step.child, step.id, lambda: self.host.tool_effect(self, step, seconds))
        )

    def _begin(self, *, repeatable: bool) -> None:
        later = []
        for entry in self._starting:
            may_repeat, id_, make = entry
            if repeatable and not may_repeat:
                later.append(entry)
                continue
            self._idle = 0
            if self.log.ended is None and (work := make()) is not None:
                task = asyncio.get_running_loop().create_task(self._effect(id_, work))
                self.effects[id_] = task
        self._starting = later

    async def _effect(self, id_: str, work: Coroutine[Any, Any, ToolAnswered | ModelAnswered | ModelFailed]) -> None:
        try:
            event = await work
        except Exception as error:
            self.host.crashed(error)
            return
        finally:
            self.effects.pop(id_, None)
        self.put(event)

    def _cancel_effects(self) -> None:
        for task in tuple(self.effects.values()):
            task.cancel()


def _failed(step: str, error: CallboardError) -> ToolAnswered:
    text = f"{error}\n{error.hint}" if error.hint else str(error)
    return ToolAnswered(step=step, outcome=Outcome.FAILED, text=text, code=error.code)


def _as_store_error(error: BaseException) -> CallboardError:
    if isinstance(error, CallboardError):
        return error
    return StoreError("the executor of the run ended before it was written", hint="ask how the run stands")
