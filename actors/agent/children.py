"""Runs that are tool calls of other runs: how they begin, what they spend, and how their end comes back.

A child's id follows from its parent's and the step, so starting one twice is starting it once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import msgspec

from ...schemas.agent import Control, ControlRun
from ...schemas.agent_log import RunStarted, ToolAnswered
from ...schemas.agent_parts import AgentTool, Outcome, RunStatus, Spent
from ...schemas.tool import ToolInfo
from .control import control
from .errors import NoSuchRun, RunOver
from .log import RunLog, Step, StepState
from .run import Run
from .table import Table


class Task(msgspec.Struct):
    """The one argument of an agent as a tool."""

    task: str


class Children:
    def __init__(self, table: Table) -> None:
        self._table = table

    def accounts(self, run: Run) -> Sequence[tuple[RunLog, Spent]]:
        """The run and those above it, each with what it has spent by now."""
        found: list[tuple[RunLog, Spent]] = []
        one: Run | None = run
        while one is not None:
            found.append((one.log, self._table.total(one.log)))
            one = self._table.live.get(one.log.started.parent)
        return found

    async def start(self, parent: Run, step: Step) -> None:
        """Begin the run that a step asks for; where it is there already, see that its end comes back."""
        agent = next(agent for agent in parent.log.started.agents if agent.name == step.tool)
        try:
            task = msgspec.json.decode(step.arguments, type=Task).task
        except msgspec.DecodeError as error:
            words = f"{agent.name} takes one argument, a task: {error}"
            parent.put(ToolAnswered(step=step.id, outcome=Outcome.FAILED, text=words, code="agent.bad_arguments"))
            return
        child = self._table.begin(step.child, (_started(parent.log, step, agent, task),))
        if child is None:
            child = await self._table.activate(step.child)
        child.kick()

    async def settle(self, run: Run) -> None:
        """After each turn of a run: if it is over, tell its parent and end its children; if it waits, put it away."""
        if run.log.ended is not None and run.is_quiet:
            for child in run.log.children:
                await self._say(child, ControlRun(child, Control.CANCEL, f"the run {run.id} ended"))
            if run.log.started.parent:
                await self._tell_parent(run)
        if run.is_quiet and self._waits(run):
            await self._table.park(run)
            parent = self._table.live.get(run.log.started.parent)
            if parent is not None and run.log.ended is None and parent.is_quiet:
                await self.settle(parent)

    def _waits(self, run: Run) -> bool:
        """Whether nothing will happen to it by itself: it is over, paused, or all of its steps wait for people."""
        log = run.log
        if log.ended is not None:
            return True
        for step in log.open_steps.values():
            by_people = step.state is StepState.ASKED or (step.child and step.child not in self._table.live)
            if not by_people:
                return False
        return bool(log.open_steps) or log.paused

    async def _tell_parent(self, run: Run) -> None:
        ended = run.log.ended
        assert ended is not None
        id_ = run.log.started.parent_step
        fine = ended.status is RunStatus.FINISHED
        text = ended.answer if fine else f"{ended.status.value}: {ended.why}\nreached: {ended.answer}"
        answer = ToolAnswered(
            step=id_,
            outcome=Outcome.OK if fine else Outcome.FAILED,
            text=text,
            code="" if fine else ended.code or "agent.child",
            spent=run.log.spent,
        )

        def make(parent: Run) -> Sequence[ToolAnswered]:
            step = parent.log.open_steps.get(id_)
            return (answer,) if step is not None and step.child == run.id and parent.log.ended is None else ()

        with contextlib.suppress(NoSuchRun):
            await self._table.say(run.log.started.parent, make)

    async def pass_on(self, run: Run, message: ControlRun) -> None:
        """What a person says to a run counts for its children too, except a redirect."""
        if message.what is not Control.REDIRECT:
            for child in run.log.children:
                await self._say(child, msgspec.structs.replace(message, run=child))

    async def _say(self, id_: str, message: ControlRun) -> None:
        try:
            run = await self._table.say(id_, lambda run: control(run, message))
            await self.pass_on(run, message)
        except (NoSuchRun, RunOver):  # it had not begun, or is over by itself
            return


def _started(parent: RunLog, step: Step, agent: AgentTool, task: str) -> RunStarted:
    given = parent.started
    return msgspec.structs.replace(
        given,
        at=0.0,
        planner=agent.planner,
        task=task,
        model=agent.model or given.model,
        model_address=agent.model_address or given.model_address,
        tools=matching(agent.tools, given.agent_tools),
        agents=(),
        agent_tools=(),
        shown=(),
        budget=agent.budget,
        options=agent.options,
        session=given.session or parent.run.partition(".")[0],
        parent=parent.run,
        parent_step=step.id,
        forked_from="",
        forked_at=0,
    )


def matching(names: Sequence[str], tools: Sequence[ToolInfo]) -> tuple[ToolInfo, ...]:
    """Those of the tools that the names mean, which may end in `*`."""
    return tuple(tool for tool in tools if any(fnmatchcase(tool.name, name) for name in names))
