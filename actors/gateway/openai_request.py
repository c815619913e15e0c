"""From OpenAI's requests to the company's."""

from __future__ import annotations

import json
from typing import Any

from ...schemas.serve import ChatMessage, Generate, Grammar, GrammarKind, ModelToolCall, OfferedTool
from .engines import Engine
from .errors import BadBody
from .openai_types import ChatBody, ChatTurn, CompletionBody, FunctionTool, ResponseFormat, SamplingBody, Texts
from .thoughts import Turn, with_thoughts

# As OpenAI's API draws where nothing is said.
TEMPERATURE = 1.0
MAX_PROMPTS = 1024


def sampling_fields(body: SamplingBody, engine: Engine, client: str) -> dict[str, Any]:
    """The fields of `Generate` that do not depend on what is asked. Raises BadBody."""
    fields: dict[str, Any] = {
        "model": engine.model.model,
        "adapter": engine.adapter,
        "max_tokens": body.max_tokens,
        "temperature": TEMPERATURE if body.temperature is None else body.temperature,
        "stop": _stops(body.stop),
        "seed": body.seed,
        "n": 1 if body.n is None else body.n,
        "ignore_eos": body.ignore_eos,
        "deterministic": body.deterministic,
        "logit_bias": _bias(body.logit_bias),
        "session": body.session_id or "",
        "client": client or body.user or "",
    }
    optional = {
        "top_p": body.top_p,
        "top_k": None if body.top_k is None else max(body.top_k, 0),  # -1 is a usual word for all
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
        "min_tokens": body.min_tokens,
        "session_ttl_s": body.session_ttl_s,
        "priority": body.priority,
    }
    return fields | {name: value for name, value in optional.items() if value is not None}


def chat_request(body: ChatBody, engine: Engine, client: str) -> Generate:
    """Raises BadBody."""
    if not body.messages:
        raise BadBody("messages: there are none", param="messages")
    fields = sampling_fields(body, engine, client)
    if body.max_completion_tokens is not None:
        fields["max_tokens"] = body.max_completion_tokens
    if body.logprobs:
        fields["logprobs"] = body.top_logprobs or 0
    elif body.top_logprobs:
        raise BadBody("top_logprobs: it goes with `logprobs: true`", param="top_logprobs")
    return Generate(
        messages=messages_of(body.messages),
        tools=tools_of(body.tools),
        tool_choice=_choice(body),
        grammar=_grammar(body.response_format),
        **fields,
    )


def completion_requests(body: CompletionBody, engine: Engine, client: str) -> list[Generate]:
    """One for each prompt. Raises BadBody."""
    if body.suffix:
        raise BadBody("suffix: no model here fills in what lies between two texts", param="suffix")
    fields = sampling_fields(body, engine, client)
    if body.best_of is not None:
        fields["best_of"] = body.best_of
    if body.logprobs is not None:
        fields["logprobs"] = body.logprobs
        if body.echo:
            fields["prompt_logprobs"] = body.logprobs
    if body.max_tokens is None:
        fields["max_tokens"] = 16
    elif body.max_tokens == 0 and body.echo:
        fields["max_tokens"] = 1  # nothing but the prompt is wanted: what is generated is not shown
    return [
        Generate(prompt=prompt, **fields) if isinstance(prompt, str) else Generate(prompt_ids=prompt, **fields)
        for prompt in prompts_of(body.prompt, "prompt")
    ]


def prompts_of(texts: Texts, field: str) -> list[str | tuple[int, ...]]:
    """Each as a text or as its tokens. Raises BadBody."""
    if isinstance(texts, str):
        return [texts]
    if not texts:
        raise BadBody(f"{field}: there is none", param=field)
    if all(isinstance(one, int) for one in texts):
        return [tuple(one for one in texts if isinstance(one, int))]
    if len(texts) > MAX_PROMPTS:
        raise BadBody(f"{field}: {len(texts):,} are more than {MAX_PROMPTS:,}", param=field)
    prompts: list[str | tuple[int, ...]] = []
    for index, one in enumerate(texts):
        if isinstance(one, int):
            raise BadBody(f"{field}[{index}]: a token among texts", param=f"{field}[{index}]")
        prompts.append(one if isinstance(one, str) else tuple(one))
    return prompts


def messages_of(turns: list[ChatTurn]) -> tuple[ChatMessage, ...]:
    """Raises BadBody."""
    return with_thoughts([_turn(turn, index) for index, turn in enumerate(turns)])


def _turn(turn: ChatTurn, index: int) -> Turn:
    content = turn.content or ""
    if not isinstance(content, str):
        for number, part in enumerate(content):
            if part.type not in ("text", "refusal"):
                where = f"messages[{index}].content[{number}].type"
                raise BadBody(f"{where}: the model reads texts, no '{part.type}'", param=where)
        content = "\n".join(part.text for part in content)
    calls = tuple(
        ModelToolCall(call.id, call.function.name, call.function.arguments or "{}") for call in turn.tool_calls or ()
    )
    role = "system" if turn.role == "developer" else turn.role  # templates know no developer
    return Turn(ChatMessage(role, content, calls, turn.tool_call_id or ""), turn.reasoning_content or "")


def tools_of(tools: list[FunctionTool] | None) -> tuple[OfferedTool, ...]:
    return tuple(
        OfferedTool(
            tool.function.name,
            tool.function.description or "",
            json.dumps(tool.function.parameters or {"type": "object", "properties": {}}),
        )
        for tool in tools or ()
    )


def _choice(body: ChatBody) -> str:
    if not body.tools:
        if body.tool_choice in (None, "none", "auto"):
            return ""
        raise BadBody("tool_choice: there are no `tools` to choose from", param="tool_choice")
    if body.tool_choice is None:
        return "auto"
    return body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.function.name


def _grammar(format: ResponseFormat | None) -> Grammar | None:
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')
    if format.json_schema is None or format.json_schema.schema is None:
        where = "response_format.json_schema.schema"
        raise BadBody(f"{where}: it is needed for the type json_schema", param=where)
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(format.json_schema.schema))


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _bias(bias: dict[str, float] | None) -> tuple[tuple[int, float], ...]:
    try:
        return tuple((int(token), value) for token, value in (bias or {}).items())
    except ValueError as error:
        raise BadBody(f"logit_bias: its keys are ids of tokens ({error})", param="logit_bias") from error
