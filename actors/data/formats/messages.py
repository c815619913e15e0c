"""OpenAI's: `{"messages": [{role, content, loss?, tool_calls?}], "tools"?}`, or the list of messages alone.

Roles: system, developer, user, assistant, tool. A message of the assistant may say `"loss": false` (or OpenAI's
`"weight": 0`): it is then read but not learnt.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import Unfit
from ..samples import Role, Sample, ToolCall, Turn
from .format import Format, conversation, converted


class Part(msgspec.Struct):
    type: str
    text: str | None = None


class Function(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] | None = None


class Call(msgspec.Struct):
    function: Function
    id: str | None = None


class OpenAIMessage(msgspec.Struct):
    role: Role
    content: str | list[Part] | None = None
    loss: bool | None = None
    weight: float | None = None
    tool_calls: list[Call] | None = None
    function_call: Function | None = None
    reasoning_content: str | None = None
    name: str | None = None
    tool_call_id: str | None = None


class OpenAIRecord(msgspec.Struct):
    messages: list[OpenAIMessage]
    tools: list[dict[str, Any]] | str | None = None


def _recognises(record: Any) -> bool:
    return is_message_list(record) or (isinstance(record, dict) and isinstance(record.get("messages"), list))


def is_message_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "role" in one for one in value)


def _read(record: Any) -> Sample:
    found = converted(record if isinstance(record, dict) else {"messages": record}, OpenAIRecord)
    return conversation([turn_of(message) for message in found.messages], _tools(found.tools))


def turns_of(messages: Any) -> list[Turn]:
    """A list of messages as turns. Raises Unfit."""
    return [turn_of(message) for message in converted(messages, list[OpenAIMessage])]


def turn_of(message: OpenAIMessage) -> Turn:
    is_assistant = message.role is Role.ASSISTANT
    calls = [*(message.tool_calls or ()), *([Call(message.function_call)] if message.function_call else ())]
    wanted = message.loss if message.loss is not None else message.weight is None or message.weight > 0
    if not is_assistant and (message.loss or calls or message.reasoning_content):
        what = "loss" if message.loss else "tool calls" if calls else "reasoning"
        raise Unfit(f"a message of the role '{message.role}' has {what}: only the assistant's may")
    return Turn(
        message.role,
        _text(message.content),
        loss=is_assistant and wanted,
        reasoning=message.reasoning_content or "",
        tool_calls=tuple(ToolCall(call.function.name, _arguments(call.function), call.id or "") for call in calls),
        name=message.name or "",
        tool_call_id=message.tool_call_id or "",
    )


def _text(content: str | list[Part] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if other := [part.type for part in content if part.type != "text" or part.text is None]:
        raise Unfit(f"a message holds a part of the type '{other[0]}': text is read here")
    return "".join(part.text or "" for part in content)


def _arguments(function: Function) -> dict[str, Any]:
    if not isinstance(function.arguments, str):
        return function.arguments or {}
    try:
        return msgspec.json.decode(function.arguments or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Unfit(f"the arguments of a call of '{function.name}' are no JSON object: {error}") from error


def _tools(tools: list[dict[str, Any]] | str | None) -> tuple[dict[str, Any], ...]:
    if not isinstance(tools, str):
        return tuple(tools or ())
    try:
        return tuple(msgspec.json.decode(tools or "[]", type=list[dict[str, Any]]))
    except msgspec.DecodeError as error:
        raise Unfit(f"tools are no list of JSON objects: {error}") from error


FORMAT = Format("openai", frozenset({"messages"}), _recognises, _read)
