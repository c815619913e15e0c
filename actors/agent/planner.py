"""What a planner is: the log in, the next decision out.

A planner keeps nothing. Asked twice over the same log it decides the same, so a run goes on anywhere, after anything.
A package announces one as an entry point of the group `callboard.planners`: `react = "package.module:ReAct"`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from ...schemas.agent_log import ModelRequest, Planned, StepReady, Thought
from .log import RunLog

Note = Thought | Planned | StepReady


@dataclass(frozen=True, slots=True)
class ModelCall:
    """Ask the model. `notes` of any decision are written down before it is carried out."""

    request: ModelRequest
    notes: tuple[Note, ...] = ()
    id: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call. `arguments`: a JSON object. `id`: its step, "" for the next free one.

    `ask`: a person is to approve it whatever the policy says, and is shown `text`. `approved`: a person let it be ahead
    of time, so where no rule speaks of it, nobody is asked.
    """

    tool: str
    arguments: str = "{}"
    id: str = ""
    ask: bool = False
    approved: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class ToolCalls:
    """Call tools, all at once. A call that cannot be made (no such tool, denied) is answered like any other."""

    calls: tuple[Call, ...]
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a person; the answer is a tool result of `ask_human`."""

    question: str
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    answer: str
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the run without an answer; `reached` is what there is of one."""

    why: str
    reached: str = ""
    notes: tuple[Note, ...] = ()
    code: str = "agent.gave_up"


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before a step under way is over. Only for a planner that is `eager`."""

    notes: tuple[Note, ...] = ()


Decision = ModelCall | ToolCalls | Ask | Finish | GiveUp | Wait


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a planner that takes none."""


class Planner(ABC):
    """Derive from it and write `decide`, which is pure: no clock, no chance, nothing kept, nothing read but the log.

    It is asked when no step is under way; an `eager` one, whenever a step is over. `options` is the type of the run's
    options, checked before a run starts; `log.options(...)` gives them.
    """

    eager: ClassVar[bool] = False
    options: ClassVar[type[msgspec.Struct]] = NoOptions

    @abstractmethod
    def decide(self, log: RunLog) -> Decision: ...

    def reached(self, log: RunLog) -> str:
        """The best answer so far, for a run that a budget ends: by default what its last step gave."""
        return next((step.text for step in reversed(log.steps.values()) if step.text), "")
