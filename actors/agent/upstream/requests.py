"""What of a `Generate` an endpoint can do, and what is refused because it cannot: nothing is left out in silence, but
for hints that never change an answer (`session`, `client`, `priority`, `speculative`)."""

from __future__ import annotations

from typing import NoReturn

import msgspec

from ....runtime.errors import RequestInvalid
from ....schemas.serve import Generate, Grammar, GrammarKind
from .answers import ToolNames
from .config import Api, UpstreamConfig

CONSTRAINTS: dict[Api, frozenset[GrammarKind]] = {
    Api.OPENAI: frozenset({GrammarKind.JSON_SCHEMA, GrammarKind.JSON}),
    Api.ANTHROPIC: frozenset({GrammarKind.JSON_SCHEMA}),
    Api.VLLM: frozenset(GrammarKind),
    Api.LLAMACPP: frozenset({GrammarKind.JSON_SCHEMA, GrammarKind.JSON, GrammarKind.EBNF}),
}

# Fields of a request that only some of these APIs have, and their values that mean nothing is wanted.
_SPECIAL: dict[str, tuple[object, frozenset[Api]]] = {
    "top_k": (0, frozenset({Api.ANTHROPIC, Api.VLLM, Api.LLAMACPP})),
    "min_p": (0.0, frozenset({Api.VLLM, Api.LLAMACPP})),
    "repetition_penalty": (1.0, frozenset({Api.VLLM})),
    "min_tokens": (0, frozenset({Api.VLLM})),
    "ignore_eos": (False, frozenset({Api.VLLM, Api.LLAMACPP})),
    "presence_penalty": (0.0, frozenset({Api.OPENAI, Api.VLLM, Api.LLAMACPP})),
    "frequency_penalty": (0.0, frozenset({Api.OPENAI, Api.VLLM, Api.LLAMACPP})),
    "logit_bias": ((), frozenset({Api.OPENAI, Api.VLLM})),
    "n": (1, frozenset({Api.OPENAI, Api.VLLM})),
    # Only vLLM says the ids of tokens, without which a logprob is of no known token.
    "logprobs": (None, frozenset({Api.VLLM})),
    "best_of": (None, frozenset()),
    "prompt_logprobs": (None, frozenset()),
    "prompt_ids": ((), frozenset()),
    "prompt": ("", frozenset()),
    "adapter": ("", frozenset()),
    "deterministic": (False, frozenset()),
}


def refuse(message: str, hint: str = "") -> NoReturn:
    raise RequestInvalid(message, hint=hint)


def check(request: Generate, config: UpstreamConfig) -> None:
    """Raises RequestInvalid for what this endpoint cannot do."""
    api = config.api
    for name, (nothing, able) in _SPECIAL.items():
        if getattr(request, name) != nothing and api not in able:
            refuse(f"the API '{api}' has no `{name}`", hint=_HINTS.get(name, "leave it out, or ask an engine of ours"))
    if not request.messages:
        refuse("a request to an upstream needs `messages`")
    if request.seed is not None and request.temperature > 0 and api is Api.ANTHROPIC:
        refuse(f"the API '{api}' has no `seed`", hint="draw without one, or ask with temperature 0")
    known = {"", config.model, *config.models}
    if request.model not in known:
        refuse(
            f"this upstream asks '{config.model}', not '{request.model}'",
            hint="`models` of its configuration lists others that may be named",
        )
    if request.grammar is not None:
        _check_grammar(request.grammar, api)
    choice = request.tool_choice
    if choice not in ("", "auto", "none") and not request.tools:
        refuse("a `tool_choice` without `tools`")
    if choice not in ("", "auto", "none", "required") and choice not in {tool.name for tool in request.tools}:
        refuse(f"`tool_choice` names '{choice}', which is not offered")


_HINTS = {"prompt": "give `messages`", "prompt_ids": "give `messages`"}


def _check_grammar(grammar: Grammar, api: Api) -> None:
    able = CONSTRAINTS[api]
    if grammar.kind not in able:
        refuse(
            f"the API '{api}' cannot hold an answer to a grammar of the kind '{grammar.kind}'",
            hint=f"it can: {', '.join(sorted(able))}; an engine of ours can all. Agents ask for none with "
            "`--option native=true` or `--option constrained=false`",
        )
    if grammar.kind is GrammarKind.JSON_SCHEMA:
        parsed(grammar.text, "the grammar's schema")


def parsed(text: str, what: str) -> dict[str, object]:
    """A JSON object out of a request. Raises RequestInvalid."""
    try:
        return msgspec.json.decode(text, type=dict[str, object])
    except msgspec.DecodeError as error:
        refuse(f"{what} is no JSON object: {error}")


def tool_names(request: Generate) -> ToolNames:
    """Of all tools that a request offers or speaks of."""
    spoken = [call.name for message in request.messages for call in message.tool_calls]
    return ToolNames([tool.name for tool in request.tools] + spoken)
