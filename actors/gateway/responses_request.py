"""From the requests of `/v1/responses` to the company's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ...schemas.serve import ChatMessage, Generate, Grammar, GrammarKind, ModelToolCall, OfferedTool
from .engines import Engine
from .errors import BadBody
from .openai_request import TEMPERATURE
from .responses_types import InputItem, InputPart, ResponseBody, ResponseTool, TextFormat
from .thoughts import Turn, with_thoughts

LOGPROBS = "message.output_text.logprobs"
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


def items_of(body: ResponseBody) -> list[InputItem]:
    """Raises BadBody for what no model here reads."""
    if isinstance(body.input, str):
        return [InputItem(role="user", content=body.input)]
    if not body.input:
        raise BadBody("input: there is none", param="input")
    for index, item in enumerate(body.input):
        _check(item, f"input[{index}]")
    return body.input


def _check(item: InputItem, where: str) -> None:
    match item.type:
        case "message":
            needed = {"role": item.role, "content": item.content}
        case "function_call":
            needed = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
        case "function_call_output":
            needed = {"call_id": item.call_id, "output": item.output}
        case "reasoning":
            needed = {}
        case other:
            raise BadBody(f"{where}.type: there is nothing of the type '{other}' here", param=f"{where}.type")
    for name, value in needed.items():
        if value is None:
            raise BadBody(f"{where}: missing required field `{name}` of a {item.type}", param=f"{where}.{name}")
    for name, parts in (("content", item.content), ("output", item.output), ("summary", item.summary)):
        for number, part in enumerate(parts if isinstance(parts, list) else ()):
            if part.type not in (*_TEXTS, "refusal"):
                place = f"{where}.{name}[{number}].type"
                raise BadBody(f"{place}: the model reads texts, no '{part.type}'", param=place)


def conversation(instructions: str | None, items: Sequence[InputItem]) -> tuple[ChatMessage, ...]:
    """What a model thought, said and called at once is one turn."""
    turns: list[Turn] = [Turn(ChatMessage("system", instructions))] if instructions else []
    thoughts, texts, calls = "", list[str](), list[ModelToolCall]()

    def end_turn() -> None:
        nonlocal thoughts, texts, calls
        if texts or calls:
            turns.append(Turn(ChatMessage("assistant", "\n".join(texts), tuple(calls)), thoughts))
        thoughts, texts, calls = "", [], []

    for item in items:
        if item.type == "function_call":
            calls.append(ModelToolCall(item.call_id or "", item.name or "", item.arguments or "{}"))
        elif item.type == "reasoning":
            if texts or calls:
                end_turn()
            thoughts = _text(item.content) or _text(item.summary)
        elif item.type == "function_call_output":
            end_turn()
            turns.append(Turn(ChatMessage("tool", _text(item.output), tool_call_id=item.call_id or "")))
        elif item.role == "assistant":
            if calls:
                end_turn()
            texts.append(_text(item.content))
        else:
            end_turn()
            role = "user" if item.role == "user" else "system"  # templates know no developer
            turns.append(Turn(ChatMessage(role, _text(item.content))))
    end_turn()
    return with_thoughts(turns)


def _text(content: str | list[InputPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.refusal if part.type == "refusal" else part.text for part in content)


def response_request(body: ResponseBody, before: Sequence[InputItem], engine: Engine, client: str) -> Generate:
    """`before`: the items of the responses that this one follows. Raises BadBody."""
    _refuse(body)
    optional = {"top_p": body.top_p, "priority": body.priority, "seed": body.seed}
    if body.top_k is not None:
        optional["top_k"] = max(body.top_k, 0)
    if LOGPROBS in (body.include or ()):
        optional["logprobs"] = body.top_logprobs or 0
    elif body.top_logprobs:
        raise BadBody(f"top_logprobs: it goes with '{LOGPROBS}' in `include`", param="top_logprobs")
    tools, choice = _tools(body)
    fields: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
    return Generate(
        model=engine.model.model,
        adapter=engine.adapter,
        messages=conversation(body.instructions, [*before, *items_of(body)]),
        tools=tools,
        tool_choice=choice,
        grammar=_grammar(body.text.format if body.text else None),
        max_tokens=body.max_output_tokens,
        temperature=TEMPERATURE if body.temperature is None else body.temperature,
        session=body.session_id or "",
        ignore_eos=body.ignore_eos,
        client=client or body.user or "",
        **fields,
    )


def _refuse(body: ResponseBody) -> None:
    """What would change the answer, and is not done here."""
    refused = {
        "conversation": (body.conversation is not None, "use `previous_response_id`"),
        "prompt": (body.prompt is not None, "there are no stored prompts here"),
        "truncation": (body.truncation == "auto", "nothing is left out of a conversation here: say 'disabled'"),
        "background": (bool(body.background and body.stream), "it goes with `stream: false`"),
        "store": (bool(body.background and body.store is False), "what is made in the background is stored"),
    }
    for name, (given, words) in refused.items():
        if given:
            raise BadBody(f"{name}: {words}", param=name)
    for index, name in enumerate(body.include or ()):
        if name not in (LOGPROBS, "reasoning.encrypted_content"):
            raise BadBody(f"include[{index}]: '{name}' is of a tool that is not here", param=f"include[{index}]")


def _tools(body: ResponseBody) -> tuple[tuple[OfferedTool, ...], str]:
    """Those that may be called, and which of them is to be."""
    for index, tool in enumerate(body.tools or ()):
        if tool.type != "function":
            where = f"tools[{index}].type"
            raise BadBody(f"{where}: '{tool.type}' is a tool of OpenAI's servers; here are functions", param=where)
        if not tool.name:
            raise BadBody(f"tools[{index}]: missing required field `name`", param=f"tools[{index}].name")
    tools = tuple(_offered(tool) for tool in body.tools or ())
    choice = body.tool_choice
    if not tools:
        if choice in (None, "none", "auto"):
            return (), ""
        raise BadBody("tool_choice: there are no `tools` to choose from", param="tool_choice")
    if choice is None or isinstance(choice, str):
        return tools, choice or "auto"
    if choice.type == "function":
        if not choice.name:
            raise BadBody("tool_choice: missing required field `name`", param="tool_choice.name")
        return tools, choice.name
    if choice.type != "allowed_tools":
        raise BadBody(f"tool_choice.type: there is no tool '{choice.type}' here", param="tool_choice.type")
    allowed = {tool.name for tool in choice.tools}
    unknown = sorted(allowed - {tool.name for tool in tools})
    if unknown or not allowed:
        words = f"'{unknown[0]}' is none of the `tools`" if unknown else "it names none"
        raise BadBody(f"tool_choice.tools: {words}", param="tool_choice.tools")
    return tuple(tool for tool in tools if tool.name in allowed), choice.mode


def _offered(tool: ResponseTool) -> OfferedTool:
    return OfferedTool(
        tool.name, tool.description or "", json.dumps(tool.parameters or {"type": "object", "properties": {}})
    )


def _grammar(format: TextFormat | None) -> Grammar | None:
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')
    if format.schema is None:
        raise BadBody("text.format.schema: it is needed for the type json_schema", param="text.format.schema")
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(format.schema))
