"""The events of a run's log. A run is what they say, and nothing else.

`step` names a model call or a tool call within its run (`m3`, `t4`, `E1`); it begins with `...Called` or
`ApprovalAsked` and ends with `...Answered` or `ModelFailed`. The key of a step, `<run>/<step>`, goes with its call.
"""

from __future__ import annotations

import msgspec

from .abilities import ModelAbilities
from .agent_parts import (
    DEFAULT_BUDGET,
    AgentTool,
    ApprovalKind,
    Budget,
    Outcome,
    PolicyRule,
    RunStatus,
    Scope,
    Spent,
    Verdict,
)
from .base import Message
from .serve import ChatMessage, FinishReason, Grammar, ModelToolCall, OfferedTool, Usage
from .tool import Media, ToolInfo


class RunEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="event"):
    """Base of all of them. `at`: seconds since 1970, by the clock of the run's owner."""

    at: float = 0.0


class RunStarted(RunEvent, frozen=True, kw_only=True, tag="started"):
    """What was asked, as in `AgentRun`. `tools`: those that the run may call, as they were then.

    `agent_tools`: those that its agents may call. `abilities`: of the models that it and its agents ask, as they said
    then; of one that can all, or did not say, there is none. `hidden`: tools that the policy lets nobody call, so no
    model is told of them; `shown`: where there are too many, those that it is told of, in this order. `parent`,
    `parent_step`: the run and step that this is a call of.
    """

    planner: str
    task: str
    model: str = ""
    model_address: str = "engine"
    tools: tuple[ToolInfo, ...] = ()
    agents: tuple[AgentTool, ...] = ()
    agent_tools: tuple[ToolInfo, ...] = ()
    budget: Budget = DEFAULT_BUDGET
    options: str = "{}"
    rules: tuple[PolicyRule, ...] = ()
    session: str = ""
    memory: str = ""
    temperature: float = 0.0
    seed: int | None = None
    max_tokens: int = 512
    adapter: str = ""
    parent: str = ""
    parent_step: str = ""
    forked_from: str = ""
    forked_at: int = 0
    abilities: tuple[ModelAbilities, ...] = ()
    hidden: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()


class Forked(RunEvent, frozen=True, kw_only=True, tag="forked"):
    """In a fork, after the events that it took over: fields of `RunStarted` that it goes on with, where not ""."""

    planner: str = ""
    model: str = ""
    options: str = ""
    by: str = ""


class Thought(RunEvent, frozen=True, kw_only=True, tag="thought"):
    """What the planner understood the model to think. `kind`: thought, criticism, plan, note."""

    text: str
    kind: str = "thought"


class PlanStep(msgspec.Struct, frozen=True):
    """A step of a plan. `tool` and `input` as the model wrote them; `needs`: steps whose evidence the input names."""

    id: str
    plan: str
    tool: str
    input: str
    needs: tuple[str, ...] = ()


class Planned(RunEvent, frozen=True, kw_only=True, tag="planned"):
    """A plan, or what takes the place of a part of one (`replan` counts from 0)."""

    steps: tuple[PlanStep, ...]
    replan: int = 0


class StepReady(RunEvent, frozen=True, kw_only=True, tag="ready"):
    """A step of a plan has all that it needs."""

    step: str


class ModelCalled(RunEvent, frozen=True, kw_only=True, tag="model_called"):
    """`digest` is of the prompt, which the planner makes again from the events before this one and its `notes`, so many
    events just before it that the same decision wrote."""

    step: str
    purpose: str = ""
    digest: str = ""
    notes: int = 0


class ModelAnswered(RunEvent, frozen=True, kw_only=True, tag="model_answered"):
    step: str
    text: str
    finish_reason: FinishReason = FinishReason.STOP
    usage: Usage = Usage(0, 0)
    seconds: float = 0.0
    cost: float = 0.0
    tool_calls: tuple[ModelToolCall, ...] = ()


