"""What becomes of a tool call that a planner wants: refused, put to a person, or made.

Decided on the call alone: its tool, its arguments, the tool's annotations and node, rules, and what people granted. No
text that a model or a tool wrote is looked at, so none can raise what a run may do.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import msgspec

from ...schemas.agent_log import AnyEvent, ApprovalAsked, ToolAnswered, ToolCalled
from ...schemas.agent_parts import AgentTool, ApprovalKind, Effect, Outcome, Verdict
from ...schemas.tool import ToolAnnotations, ToolInfo
from .effects import interrupted
from .log import Grant, RunLog, Step, canonical
from .planner import Call
from .policy import Policy, Ruling, decide

ASK_HUMAN = "ask_human"
REMEMBER = "remember"
RECALL = "recall"
# Of a call's arguments; what is longer is refused, and the model is told.
MAX_ARGUMENTS = 200_000
MAX_SHOWN_TEXT = 8_000
SHOWN_ARGUMENTS = 2_000

_SAFE = ToolAnnotations(read_only=True, destructive=False, idempotent=True, open_world=False)
OWN = {
    ASK_HUMAN: ToolInfo(
        ASK_HUMAN,
        "Ask the person who started this a question, and get the answer.",
        '{"type":"object","properties":{"question":{"type":"string"}},"required":["question"]}',
        '{"type":"string"}',
        _SAFE,
    ),
    REMEMBER: ToolInfo(
        REMEMBER,
        "Keep a text in the long-term memory.",
        '{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}',
        '{"type":"string"}',
        _SAFE,
    ),
    RECALL: ToolInfo(
        RECALL,
        "Find what fits a query in the long-term memory.",
        '{"type":"object","properties":{"query":{"type":"string"},"limit":{"type":"integer"}},"required":["query"]}',
        '{"type":"string"}',
        _SAFE,
    ),
}
_STEP_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def all_tools(log: RunLog) -> dict[str, ToolInfo]:
    """What a run may call, by name: its tools, its agents, and its memory."""
    found: dict[str, ToolInfo] = {}
    if log.started.memory:
        found |= {name: OWN[name] for name in (REMEMBER, RECALL)}
    found |= {tool.name: tool for tool in log.tools}
    found |= {agent.name: agent_info(agent) for agent in log.started.agents}
    return found


def shown_tools(log: RunLog) -> dict[str, ToolInfo]:
    """Of these, what a model is told of: what may be called at all, and of many tools those that fit the task."""
    started = log.started
    places = {name: place for place, name in enumerate(started.shown)}
    left_out = {*started.hidden, *(tool.name for tool in log.tools if places and tool.name not in places)}
    found = [(name, tool) for name, tool in all_tools(log).items() if name not in left_out]
    return dict(sorted(found, key=lambda one: places.get(one[0], -1)))


def agent_info(agent: AgentTool) -> ToolInfo:
    schema = '{"type":"object","properties":{"task":{"type":"string"}},"required":["task"]}'
    return ToolInfo(agent.name, agent.description, schema, '{"type":"string"}', _SAFE)


def is_step_id(id_: str) -> bool:
    return _STEP_ID.fullmatch(id_) is not None


@dataclass(frozen=True, slots=True)
class Ask:
    """What a decision about a call may need to find out, for which the world must be asked."""

    info: Callable[[str], Awaitable[ToolInfo]]
    node: Callable[[str], Awaitable[str | None]]
    grants: Callable[[str], Awaitable[list[Grant]]]


async def settle(log: RunLog, call: Call, id_: str, policy: Policy, ask: Ask, now: float) -> list[AnyEvent]:
    """The events that a call begins with: one of ToolCalled, ApprovalAsked, ToolAnswered."""
    if len(call.arguments) > MAX_ARGUMENTS:
        words = f"the arguments are too long: {MAX_ARGUMENTS} characters at most are taken"
        short = call.arguments[:SHOWN_ARGUMENTS]
        return [_refused(id_, call.tool, short, "agent.arguments_too_large", words, now)]
    tools = all_tools(log)
    info = tools.get(call.tool)
    if info is None:
        words = f"there is no tool '{call.tool}'; there are: {', '.join(sorted(tools))}"
        return [_refused(id_, call.tool[:200], call.arguments, "agent.unknown_tool", words, now)]
    if not _is_object(call.arguments):
        words = f"the arguments of {call.tool} must be a JSON object, as its schema says: {info.input_schema[:1000]}"
        return [_refused(id_, call.tool, call.arguments, "agent.bad_arguments", words, now)]
    if call.tool == ASK_HUMAN:
        return [question(log, id_, question_in(call.arguments), policy, now)]
    if call.tool not in OWN and not _agent(log, call.tool):
        info = await ask.info(call.tool)
    ruling = await rule(log, info, call.arguments, policy, ask)
    if ruling.effect is Effect.DENY:
        return [_refused(id_, call.tool, call.arguments, "agent.denied", f"denied: {ruling.why}", now, Outcome.DENIED)]
    wants = call.ask or (ruling.effect is Effect.ASK and not (call.approved and ruling.rule is None))
    if wants:
        kind = ApprovalKind.COMMAND if call.ask else ApprovalKind.TOOL
        return [
            ApprovalAsked(
                at=now,
                id=f"{log.run}:{id_}",
                step=id_,
                kind=kind,
                tool=call.tool,
                arguments=call.arguments,
                address=info.address,
                text=call.text[:MAX_SHOWN_TEXT],
                why=ruling.why if ruling.effect is Effect.ASK else "the planner asks before each command",
                expires_at=now + ruling.expires_s,
            )
        ]
    return [called(log, info, id_, call.arguments, now)]


def called(log: RunLog, info: ToolInfo, id_: str, arguments: str, now: float, attempt: int = 0) -> ToolCalled:
    notes = info.annotations
    return ToolCalled(
        at=now,
        step=id_,
        tool=info.name,
        arguments=arguments,
        repeatable=notes.read_only or notes.idempotent,
        child=f"{log.run}.{id_}" if _agent(log, info.name) else "",
        attempt=attempt,
    )


async def after_answer(log: RunLog, step: Step, policy: Policy, ask: Ask, now: float) -> list[AnyEvent]:
    """What comes of a person's answer: the call, or why it is not made."""
    asked, given = step.asked, step.given
    assert asked is not None
    assert given is not None
    approved = given.verdict is Verdict.APPROVE
    if asked.kind is ApprovalKind.QUESTION:
        if given.verdict in (Verdict.APPROVE, Verdict.FEEDBACK):
            return [ToolAnswered(at=now, step=step.id, outcome=Outcome.OK, text=given.text)]
        return [_unanswered(step.id, given.verdict, given.text, now)]
    if asked.kind is ApprovalKind.AGAIN and not approved:
        return [msgspec.structs.replace(interrupted(step.id, "its owner died"), at=now)]
    if given.verdict is Verdict.FEEDBACK:
        text = f"not run; a person says: {given.text}"
        return [ToolAnswered(at=now, step=step.id, outcome=Outcome.DENIED, code="agent.feedback", text=text)]
    if not approved:
        return [_unanswered(step.id, given.verdict, given.text, now)]
    info = all_tools(log)[asked.tool]
    if asked.tool not in OWN and not _agent(log, asked.tool):
        info = await ask.info(asked.tool)
    if given.arguments:
        ruling = await rule(log, info, given.arguments, policy, ask)
        if ruling.effect is Effect.DENY:
            words = f"denied as it was edited: {ruling.why}"
            return [ToolAnswered(at=now, step=step.id, outcome=Outcome.DENIED, code="agent.denied", text=words)]
    attempt = step.attempt + 1 if asked.kind is ApprovalKind.AGAIN else 0
    return [called(log, info, step.id, step.arguments, now, attempt)]


