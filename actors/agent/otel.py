"""A run as OpenTelemetry spans, by the semantic conventions of generative AI (`gen_ai.*`, in development, as of release
0.1.0 of semantic-conventions-genai): the run `invoke_agent`, below it a `chat` for each model call and an
`execute_tool` for each tool call.

Made from the events, so after the fact and as often as one likes: identifiers are digests of the run's and its steps',
the same each time, and a child run hangs below the tool call that started it, in its parent's trace. What was said is
left out unless asked for. The wire format is OTLP's JSON (opentelemetry-proto), which needs no SDK.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...schemas.agent_log import (
    AnyEvent,
    ApprovalAsked,
    ApprovalGiven,
    BudgetReached,
    LoopSeen,
    ModelAnswered,
    ModelFailed,
    ModelRequest,
    Paused,
    Redirected,
    Resumed,
    RunEnded,
    Thought,
    ToolAnswered,
)
from ...schemas.agent_parts import Outcome, RunStatus
from ...schemas.serve import ChatMessage
from .log import RunLog, Step

PROVIDER = "callboard"
INTERNAL, CLIENT = 1, 3
UNSET, OK, ERROR = 0, 1, 2

Json = dict[str, Any]
Value = str | bool | int | float | Sequence[str]


def spans_of(log: RunLog, *, content: bool = False, prompts: Mapping[str, ModelRequest] | None = None) -> list[Json]:
    """The finished spans of a run, in OTLP's JSON. A run that is not over has its own span up to its last event.

    `content`: with the task, the arguments, results and answers, which may hold what should not leave the company.
    `prompts`: what models were asked, by step, for content too (`show.prompts` makes them again).
    """
    if not log.events:
        return []
    asked = (prompts or {}) if content else {}
    over = [step for step in log.steps.values() if not step.is_open and step.ended_at]
    steps = [_step_span(log, step, content, asked.get(step.id)) for step in over]
    return [_run_span(log, content), *steps]


def otlp(spans: Sequence[Json], version: str = "") -> Json:
    """An `ExportTraceServiceRequest` of them."""
    scope = {"name": "callboard.agent", **({"version": version} if version else {})}
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes({"service.name": "callboard"})},
                "scopeSpans": [{"scope": scope, "spans": list(spans)}],
            }
        ]
    }


def trace_id(run: str) -> str:
    """Of the run and of all that it started: a child's id is its parent's and more."""
    return _digest("trace", run.partition(".")[0])[:32]


def span_id(run: str, step: str = "") -> str:
    return _digest("span", f"{run}/{step}")[:16]


def _run_span(log: RunLog, content: bool) -> Json:
    started, ended = log.started, log.ended
    spent = log.spent
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.agent.name": started.planner,
        "gen_ai.conversation.id": started.session or log.run,
        "gen_ai.usage.input_tokens": spent.prompt_tokens,
        "gen_ai.usage.output_tokens": spent.completion_tokens,
        "callboard.run.id": log.run,
        "callboard.run.status": log.status.value,
        "callboard.run.steps": spent.steps,
        "callboard.run.cost": spent.cost,
    }
    if started.model:
        attributes["gen_ai.request.model"] = started.model
    if content:
        attributes["gen_ai.input.messages"] = _said("user", started.task)
        if ended is not None and ended.answer:
            attributes["gen_ai.output.messages"] = _said("assistant", ended.answer, finish_reason="stop")
    failed = ended if ended is not None and ended.status is not RunStatus.FINISHED else None
    if failed is not None:
        attributes["error.type"] = failed.code or failed.status.value
    last = ended.at if ended is not None else max(event.at for event in log.events)
    return {
        "traceId": trace_id(log.run),
        "spanId": span_id(log.run),
        **({"parentSpanId": span_id(started.parent, started.parent_step)} if started.parent else {}),
        "name": f"invoke_agent {started.planner}",
        "kind": INTERNAL,
        "startTimeUnixNano": _nanoseconds(started.at),
        "endTimeUnixNano": _nanoseconds(max(last, started.at)),
        "attributes": _attributes(attributes),
        "events": [made for event in log.events if (made := _span_event(event, content)) is not None],
        "status": _status(failed is not None, failed.why if failed is not None else "", ended is not None),
    }


def _step_span(log: RunLog, step: Step, content: bool, asked: ModelRequest | None) -> Json:
    answer = step.answer
    if isinstance(answer, ToolAnswered):
        name, kind = f"execute_tool {step.tool}", INTERNAL
        attributes = _tool_attributes(step, answer, content)
    else:
        name, kind = f"chat {log.started.model or log.started.model_address}", CLIENT
        attributes = _model_attributes(log, step, answer, content)
        if asked is not None:
            attributes |= _asked(asked)
    failed = step.outcome is not Outcome.OK
    if failed:
        attributes["error.type"] = step.code or (step.outcome.value if step.outcome is not None else "_OTHER")
    # A call that was refused never began: its span is a moment.
    began = min(step.began_at or step.ended_at, step.ended_at)
    return {
        "traceId": trace_id(log.run),
        "spanId": span_id(log.run, step.id),
        "parentSpanId": span_id(log.run),
        "name": name,
        "kind": kind,
        "startTimeUnixNano": _nanoseconds(began),
        "endTimeUnixNano": _nanoseconds(step.ended_at),
        "attributes": _attributes(attributes),
        # A tool's own words about a failure are its result, so content.
        "status": _status(failed, step.text if content or step.is_model else "", True),
    }


def _model_attributes(
    log: RunLog, step: Step, answer: ModelAnswered | ModelFailed | None, content: bool
) -> dict[str, Value]:
    started = log.started
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.conversation.id": started.session or log.run,
        "gen_ai.request.model": started.model or started.model_address,
        "gen_ai.request.temperature": started.temperature,
        "gen_ai.request.max_tokens": started.max_tokens,
        "callboard.run.id": log.run,
        "callboard.step.id": step.id,
    }
    if started.seed is not None:
        attributes["gen_ai.request.seed"] = started.seed
    if isinstance(answer, ModelAnswered):
        attributes |= {
            "gen_ai.response.finish_reasons": [answer.finish_reason.value],
            "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": answer.usage.cached_tokens,
            "callboard.cost": answer.cost,
        }
        if content:
            said = _said("assistant", answer.text, finish_reason=answer.finish_reason.value)
            attributes["gen_ai.output.messages"] = said
    return attributes


def _tool_attributes(step: Step, answer: ToolAnswered, content: bool) -> dict[str, Value]:
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": step.tool,
        "gen_ai.tool.call.id": step.id,
        "gen_ai.tool.type": "function",
        "callboard.step.id": step.id,
        "callboard.step.outcome": answer.outcome.value,
        "callboard.step.attempt": step.attempt,
    }
    if step.child:
        attributes["callboard.child_run.id"] = step.child
    if content:
        attributes["gen_ai.tool.call.arguments"] = step.arguments
        attributes["gen_ai.tool.call.result"] = answer.value or answer.text
    return attributes


def _span_event(event: AnyEvent, content: bool) -> Json | None:
    """What happened in a run beside its steps, as an event of its span."""
    attributes: Mapping[str, Value]
    match event:
        case ApprovalAsked():
            name, attributes = "approval_asked", {"id": event.id, "step": event.step, "kind": event.kind.value}
        case ApprovalGiven():
            name = "approval_given"
            attributes = {"id": event.id, "step": event.step, "verdict": event.verdict.value, "by": event.by}
        case Paused() | Resumed():
            name, attributes = type(event).__name__.lower(), {"by": event.by}
        case Redirected():
            name, attributes = "redirected", {"by": event.by, **({"text": event.text} if content else {})}
        case LoopSeen():
            name, attributes = "loop_seen", {"step": event.step, "count": event.count}
        case BudgetReached():
            name, attributes = "budget_reached", {"run": event.run, "limit": event.limit}
        case Thought() if content:
            name, attributes = "thought", {"kind": event.kind, "text": event.text}
        case RunEnded() if event.why:
            name, attributes = "ended", {"why": event.why}
        case _:
            return None
    named = {f"callboard.{key}": value for key, value in attributes.items()}
    return {"timeUnixNano": _nanoseconds(event.at), "name": f"callboard.{name}", "attributes": _attributes(named)}


def _asked(request: ModelRequest) -> dict[str, Value]:
    """The prompt, and how the answer was bound. Messages as the conventions write them: parts of a type each."""
    messages = request.messages or (ChatMessage("user", request.prompt),)
    said = msgspec.json.encode([{"role": one.role, "parts": _parts(one)} for one in messages]).decode()
    attributes: dict[str, Value] = {"gen_ai.input.messages": said}
    if request.stop:
        attributes["gen_ai.request.stop_sequences"] = list(request.stop)
    if request.max_tokens:
        attributes["gen_ai.request.max_tokens"] = request.max_tokens
    return attributes


def _parts(message: ChatMessage) -> list[Json]:
    if message.role == "tool":
        return [{"type": "tool_call_response", "id": message.tool_call_id, "response": message.content}]
    parts: list[Json] = [{"type": "text", "content": message.content}] if message.content else []
    calls = message.tool_calls
    return parts + [{"type": "tool_call", "id": one.id, "name": one.name, "arguments": one.arguments} for one in calls]


def _said(role: str, text: str, **more: str) -> str:
    """Messages as the conventions write them into an attribute that holds text."""
    return msgspec.json.encode([{"role": role, "parts": [{"type": "text", "content": text}], **more}]).decode()


def _status(failed: bool, message: str, over: bool) -> Json:
    if failed:
        return {"code": ERROR, **({"message": message} if message else {})}
    return {"code": OK if over else UNSET}


def _attributes(values: Mapping[str, Value]) -> list[Json]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Value) -> Json:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}  # 64 bits are text in protobuf's JSON
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"arrayValue": {"values": [{"stringValue": one} for one in value]}}


def _nanoseconds(seconds: float) -> str:
    return str(round(seconds * 1e9))


def _digest(kind: str, text: str) -> str:
    return hashlib.sha256(f"callboard {kind} {text}".encode()).hexdigest()
