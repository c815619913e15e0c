"""A run of an agent as people look at it: its steps in order, with what each asked, got and cost. Pure.

It is made of the run's events and nothing else, so the same events up to any number are the run as it then was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..schemas.agent_log import (
    AnyEvent,
    ApprovalAsked,
    ApprovalGiven,
    BudgetReached,
    Forked,
    LoopSeen,
    ModelAnswered,
    ModelCalled,
    ModelFailed,
    Paused,
    Planned,
    PlanStep,
    Redirected,
    Resumed,
    RunEnded,
    RunStarted,
    StepReady,
    Thought,
    ToolAnswered,
    ToolCalled,
)
from ..schemas.agent_parts import RunStatus

OPEN, ASKED, OK = "open", "asked", "ok"


@dataclass
class Moment:
    """A step, or a word between steps. `number`: of the last event about it, where a fork after it begins.

    `kind`: model, tool, thought, plan, person, note, end. `status`: open, asked, ok, or what went wrong. `details`:
    (name, text) pairs to be read in whole. `child`: the run that a tool call is.
    """

    id: str
    kind: str
    title: str
    number: int
    status: str = OPEN
    began: float = 0.0
    ended: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    child: str = ""
    details: dict[str, str] = field(default_factory=dict)

    @property
    def is_step(self) -> bool:
        return self.kind in ("model", "tool")

    def seconds(self, now: float = 0.0) -> float | None:
        """Of a step that goes on, until `now`, where that is given."""
        if not self.is_step or not self.began:
            return None
        end = self.ended or now
        return max(0.0, end - self.began) if end else None


@dataclass(frozen=True)
class PlannedStep:
    """A step of the present plan, and how far it is: waiting, ready, open, asked, ok, or what went wrong."""

    step: PlanStep
    status: str


class RunStory:
    def __init__(self, run: str, events: Iterable[AnyEvent] = ()) -> None:
        self.run = run
        self.events: list[AnyEvent] = []
        self.moments: list[Moment] = []
        self.status = RunStatus.RUNNING
        self.answer = ""
        self._steps: dict[str, Moment] = {}
        self._plan: dict[str, PlanStep] = {}
        self._ready: set[str] = set()
        for event in events:
            self.add(event)

    def until(self, number: int) -> RunStory:
        """The run as it was after so many events."""
        return RunStory(self.run, self.events[:number])

    @property
    def task(self) -> str:
        return self.events[0].task if self.events and isinstance(self.events[0], RunStarted) else ""

    @property
    def plan(self) -> Sequence[PlannedStep]:
        return [PlannedStep(step, self._plan_status(step)) for step in self._plan.values()]

    def _plan_status(self, step: PlanStep) -> str:
        if (moment := self._steps.get(step.id)) is not None:
            return moment.status
        return "ready" if step.id in self._ready else "waiting"

    def add(self, event: AnyEvent) -> None:
        self.events.append(event)
        number = len(self.events)
        match event:
            case RunStarted():
                self._say(event, "note", f"{event.planner}: {event.task}", number, **_start_details(event))
            case Forked():
                changes = ", ".join(word for word in (event.planner, event.model, event.options) if word)
                self._say(event, "note", f"begun from another run {changes}".rstrip(), number)
            case Thought():
                self._say(event, event.kind if event.kind == "plan" else "thought", event.text, number, text=event.text)
            case Planned():
                for step in event.steps:
                    self._plan[step.id] = step
                words = f"plan of {len(event.steps)} steps" + (f", the {event.replan + 1}." if event.replan else "")
                drawn = "\n".join(f"{one.id} = {one.tool}[{one.input}]\n    {one.plan}" for one in event.steps)
                self._say(event, "plan", words, number, steps=drawn)
            case StepReady():
                self._ready.add(event.step)
            case ModelCalled():
                self._begin(event.step, "model", event.purpose or "model", event, number)
            case ModelAnswered():
                moment = self._end(event.step, "model", "model", event, number, OK)
                moment.prompt_tokens = event.usage.prompt_tokens
                moment.completion_tokens = event.usage.completion_tokens
                moment.details["answer"] = event.text
                for call in event.tool_calls:
                    moment.details[f"calls {call.name}"] = call.arguments
            case ModelFailed():
                moment = self._end(event.step, "model", "model", event, number, "failed")
                moment.details["error"] = "\n".join(word for word in (event.text, event.hint, event.code) if word)
            case ToolCalled():
                moment = self._begin(event.step, "tool", event.tool, event, number)
                moment.details["arguments"] = event.arguments
                moment.child = event.child
                if event.attempt:
                    moment.details["attempt"] = str(event.attempt + 1)
            case ToolAnswered():
                self._tool_answered(event, number)
            case ApprovalAsked():
                moment = self._begin(event.step, "tool", event.tool or event.kind.value, event, number, ASKED)
                for name in ("arguments", "text", "why", "address"):
                    if text := getattr(event, name):
                        moment.details[name] = text
            case ApprovalGiven():
                self._answered(event, number)
            case Redirected():
                self._say(event, "person", f"{event.by or 'somebody'}: {event.text}", number, text=event.text)
            case Paused():
                self.status = RunStatus.PAUSED
                self._say(event, "person", f"paused by {event.by or 'somebody'}", number)
            case Resumed():
                self.status = RunStatus.RUNNING
                self._say(event, "person", f"goes on, as {event.by or 'somebody'} says", number)
            case LoopSeen():
                self._say(event, "note", f"{event.step}: the same result for the {event.count}. time", number)
            case BudgetReached():
                self._say(event, "note", f"budget: {event.text}", number)
            case RunEnded():
                self.status, self.answer = event.status, event.answer
                parts = {"answer": event.answer, "why": event.why, "code": event.code}
                self._say(event, "end", event.status.value, number, **{k: text for k, text in parts.items() if text})

    def _say(self, event: AnyEvent, kind: str, title: str, number: int, **details: str) -> None:
        said = Moment(f"#{number}", kind, title, number, OK, event.at, event.at, details=details)
        self.moments.append(said)

    def _begin(
        self, step: str, kind: str, title: str, event: AnyEvent, number: int, status: str = OPEN
    ) -> Moment:  # fmt: skip
        moment = self._steps.get(step)
        if moment is None:
            moment = self._steps[step] = Moment(step, kind, title, number, began=event.at)
            self.moments.append(moment)
        moment.number, moment.status = number, status
        return moment

    def _end(self, step: str, kind: str, title: str, event: AnyEvent, number: int, status: str) -> Moment:
        moment = self._begin(step, kind, title, event, number, status)
        moment.ended = event.at
        return moment

    def _tool_answered(self, event: ToolAnswered, number: int) -> None:
        moment = self._end(event.step, "tool", event.tool, event, number, event.outcome.value)
        if event.arguments:
            moment.details["arguments"] = event.arguments
        moment.details["result"] = event.text
        if event.value and event.value != event.text:
            moment.details["value"] = event.value
        if event.code:
            moment.details["code"] = event.code
        for media in event.media:
            moment.details[media.name] = f"{media.kind.value}, {media.mime}, {media.blob.size:,} bytes"
        moment.prompt_tokens, moment.completion_tokens = event.spent.prompt_tokens, event.spent.completion_tokens

    def _answered(self, event: ApprovalGiven, number: int) -> None:
        moment = self._begin(event.step, "tool", "", event, number)
        words = [f"{event.verdict.value} by {event.by or 'nobody'}"]
        words += [event.text] if event.text else []
        words += [f"for {event.scope.value} {event.pattern}".rstrip()] if event.scope.value != "once" else []
        moment.details["answered"] = "\n".join(words)
        if event.arguments:
            moment.details["arguments"] = event.arguments


def _start_details(event: RunStarted) -> dict[str, str]:
    tools = ", ".join(tool.name for tool in event.tools)
    budget = ", ".join(
        f"{value:g} {name}" for name in ("steps", "tokens", "seconds", "cost") if (value := getattr(event.budget, name))
    )
    parts = {
        "task": event.task,
        "model": f"{event.model} at {event.model_address}".strip(),
        "tools": tools,
        "options": "" if event.options == "{}" else event.options,
        "budget": budget,
        "forked from": f"{event.forked_from}, event {event.forked_at}" if event.forked_from else "",
        "called by": f"{event.parent}, step {event.parent_step}" if event.parent else "",
    }
    return {name: text for name, text in parts.items() if text}
