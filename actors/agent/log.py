"""A run as what its events say: the fold that planners decide by and that executors go on from. Pure.

The same events give the same state, whoever reads them and whenever; nothing about a run is kept anywhere else.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import msgspec

from ...schemas.abilities import ModelAbilities
from ...schemas.agent_log import (
    AnyEvent,
    ApprovalAsked,
    ApprovalGiven,
    Forked,
    ModelAnswered,
    ModelCalled,
    ModelFailed,
    Paused,
    Planned,
    Redirected,
    Resumed,
    RunEnded,
    RunStarted,
    ToolAnswered,
    ToolCalled,
)
from ...schemas.agent_parts import Outcome, RunStatus, Scope, Spent, Verdict
from ...schemas.serve import GrammarKind
from ...schemas.tool import Media, ToolInfo

Options = TypeVar("Options", bound=msgspec.Struct)

# Among so many tool calls, the same one with the same result is taken for a loop when it comes too often.
LOOP_WINDOW = 12


class StepState(enum.Enum):
    """`ASKED`: a person has not answered yet. `READY`: a person has let it be, and it is not under way yet."""

    ASKED = "asked"
    READY = "ready"
    CALLED = "called"
    OVER = "over"


@dataclass(eq=False, slots=True)
class Step:
    """A model call (`tool` is "") or a tool call, as far as it is. `arguments`: those that run, edited or not."""

    id: str
    tool: str = ""
    arguments: str = ""
    state: StepState = StepState.CALLED
    outcome: Outcome | None = None
    text: str = ""
    code: str = ""
    repeatable: bool = True
    child: str = ""
    attempt: int = 0
    began_at: float = 0.0
    ended_at: float = 0.0
    answer: ToolAnswered | ModelAnswered | ModelFailed | None = None
    asked: ApprovalAsked | None = None
    given: ApprovalGiven | None = None

    @property
    def is_open(self) -> bool:
        return self.state is not StepState.OVER

    @property
    def is_model(self) -> bool:
        return not self.tool


@dataclass(frozen=True, slots=True)
class Grant:
    """A person's answer that reaches further than its call: a glob over arguments."""

    tool: str
    pattern: str
    verdict: Verdict


