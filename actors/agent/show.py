"""A run for people: a line an event as it happens, and the whole as a tree with times, tokens, prompts and results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ...runtime.log import log as logger
from ...schemas.agent import RunInfo
from ...schemas.agent_log import (
    AnyEvent,
    ApprovalAsked,
    ApprovalGiven,
    BudgetReached,
    LoopSeen,
    ModelAnswered,
    ModelCalled,
    ModelFailed,
    ModelRequest,
    Planned,
    Redirected,
    RunEnded,
    Thought,
    ToolAnswered,
    ToolCalled,
)
from .digest import digest
from .errors import NoSuchPlanner
from .log import RunLog
from .planner import ModelCall
from .planners import planner_named

ONE_LINE = 200


def line(event: AnyEvent) -> str:
    """One line for a terminal; "" for what is not worth one."""
    match event:
        case Thought():
            return f"{event.kind}: {event.text}"
        case Planned():
            return "\n".join(f"plan {step.id}: {step.tool}[{short(step.input)}]  {step.plan}" for step in event.steps)
        case ToolCalled():
            return f"{event.step} {event.tool} {short(event.arguments)}"
        case ToolAnswered():
            return f"{event.step} {event.outcome.value}: {short(event.text)}  ({event.seconds:.2f} s)"
        case ModelFailed():
            return f"{event.step} the model failed: {event.text}"
        case ApprovalAsked(tool=""):
            return f"asks: {event.text}\n  callboard approve {event.id} --text ..."
        case ApprovalAsked():
            what = event.text or event.why if event.kind.value == "question" else f"{event.tool} {event.arguments}"
            return f"waits for approval of {what}\n  callboard approve {event.id}   or   callboard deny {event.id}"
        case ApprovalGiven():
            return f"{event.id} {event.verdict.value} by {event.by or 'nobody'} {event.text}".rstrip()
        case LoopSeen():
            return f"{event.step}: the same call had the same result {event.count} times"
        case BudgetReached():
            return f"budget: {event.text}"
        case Redirected():
            return f"redirected by {event.by or 'somebody'}: {event.text}"
        case RunEnded(why=why) if why:
            return f"{event.status.value}: {why}"
        case _:
            return ""


def short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= ONE_LINE else plain[: ONE_LINE - 3] + "..."


@dataclass
class Span:
    """A step, or what a person was asked: a node of the tree."""

    id: str
    kind: str
    name: str
    began: float
    ended: float = 0.0
    status: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    children: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        seconds = round(self.ended - self.began, 6) if self.ended else None
        return {
            "id": self.id,
            "kind": self.kind,
            "name": self.name,
            "began_at": self.began,
            "seconds": seconds,
            "status": self.status or "open",
            **self.detail,
            **({"children": self.children} if self.children else {}),
        }


def prompts(log: RunLog, allow: Sequence[str] = ()) -> dict[str, ModelRequest]:
    """The prompt of each model call, made again by the planner; left out where it would make another one now."""
    try:
        planner = planner_named(log.started.planner, allow)
    except NoSuchPlanner:
        return {}
    found: dict[str, ModelRequest] = {}
    for place, event in enumerate(log.events):
        if isinstance(event, ModelCalled):
            try:
                decision = planner.decide(RunLog(log.run, log.events[: place - event.notes]))
            except Exception as error:  # somebody else's planner, of another version: then there is none to show
                logger.debug("the prompt of %s cannot be made again: %r", event.step, error)
                continue
            if isinstance(decision, ModelCall) and digest(decision.request) == event.digest:
                found[event.step] = decision.request
    return found


def tree(info: RunInfo, log: RunLog, below: dict[str, dict[str, Any]], allow: Sequence[str] = ()) -> dict[str, Any]:
    """The run as one JSON object. `below`: trees of its child runs, by the step that they are."""
    asked = prompts(log, allow)
    spans: dict[str, Span] = {}
    notes: list[dict[str, Any]] = []
    for event in log.events:
        step = getattr(event, "step", "")
        match event:
            case ModelCalled():
                spans[step] = Span(step, "model", event.purpose or "model", event.at)
                if step in asked:
                    spans[step].detail["prompt"] = msgspec.to_builtins(asked[step])
            case ApprovalAsked() | ToolCalled():
                span = spans.setdefault(step, Span(step, "tool", event.tool, event.at))
                span.detail["arguments"] = event.arguments
                if isinstance(event, ApprovalAsked):
                    span.detail.setdefault("approvals", []).append({"id": event.id, "why": event.why})
                if step in below:
                    span.children = [below[step]]
            case ApprovalGiven():
                given = {"verdict": event.verdict.value, "by": event.by, "text": event.text}
                spans[step].detail["approvals"][-1] |= given
            case ModelAnswered():
                span = spans.setdefault(step, Span(step, "model", "model", event.at))
                span.ended, span.status = event.at, "ok"
                span.detail |= {"text": event.text, "usage": msgspec.to_builtins(event.usage), "cost": event.cost}
                if event.tool_calls:
                    span.detail["tool_calls"] = msgspec.to_builtins(event.tool_calls)
            case ModelFailed():
                spans[step].ended, spans[step].status = event.at, "failed"
                spans[step].detail |= {"code": event.code, "text": event.text}
            case ToolAnswered():
                span = spans.setdefault(step, Span(step, "tool", event.tool, event.at))
                span.ended, span.status = event.at, event.outcome.value
                span.detail |= {"text": event.text} | ({"code": event.code} if event.code else {})
                if event.arguments:
                    span.detail["arguments"] = event.arguments
            case Thought() | Redirected():
                kind = event.kind if isinstance(event, Thought) else "redirect"
                notes.append({"at": event.at, "kind": kind, "text": event.text})
            case _:
                continue
    return {
        **msgspec.to_builtins(info),
        "steps": [span.as_json() for span in spans.values()],
        "notes": notes,
    }


def drawn(whole: dict[str, Any], indent: str = "", *, full: bool = False) -> Iterator[str]:
    """The tree for a terminal."""
    spent = whole["spent"]
    tokens = spent.get("prompt_tokens", 0) + spent.get("completion_tokens", 0)
    yield f"{indent}{whole['run']}  {whole['planner']}  {whole['status']}  {spent['steps']} steps, {tokens} tokens"
    yield f"{indent}task: {whole['task'] if full else short(whole['task'])}"
    for number, step in enumerate(whole["steps"]):
        last = number == len(whole["steps"]) - 1
        yield f"{indent}{'└' if last else '├'}─ {_head(step)}"
        inner = indent + ("   " if last else "│  ")
        for name in ("arguments", "text"):
            if text := step.get(name):
                shown = text if full else short(text)
                for place, row in enumerate(shown.splitlines()):
                    yield f"{inner}  {row}" if place else f"{inner}{name}: {row}"
        if full and (prompt := step.get("prompt")):
            for message in prompt.get("messages", []):
                yield from (f"{inner}{message['role']}> {row}" for row in message["content"].splitlines())
        for child in step.get("children", []):
            yield from drawn(child, inner, full=full)
    if whole["answer"]:
        yield f"{indent}answer: {whole['answer'] if full else short(whole['answer'])}"
    if whole["why"]:
        yield f"{indent}why: {whole['why']}"


def _head(step: dict[str, Any]) -> str:
    seconds = f"{step['seconds']:.2f} s" if step["seconds"] is not None else "..."
    usage = step.get("usage")
    tokens = f"  {usage['prompt_tokens']} + {usage['completion_tokens']} tokens" if usage else ""
    return f"{step['id']} {step['name']}  {step['status']}  {seconds}{tokens}"