async def rule(log: RunLog, info: ToolInfo, arguments: str, policy: Policy, ask: Ask) -> Ruling:
    """What the rules and then the people say. Only where a rule says to ask does what they granted count."""
    own, plain = log.started.rules, canonical(arguments)
    by_node = any(one.node != "*" for one in (*policy.rules, *own))
    node = await ask.node(info.address) if by_node and info.address else ""
    ruling = decide(policy, own, info, plain, node)
    if ruling.effect is not Effect.ASK:
        return ruling
    verdict = granted((*log.grants, *await ask.grants(log.started.session)), info.name, plain)
    if verdict is None:
        return ruling
    effect = Effect.ALLOW if verdict is Verdict.APPROVE else Effect.DENY
    return Ruling(effect, "as a person said before", ruling.expires_s)


def granted(grants: Iterable[Grant], tool: str, arguments: str) -> Verdict | None:
    """What people said of such calls; where they said both, no."""
    verdicts = {one.verdict for one in grants if one.tool == tool and fnmatchcase(arguments, one.pattern)}
    if not verdicts:
        return None
    return Verdict.APPROVE if verdicts == {Verdict.APPROVE} else Verdict.DENY


def pattern_of(pattern: str, arguments: str) -> str:
    """The glob that an answer reaches: the one given, or these very arguments."""
    return pattern or glob.escape(canonical(arguments))


def question(log: RunLog, id_: str, text: str, policy: Policy, now: float) -> ApprovalAsked:
    return ApprovalAsked(
        at=now,
        id=f"{log.run}:{id_}",
        step=id_,
        kind=ApprovalKind.QUESTION,
        tool=ASK_HUMAN,
        arguments=msgspec.json.encode({"question": text}).decode(),
        text=text,
        why="the agent asks",
        expires_at=now + policy.expires_s,
    )


def question_in(arguments: str) -> str:
    said = msgspec.json.decode(arguments)
    return str(said.get("question") or said.get("text") or arguments)


def _agent(log: RunLog, name: str) -> AgentTool | None:
    return next((agent for agent in log.started.agents if agent.name == name), None)


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(arguments), dict)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return False


def _refused(
    id_: str, tool: str, arguments: str, code: str, text: str, now: float, outcome: Outcome = Outcome.FAILED
) -> ToolAnswered:
    return ToolAnswered(at=now, step=id_, outcome=outcome, text=text, code=code, tool=tool, arguments=arguments)


def _unanswered(id_: str, verdict: Verdict, why: str, now: float) -> ToolAnswered:
    if verdict is Verdict.EXPIRED:
        code, text = "agent.approval_expired", "denied: nobody answered in time"
    else:
        code, text = "agent.denied", f"denied by a person: {why}" if why else "denied by a person"
    return ToolAnswered(at=now, step=id_, outcome=Outcome.DENIED, code=code, text=text)