class RunLog:
    """One run. `events` are all of them, in order; the rest is what they come to.

    `steps`: by id, in the order in which they began; `open_steps`: those that are not over. `approvals`: open ones by
    id. `latest`: tool, arguments and result of the last calls.
    """

    def __init__(self, run: str, events: Iterable[AnyEvent] = ()) -> None:
        self.run = run
        self.events: list[AnyEvent] = []
        self.started = RunStarted(planner="", task="")
        self.steps: dict[str, Step] = {}
        self.open_steps: dict[str, Step] = {}
        self.approvals: dict[str, ApprovalAsked] = {}
        self.grants: list[Grant] = []
        self.spent = Spent(0)
        self.paused = False
        self.ended: RunEnded | None = None
        self.latest: deque[tuple[str, str, str]] = deque(maxlen=LOOP_WINDOW)
        self.model_answers: list[ModelAnswered] = []
        self.redirects: list[Redirected] = []
        self.plans: list[Planned] = []
        self.media: dict[str, Media] = {}
        for event in events:
            self.apply(event)

    # What a planner asks

    def holds_to(self, kind: GrammarKind) -> bool:
        """Whether the run's model can be held to a grammar of that kind, as far as is known."""
        return (able := self._abilities) is None or kind in able.grammars

    @property
    def calls_tools(self) -> bool:
        """Whether the run's model has said that it calls tools by itself."""
        return (able := self._abilities) is not None and able.tools

    def turns_without_effect(self) -> int:
        """Answers of the model, at the end of the log, that led to nothing."""
        count = 0
        for event in reversed(self.events):
            if isinstance(event, ModelAnswered):
                count += 1
            elif isinstance(event, ToolAnswered | Redirected):
                break
        return count

    @property
    def _abilities(self) -> ModelAbilities | None:
        address = self.started.model_address
        return next((able for able in self.started.abilities if able.address == address), None)

    @property
    def task(self) -> str:
        return self.started.task

    @property
    def tools(self) -> tuple[ToolInfo, ...]:
        return self.started.tools

    @property
    def last(self) -> AnyEvent:
        return self.events[-1]

    def options(self, kind: type[Options]) -> Options:
        """The run's options as the planner's own type. Raises msgspec.ValidationError; checked when a run starts."""
        return _options(self.started.options, kind)

    def results(self) -> list[Step]:
        """Tool calls that are over, in the order in which they began."""
        return [step for step in self.steps.values() if step.tool and not step.is_open]

    def next_id(self, letter: str) -> str:
        """A step id that is free: the letter and how many steps there have been."""
        return f"{letter}{len(self.steps) + 1}"

    # What an executor asks

    @property
    def status(self) -> RunStatus:
        if self.ended is not None:
            return self.ended.status
        if self.paused:
            return RunStatus.PAUSED
        waits = self.open_steps and all(step.state is StepState.ASKED for step in self.open_steps.values())
        return RunStatus.WAITING if waits else RunStatus.RUNNING

    def repeated(self) -> int:
        """How often, of late, the last tool call was made with the same arguments and had the same result."""
        return self.latest.count(self.latest[-1]) if self.latest else 0

    def media_in(self, arguments: str) -> tuple[Media, ...]:
        """Images, sounds and files of earlier results whose names stand in a call's arguments; of one name the last."""
        return tuple(media for name, media in self.media.items() if f'"{name}"' in arguments)

    @property
    def children(self) -> dict[str, str]:
        """Child runs under way: their ids, and the step of each."""
        return {step.child: step.id for step in self.open_steps.values() if step.child}

    # The fold

    def apply(self, event: AnyEvent) -> None:
        self.events.append(event)
        fold = _FOLDS.get(type(event))
        if fold is not None:
            fold(self, event)

    def _start(self, event: RunStarted) -> None:
        self.started = event

    def _fork(self, event: Forked) -> None:
        changes = {name: getattr(event, name) for name in ("planner", "model", "options") if getattr(event, name)}
        self.started = msgspec.structs.replace(self.started, **changes)

    def _begin(self, step: Step) -> Step:
        self.steps[step.id] = step
        self.open_steps[step.id] = step
        return step

    def _model_called(self, event: ModelCalled) -> None:
        self._begin(Step(event.step, began_at=event.at))

    def _model_answered(self, event: ModelAnswered) -> None:
        usage = event.usage
        self.spent += Spent(1, usage.prompt_tokens, usage.completion_tokens, event.seconds, event.cost)
        self.model_answers.append(event)
        self._over(event.step, event, Outcome.OK, event.text, "")

    def _model_failed(self, event: ModelFailed) -> None:
        self.spent += Spent(1, seconds=event.seconds)
        self._over(event.step, event, Outcome.FAILED, event.text, event.code)

    def _tool_called(self, event: ToolCalled) -> None:
        step = self.open_steps.get(event.step) or self._begin(Step(event.step, event.tool))
        step.arguments, step.state, step.began_at = event.arguments, StepState.CALLED, event.at
        step.repeatable, step.child, step.attempt = event.repeatable, event.child, event.attempt

    def _tool_answered(self, event: ToolAnswered) -> None:
        step = self.open_steps.get(event.step)
        if step is None:  # refused before it began
            step = self._begin(Step(event.step, event.tool, event.arguments, StepState.READY, began_at=event.at))
        self.spent += Spent(1, seconds=event.seconds) + event.spent
        if event.media:
            self.media |= {media.name: media for media in event.media}
        self.latest.append((step.tool, step.arguments, event.text))
        self._over(event.step, event, event.outcome, event.text, event.code)

    def _over(
        self, id_: str, answer: ToolAnswered | ModelAnswered | ModelFailed, outcome: Outcome, text: str, code: str
    ) -> None:
        step = self.open_steps.pop(id_, None) or self.steps.setdefault(id_, Step(id_))
        step.state, step.answer, step.outcome = StepState.OVER, answer, outcome
        step.text, step.code, step.ended_at = text, code, answer.at

    def _asked(self, event: ApprovalAsked) -> None:
        step = self.open_steps.get(event.step)
        if step is None:
            step = self._begin(Step(event.step, event.tool, event.arguments, began_at=event.at))
        step.state, step.asked = StepState.ASKED, event
        self.approvals[event.id] = event

    def _given(self, event: ApprovalGiven) -> None:
        asked = self.approvals.pop(event.id, None)
        step = self.open_steps.get(event.step)
        if asked is None or step is None:
            return
        step.state, step.given = StepState.READY, event
        if event.verdict is Verdict.APPROVE and event.arguments:
            step.arguments = event.arguments
        if event.scope is Scope.RUN:
            self.grants.append(Grant(asked.tool, event.pattern, event.verdict))

    def _pause(self, _: Paused) -> None:
        self.paused = True

    def _resume(self, _: Resumed) -> None:
        self.paused = False

    def _redirect(self, event: Redirected) -> None:
        self.redirects.append(event)

    def _plan(self, event: Planned) -> None:
        self.plans.append(event)

    def _end(self, event: RunEnded) -> None:
        self.ended = event
        self.approvals.clear()


_FOLDS = {
    RunStarted: RunLog._start,
    Forked: RunLog._fork,
    ModelCalled: RunLog._model_called,
    ModelAnswered: RunLog._model_answered,
    ModelFailed: RunLog._model_failed,
    ToolCalled: RunLog._tool_called,
    ToolAnswered: RunLog._tool_answered,
    ApprovalAsked: RunLog._asked,
    ApprovalGiven: RunLog._given,
    Paused: RunLog._pause,
    Resumed: RunLog._resume,
    Redirected: RunLog._redirect,
    Planned: RunLog._plan,
    RunEnded: RunLog._end,
}


@lru_cache(maxsize=256)
def _options(text: str, kind: type[Options]) -> Options:
    return msgspec.json.decode(text, type=kind)


def canonical(arguments: str) -> str:
    """Arguments as policies and grants compare them: compact JSON with sorted keys; as they are where they are none."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments
    return msgspec.json.encode(value, order="sorted").decode()
