"""Tools in a request: what the model is told of them, how it is made to call one, and how its calls are found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec

from ...runtime.errors import RequestInvalid
from ...schemas.serve import ChatMessage, Generate, Grammar, GrammarKind
from ..data.fitting import Fitting
from ..data.samples import Role, ToolCall, Turn
from ..models.chat_template import ChatTemplate
from ..models.tokenizer import Tokenizer
from ..models.tool_formats import ToolFormat, tool_format
from ..models.tool_parser import ToolCallParser
from .checks import refuse

MAX_TOOLS = 1024


class ToolUse:
    """Of one model. `format`: the name of a way to write calls, "" for the chat template's own."""

    def __init__(self, tokenizer: Tokenizer, format: str = "") -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        self.format: ToolFormat = tool_format(template.text if template else "", format)

    @cached_property
    def marks(self) -> frozenset[int]:
        """Control tokens that are parts of the format: in an answer they are text."""
        around = self.format.opens + self.format.closes + "[ARGS][CALL_ID]"
        words = ((one, self._tokenizer.token_bytes(one, skip_control=False)) for one in self._tokenizer.control_ids)
        return frozenset(one for one, word in words if word and word.decode("utf-8", "replace") in around)

    @cached_property
    def _fitting(self) -> Fitting:
        return Fitting.of(self._template)

    @property
    def _template(self) -> ChatTemplate:
        if self._tokenizer.chat_template is None:
            raise RequestInvalid("this model has no chat template", hint="send a plain `prompt` instead of messages")
        return self._tokenizer.chat_template

    def prompt(self, request: Generate) -> str:
        """The conversation, up to and with what a forced call begins with. Raises RequestInvalid."""
        tools = [] if request.tool_choice == "none" else [_described(name, *rest) for name, *rest in _offered(request)]
        messages, tools_written = self._fitting.messages([_turn(message) for message in request.messages], tools)
        text = self._template.render(messages, tools=tools_written)
        return text + self._forced_start(request)

    def parser(self, request: Generate) -> ToolCallParser | None:
        """A new one for one answer; it has seen what the prompt ends with."""
        if not request.tools or request.tool_choice == "none":
            return None
        parser = ToolCallParser(self.format)
        parser.push(self._forced_start(request))
        return parser

    def grammar(self, request: Generate) -> Grammar | None:
        """What the answer must look like: the request's own grammar, or a call where one is demanded."""
        if not is_forced(request):
            return request.grammar
        if request.grammar is not None:
            refuse("a request cannot have both a grammar and a tool that must be called")
        schemas = {name: schema for name, _, schema in _offered(request)}
        wanted = schemas if request.tool_choice == "required" else {request.tool_choice: schemas[request.tool_choice]}
        return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(self.format.schema(wanted)), compact=True)

    def _forced_start(self, request: Generate) -> str:
        return "" if self.format.is_bare or not is_forced(request) else self.format.opens


def uses_tools(request: Generate) -> bool:
    """Whether its messages are more than roles and texts."""
    return bool(request.tools) or any(one.tool_calls or one.tool_call_id for one in request.messages)


def is_forced(request: Generate) -> bool:
    return request.tool_choice not in ("", "auto", "none")


def check_tools(request: Generate) -> None:
    """RequestInvalid for tools that no model could be offered."""
    if request.tool_choice not in ("", "none") and not request.tools:
        refuse(f"tool_choice '{request.tool_choice}' without `tools`")
    if len(request.tools) > MAX_TOOLS:
        refuse(f"{len(request.tools):,} tools are more than {MAX_TOOLS:,}")
    if request.tools and not request.messages:
        refuse("tools are offered in a conversation: give `messages`, not a prompt")
    names = [tool.name for tool in request.tools]
    if len(set(names)) < len(names) or not all(names):
        refuse("every tool has a name of its own")
    if is_forced(request) and request.tool_choice not in ("required", *names):
        refuse(
            f"tool_choice '{request.tool_choice}' is none of the tools",
            hint=f"auto, none, required, or one of {', '.join(names)}",
        )
    _offered(request)
    for message in request.messages:
        _turn(message)


def _offered(request: Generate) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(name, description, schema of the arguments) of each tool."""
    return [
        (tool.name, tool.description, _object(tool.parameters, f"the parameters of the tool '{tool.name}'"))
        for tool in request.tools
    ]


def _described(name: str, description: Any, parameters: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def _turn(message: ChatMessage) -> Turn:
    try:
        role = Role(message.role)
    except ValueError:
        refuse(f"a conversation with tools has no role '{message.role}'", hint=f"roles are {', '.join(Role)}")
    calls = tuple(
        ToolCall(call.name, _object(call.arguments, f"the arguments of the call '{call.id or call.name}'"), call.id)
        for call in message.tool_calls
    )
    return Turn(role, message.content, tool_calls=calls, tool_call_id=message.tool_call_id)


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        refuse(f"{what} are no JSON: {error}")
    if not isinstance(value, dict):
        refuse(f"{what} are no JSON object")
    return value