class ModelFailed(RunEvent, frozen=True, kw_only=True, tag="model_failed"):
    """No answer, after as many attempts as there are."""

    step: str
    code: str
    text: str
    hint: str = ""
    seconds: float = 0.0


class ToolCalled(RunEvent, frozen=True, kw_only=True, tag="tool_called"):
    """Written before the call goes out. `repeatable`: the tool said that it is read-only or idempotent.

    `child`: the run that was started for it, where the tool is an agent. `attempt` above 0: it is made again.
    """

    step: str
    tool: str
    arguments: str
    repeatable: bool = False
    child: str = ""
    attempt: int = 0


class ToolAnswered(RunEvent, frozen=True, kw_only=True, tag="tool_answered"):
    """`text` is for the model to read, cut to what a run keeps; `value` is the tool's JSON where it was small enough.

    Not ok: `code`, and `text` says what is wrong and what to do. `spent`: of a child run. For a call that was refused
    before it began (denied by policy, an unknown tool, bad arguments), `tool` and `arguments` say what it was.
    """

    step: str
    outcome: Outcome
    text: str = ""
    value: str = ""
    code: str = ""
    media: tuple[Media, ...] = ()
    seconds: float = 0.0
    spent: Spent = Spent(0)
    tool: str = ""
    arguments: str = ""


class ApprovalAsked(RunEvent, frozen=True, kw_only=True, tag="approval_asked"):
    """See `Approval`. `id` is unique among all runs."""

    id: str
    step: str
    kind: ApprovalKind
    tool: str = ""
    arguments: str = ""
    address: str = ""
    text: str = ""
    why: str = ""
    expires_at: float = 0.0


class ApprovalGiven(RunEvent, frozen=True, kw_only=True, tag="approval_given"):
    """`arguments`: those to run, where they were edited. See `AnswerApproval`."""

    id: str
    step: str
    verdict: Verdict
    by: str = ""
    text: str = ""
    arguments: str = ""
    scope: Scope = Scope.ONCE
    pattern: str = ""
    repeat: int = 0


class Paused(RunEvent, frozen=True, kw_only=True, tag="paused"):
    by: str = ""


class Resumed(RunEvent, frozen=True, kw_only=True, tag="resumed"):
    by: str = ""


class Redirected(RunEvent, frozen=True, kw_only=True, tag="redirected"):
    """A person says what is wanted now."""

    text: str
    by: str = ""


class LoopSeen(RunEvent, frozen=True, kw_only=True, tag="loop"):
    """The same call had the same result for the `count`th time; the model is told."""

    step: str
    count: int


class BudgetReached(RunEvent, frozen=True, kw_only=True, tag="budget"):
    """`run`: whose budget it is, the run's own or one of those above it. `limit`: which part."""

    run: str
    limit: str
    text: str = ""


class RunEnded(RunEvent, frozen=True, kw_only=True, tag="ended"):
    """`status`: one of the ends. `answer`: the answer, or what was reached so far. `why`: for any but `finished`."""

    status: RunStatus
    answer: str = ""
    why: str = ""
    code: str = ""


AnyEvent = (
    RunStarted
    | Forked
    | Thought
    | Planned
    | StepReady
    | ModelCalled
    | ModelAnswered
    | ModelFailed
    | ToolCalled
    | ToolAnswered
    | ApprovalAsked
    | ApprovalGiven
    | Paused
    | Resumed
    | Redirected
    | LoopSeen
    | BudgetReached
    | RunEnded
)


class Entry(Message, frozen=True, tag="agent.event"):
    """One event of a run, numbered from 1 within it."""

    run: str
    number: int
    event: AnyEvent


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a planner wants a model to answer; the run adds the model, the temperature and the seed.

    `prompt` is raw text; `messages` go through the model's chat template. `tools`: what it may call natively. `keep`:
    the next such request goes on from this one, so the engine keeps what it computed.
    """

    messages: tuple[ChatMessage, ...] = ()
    prompt: str = ""
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None
    max_tokens: int = 0
    purpose: str = ""
    tools: tuple[OfferedTool, ...] = ()
    keep: bool = False
