"""Agents: runs and what is asked of them, approvals, policies, budgets, memory.

A run is an event log (schemas/agent_log.py). The actor `agents` starts runs, lists them and passes on what people say.
"""

from __future__ import annotations

import enum

from .agent_log import AnyEvent, Entry
from .agent_parts import (
    DEFAULT_BUDGET,
    AgentTool,
    ApprovalKind,
    Budget,
    PolicyRule,
    RunStatus,
    Scope,
    Spent,
    Verdict,
)
from .base import Message, Request, StreamRequest

APPROVAL_OPENED = "topic.agents.approval.opened"
APPROVAL_CLOSED = "topic.agents.approval.closed"


class RunInfo(Message, frozen=True, kw_only=True, tag="agent.info"):
    """A run as it stands. `events`: how many its log has. `answer`: what came of it, or was reached until it ended.

    `approvals`: the ids of those that are open. `parent`: the run whose tool this one is. `forked_from`: the run of
    which this one is a fork, from event `forked_at` of it. Times are seconds since 1970.
    """

    run: str
    planner: str
    task: str
    status: RunStatus
    events: int = 0
    spent: Spent = Spent(0)
    answer: str = ""
    why: str = ""
    approvals: tuple[str, ...] = ()
    parent: str = ""
    session: str = ""
    forked_from: str = ""
    forked_at: int = 0
    began_at: float = 0.0
    ended_at: float = 0.0


class AgentRun(StreamRequest[Entry, RunInfo], frozen=True, kw_only=True, tag="agent.run"):
    """Start a run, and hear its events until it ends. The run goes on when nobody listens.

    `planner`: `react`, `rewoo`, `autogpt`, `sequence`, `supervisor`, `debate`, or one of another package. `model`:
    the name that goes into `Generate`, `model_address` the actor that answers it. `tools`: names, as the directory
    `tools` knows them (a name may end in `*`), and `ask_human`. `agents`: runs that this one may start as tools.
    `options`: what the planner takes, a JSON object. `rules`: looked at after the company's own policy has let a call
    be. `key`: the same request with the same key is the same run. `session`: what tools keep state under, and memory
    is shared by. `memory`: the actor that keeps it, "" for none. `detach`: answer at once.
    `max_tools`: of more tools than that, the model is told of those that fit the task best (0: of all).
    """

    planner: str
    task: str
    model: str = ""
    model_address: str = "engine"
    tools: tuple[str, ...] = ()
    agents: tuple[AgentTool, ...] = ()
    budget: Budget = DEFAULT_BUDGET
    options: str = "{}"
    rules: tuple[PolicyRule, ...] = ()
    session: str = ""
    memory: str = ""
    key: str = ""
    temperature: float = 0.0
    seed: int | None = None
    max_tokens: int = 512
    adapter: str = ""
    detach: bool = False
    max_tools: int = 24


class BeginRun(Request[RunInfo], frozen=True, tag="agent.begin"):
    """Within `agents`: have an executor take on a run that begins with these events, unless it is there."""

    run: str
    events: tuple[AnyEvent, ...]


class AttachRun(StreamRequest[Entry, RunInfo], frozen=True, tag="agent.attach"):
    """Hear a run's events after number `after`; with `follow`, until it ends. Ends with the run as it then stands."""

    run: str
    after: int = 0
    follow: bool = True


class GetRun(Request[RunInfo], frozen=True, tag="agent.get"):
    """Ask how a run stands. Errors: `agent.none`."""

    run: str


class RunList(Message, frozen=True, tag="agent.runs"):
    runs: tuple[RunInfo, ...]


class ListRuns(Request[RunList], frozen=True, tag="agent.list"):
    """The runs, newest first, `limit` at most, begun before `before` where it is not 0. `open_only`: not yet ended."""

    open_only: bool = False
    limit: int = 100
    before: float = 0.0


class Pruned(Message, frozen=True, tag="agent.pruned"):
    """`count`: runs that were removed, child runs among them."""

    count: int


class PruneRuns(Request[Pruned], frozen=True, tag="agent.prune"):
    """Remove runs that ended before `before` (seconds since 1970), each with its child runs and their logs.

    What is removed cannot be shown or forked any more, and its `key` may begin another run.
    """

    before: float


class Control(enum.StrEnum):
    PAUSE = "pause"
    RESUME = "resume"
    REDIRECT = "redirect"
    CANCEL = "cancel"


