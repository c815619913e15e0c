"""What both the messages about runs and the events of their logs are made of."""

from __future__ import annotations

import enum

import msgspec


class RunStatus(enum.StrEnum):
    """`waiting`: nothing is under way but what people were asked. The last five are ends.

    `stopped`: a budget or a loop ended it, with what was reached so far; `why` says which.
    """

    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN_RUNS = frozenset({RunStatus.RUNNING, RunStatus.WAITING, RunStatus.PAUSED})


class Budget(msgspec.Struct, frozen=True):
    """When a run ends at the latest; 0: no limit. Child runs spend their parents' too.

    `steps`: model calls and tool calls. `tokens`: of prompts and answers together. `seconds`: of steps, not of waiting
    for people. `cost`: in the unit of the model's prices.
    """

    steps: int
    tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0


DEFAULT_BUDGET = Budget(100)


class Spent(msgspec.Struct, frozen=True):
    """What a run has used, its child runs included."""

    steps: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.steps + other.steps,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
            self.cost + other.cost,
        )


class Effect(enum.StrEnum):
    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"


class Scope(enum.StrEnum):
    """How far an answer reaches: this call, this run, all runs of its session, all runs."""

    ONCE = "once"
    RUN = "run"
    SESSION = "session"
    FOREVER = "forever"


class PolicyRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule: it applies to a call that fits everything which it names, and the first that applies decides.

    `tool`, `node`: globs. `arguments`: a glob over the arguments as compact JSON with sorted keys. `risk`: annotations
    that the tool must have, `read_only`, `destructive`, `idempotent`, `open_world`, or `!` before one for not.
    `expires_s`: how long an approval may wait; 0: as the policy says. `why` is shown to whoever is asked.
    """

    effect: Effect
    tool: str = "*"
    arguments: str = "*"
    node: str = "*"
    risk: tuple[str, ...] = ()
    expires_s: float = 0.0
    why: str = ""


class ApprovalKind(enum.StrEnum):
    """`tool`: a call that the policy asks about. `command`: one that the planner asks about. `question`: `ask_human`.
    `again`: whether to repeat a call that was under way when its owner died."""

    TOOL = "tool"
    COMMAND = "command"
    QUESTION = "question"
    AGAIN = "again"


class Verdict(enum.StrEnum):
    """`feedback`: not run; the model is told the text. `expired`, `cancelled`: nobody did in time; the run ended."""

    APPROVE = "approve"
    DENY = "deny"
    FEEDBACK = "feedback"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Outcome(enum.StrEnum):
    """What became of a tool call. `interrupted`: its owner died while it was under way; it may have been carried out.
    `denied`: by policy or by a person; it was not."""

    OK = "ok"
    FAILED = "failed"
    DENIED = "denied"
    INTERRUPTED = "interrupted"


class AgentTool(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that a run may use as a tool named `name`, with one argument, `task`.

    `hand_off`: its answer is the caller's answer. Fields left empty are the caller's. `budget` holds beside the
    caller's.
    """

    name: str
    description: str
    planner: str = "react"
    tools: tuple[str, ...] = ()
    model: str = ""
    model_address: str = ""
    options: str = "{}"
    budget: Budget = Budget(0)
    hand_off: bool = False


class Recovery(enum.StrEnum):
    """What becomes of a call to a tool that is not idempotent, under way when its owner died: the model is told that it
    may have been carried out (`tell`), a person is asked whether to repeat it (`ask`), or it is repeated under the same
    key (`repeat`), for tools that know a key again."""

    TELL = "tell"
    ASK = "ask"
    REPEAT = "repeat"
