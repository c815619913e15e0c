"""Conversations as messages that a chat template can write. Templates differ in which roles they know, and many leave
out in silence what they do not; so each is tried with a word that must come out again, and what it cannot write is
said in a way that it can:

    developer                    as system
    system                       at the head of the first message of the user
    tool                         as user, between <tool_response> and </tool_response>
    tool calls of the assistant  as text behind its content, as JSON between <tool_call> and </tool_call>
    tools                        as text at the end of the system prompt, a line of JSON each
    reasoning                    as text before the content, between <think> and </think>
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import RequestInvalid
from ..models.chat_template import ChatTemplate
from .samples import Role, ToolCall, Turn

Message = dict[str, Any]

_WORD = "zyxwv"  # no template says this by itself
_TOOL = {
    "type": "function",
    "function": {
        "name": _WORD,
        "description": "d",
        "parameters": {"type": "object", "properties": {"q": {"type": "string", "description": "d"}}},
    },
}
_ASK = {"role": "user", "content": "q"}
_CALL = ToolCall("f", {"q": "a"}, "call00001")


@dataclass(frozen=True)
class Fitting:
    """What a template can write. `arguments_as_text`: it wants a call's arguments as a string of JSON."""

    system: bool
    developer: bool
    tool: bool
    tool_calls: bool
    tools: bool
    arguments_as_text: bool

    @classmethod
    def of(cls, template: ChatTemplate) -> Fitting:
        def writes(messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> bool:
            try:
                return _WORD in template.render(messages, tools=tools, add_generation_prompt=False)
            except RequestInvalid:
                return False

        def calls(as_text: bool) -> bool:
            call = _call(ToolCall("f", {"q": _WORD}, _CALL.id), as_text)
            named = _call(ToolCall(_WORD, {}, _CALL.id), as_text)
            return all(
                writes([_ASK, {"role": "assistant", "content": "", "tool_calls": [one]}, _answer("r")])
                for one in (call, named)
            )

        as_objects = calls(False)
        as_text = not as_objects and calls(True)
        answered = {"role": "assistant", "content": "", "tool_calls": [_call(_CALL, as_text)]}
        plainly = {"role": "assistant", "content": "a"}
        return cls(
            system=writes([{"role": "system", "content": _WORD}, _ASK]),
            developer=writes([{"role": "developer", "content": _WORD}, _ASK]),
            tool=writes([_ASK, answered if as_objects or as_text else plainly, _answer(_WORD)]),
            tool_calls=as_objects or as_text,
            tools=writes([_ASK], [_TOOL]),
            arguments_as_text=as_text,
        )

    def messages(
        self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]]
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """(a message for each turn, the tools) to render. Where a system prompt finds no place of its own, its turn is
        gone and its text is in the first of the user."""
        messages = [self._message(turn) for turn in turns]
        if tools and not self.tools:
            _add_to_system(messages, "\n".join(["# Tools", *(_json(tool) for tool in tools)]))
        if not self.system:
            _move_system(messages)
        return messages, list(tools) if tools and self.tools else None

    def _message(self, turn: Turn) -> Message:
        content, role = turn.content, turn.role
        if turn.reasoning:
            content = f"<think>\n{turn.reasoning}\n</think>\n\n{content}"
        if role is Role.DEVELOPER and not self.developer:
            role = Role.SYSTEM
        if role is Role.TOOL and not self.tool:
            role, content = Role.USER, f"<tool_response>\n{content}\n</tool_response>"
        message: Message = {"role": role.value, "content": content}
        if turn.tool_calls and self.tool_calls:
            message["tool_calls"] = [_call(call, self.arguments_as_text) for call in turn.tool_calls]
        elif turn.tool_calls:
            texts = [
                f"<tool_call>\n{_json({'name': call.name, 'arguments': call.arguments})}\n</tool_call>"
                for call in turn.tool_calls
            ]
            message["content"] = "\n".join([*([content] if content else []), *texts])
        for key, value in (("name", turn.name), ("tool_call_id", turn.tool_call_id)):
            if value:
                message[key] = value
        return message


def _add_to_system(messages: list[Message], text: str) -> None:
    if messages and messages[0]["role"] == "system":
        messages[0]["content"] = f"{messages[0]['content']}\n\n{text}".lstrip()
    else:
        messages.insert(0, {"role": "system", "content": text})


def _move_system(messages: list[Message]) -> None:
    text = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    messages[:] = [message for message in messages if message["role"] != "system"]
    first = next((message for message in messages if message["role"] == "user"), None)
    if text and first is not None:
        first["content"] = f"{text}\n\n{first['content']}"
    elif text:
        messages.insert(0, {"role": "user", "content": text})


def _call(call: ToolCall, as_text: bool) -> dict[str, Any]:
    arguments = _json(call.arguments) if as_text else call.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _answer(content: str) -> Message:
    return {"role": "tool", "content": content, "name": "f", "tool_call_id": _CALL.id}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