class ControlRun(Request[RunInfo], frozen=True, tag="agent.control"):
    """Pause, resume, redirect or cancel a run. A pause lets steps under way finish and begins none.

    A redirect puts `text` before the planner as what the person now wants; a paused run stays paused. Errors:
    `agent.none`, `agent.over` for a run that has ended.
    """

    run: str
    what: Control
    text: str = ""
    by: str = ""


class ForkRun(Request[RunInfo], frozen=True, kw_only=True, tag="agent.fork"):
    """A new run that begins with the first `at` events of another (0: all of them), and goes on by itself from there.

    Steps that were under way at that place begin anew, under keys of the new run. `text`: as in a redirect.
    `planner`, `model`, `options`: in place of the old run's, where not "".
    """

    run: str
    at: int = 0
    text: str = ""
    planner: str = ""
    model: str = ""
    options: str = ""
    by: str = ""


class Approval(Message, frozen=True, kw_only=True, tag="agent.approval"):
    """Something that waits for a person. `kind` `tool` and `command`: `tool` and `arguments` are exactly what runs,
    at the actor `address`; `question`: `text` is asked. `why`: the rule that says so. `expires_at`: then denied."""

    id: str
    run: str
    step: str
    kind: ApprovalKind
    tool: str = ""
    arguments: str = ""
    address: str = ""
    text: str = ""
    why: str = ""
    asked_at: float = 0.0
    expires_at: float = 0.0


class ApprovalOpened(Message, frozen=True, kw_only=True, tag="agent.approval.opened"):
    """Published on `topic.agents.approval.opened`. Without arguments, which `agents` tells whoever asks it."""

    id: str
    run: str
    kind: ApprovalKind
    tool: str = ""


class ApprovalClosed(Message, frozen=True, kw_only=True, tag="agent.approval.closed"):
    """Published on `topic.agents.approval.closed`: it was answered, it expired, or its run ended."""

    id: str
    run: str
    verdict: Verdict = Verdict.CANCELLED
    by: str = ""


class Approvals(Message, frozen=True, tag="agent.approvals"):
    approvals: tuple[Approval, ...]


class ListApprovals(Request[Approvals], frozen=True, tag="agent.list_approvals"):
    """Everything that waits for a person, oldest first; of one run where it is named."""

    run: str = ""


class Answered(Message, frozen=True, tag="agent.answered"):
    """`repeated`: the same person had given the same answer before, and nothing changed."""

    id: str
    verdict: Verdict
    by: str
    repeated: bool = False


class AnswerApproval(Request[Answered], frozen=True, kw_only=True, tag="agent.answer"):
    """Answer what waits: approve it (with `arguments` in place of those shown, where not ""), deny it, give feedback.

    `text`: the reason, the feedback, or the answer to a question. `scope` beyond `once` makes a rule of the answer, for
    this tool with these arguments, or with all that match `pattern` (a glob over the arguments' JSON; `*`: any).
    `repeat`: so many more commands of this run need no approval (`y -N`). `stop`: deny, and end the run.

    Errors: `agent.no_approval`; `agent.approval_answered` for one that somebody else answered, or otherwise;
    `agent.approval_expired`; `agent.over` where its run ended first. None of them runs anything.
    """

    id: str
    verdict: Verdict
    arguments: str = ""
    text: str = ""
    by: str = ""
    scope: Scope = Scope.ONCE
    pattern: str = ""
    repeat: int = 0
    stop: bool = False


class MemoryEntry(Message, frozen=True, tag="memory.entry"):
    """Something remembered. `score`: how well it fits what was asked, higher is better. `at`: seconds since 1970."""

    id: str
    text: str
    at: float = 0.0
    score: float = 0.0
    tags: tuple[str, ...] = ()


class Remembered(Message, frozen=True, tag="memory.stored"):
    """`known`: an entry of the same key was there already, and stays as it is."""

    id: str
    known: bool = False


class Remember(Request[Remembered], frozen=True, tag="memory.store"):
    """Keep a text under `session`. With `key`, the same request twice keeps it once."""

    text: str
    session: str = ""
    key: str = ""
    tags: tuple[str, ...] = ()


class Memories(Message, frozen=True, tag="memory.found"):
    entries: tuple[MemoryEntry, ...]


class Recall(Request[Memories], frozen=True, tag="memory.recall"):
    """The entries of `session` ("": of all) that fit `query` best, best first; for "" the latest, newest first."""

    query: str
    session: str = ""
    limit: int = 5


class Forgotten(Message, frozen=True, tag="memory.forgotten"):
    count: int


class Forget(Request[Forgotten], frozen=True, tag="memory.forget"):
    """Remove entries by id, or all of a session where no id is given."""

    session: str
    ids: tuple[str, ...] = ()
