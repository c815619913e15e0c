"""Grammars that a model's turn is held to, so that even a weak one cannot leave the format. Pure.

Arguments follow the tool's own schema where that is flat (texts, numbers, booleans, choices); a nested part may be any
JSON. Texts are bounded: a model that has nothing to say would otherwise never close its quotes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ...schemas.serve import Grammar, GrammarKind
from ...schemas.tool import ToolInfo
from .wording import properties_of, schema_of

THOUGHT_CHARACTERS = 400
ANSWER_CHARACTERS = 2000
TEXT_CHARACTERS = 1000
# An engine refuses grammars over 64 KiB; with more tools than fit, arguments may be any object.
MAX_BYTES = 48_000

_JSON_RULES = f"""
any ::= object | array | string | number | "true" | "false" | "null"
object ::= "{{" ws (pair (ws "," ws pair){{0,30}})? ws "}}"
pair ::= string ws ":" ws any
array ::= "[" ws (any (ws "," ws any){{0,100}})? ws "]"
string ::= "\\"" plain (escape plain){{0,100}} "\\""
plain ::= [^"\\\\\\x00-\\x1f]{{0,{TEXT_CHARACTERS}}}
escape ::= "\\\\" (["\\\\/bfnrt] | "u" [0-9a-fA-F]{{4}})
integer ::= "-"? ("0" | [1-9] [0-9]{{0,17}})
number ::= integer ("." [0-9]{{1,17}})? ([eE] [-+]? [0-9]{{1,3}})?
boolean ::= "true" | "false"
ws ::= " "?
"""


@lru_cache(maxsize=64)
def react_grammar(tools: tuple[ToolInfo, ...]) -> Grammar:
    """`Thought: ...`, and then an action with its input, or the final answer."""
    whole = _react(tools, flat=True)
    if len(whole.encode()) > MAX_BYTES:
        whole = _react(tools, flat=False)
    return Grammar(GrammarKind.EBNF, whole)


def _react(tools: Sequence[ToolInfo], *, flat: bool) -> str:
    actions = [f"action{number}" for number in range(len(tools))]
    rules = [
        f'root ::= "Thought: " [^\\n]{{1,{THOUGHT_CHARACTERS}}} "\\n" ({" | ".join(["final", *actions])})',
        f'final ::= "Final Answer: " [^\\x00]{{1,{ANSWER_CHARACTERS}}}',
    ]
    for name, tool in zip(actions, tools, strict=True):
        head = _literal(f"Action: {tool.name}\nAction Input: ")
        rules.append(f"{name} ::= {head} {_arguments(tool) if flat else 'object'}")
    return "\n".join(rules) + _JSON_RULES


def _arguments(tool: ToolInfo) -> str:
    """The object that a flat schema describes: required properties first, each of the others or not, in order."""
    properties = properties_of(tool)
    if not properties:
        closed = schema_of(tool).get("properties") == {} or schema_of(tool).get("additionalProperties") is False
        return '"{}"' if closed else "object"
    pairs = {name: f"{_literal(json.dumps(name) + ':')} ws {_value(schema)}" for name, schema in properties.items()}
    required = [name for name in properties if name in (schema_of(tool).get("required") or [])]
    optional = [name for name in properties if name not in required]
    comma = ' ws "," ws '
    if required:
        rest = "".join(f" ({comma}{pairs[name]})?" for name in optional)
        inner = comma.join(pairs[name] for name in required) + rest
    else:
        inner = f"({' | '.join(pairs.values())})?"
    return f'"{{" ws {inner} ws "}}"'


def _value(schema: Any) -> str:
    if not isinstance(schema, dict):
        return "any"
    if isinstance(choices := schema.get("enum"), list) and choices:
        return "(" + " | ".join(_literal(json.dumps(choice)) for choice in choices) + ")"
    kind = schema.get("type")
    known = {"string": "string", "integer": "integer", "number": "number", "boolean": "boolean", "array": "array"}
    return known.get(kind, "any") if isinstance(kind, str) else "any"


def _literal(text: str) -> str:
    return json.dumps(text)


@lru_cache(maxsize=64)
def command_grammar(tools: tuple[ToolInfo, ...], thoughts: tuple[str, ...]) -> Grammar:
    """A JSON object of thoughts and one command, as AutoGPT's turn is."""
    whole = _command(tools, thoughts, flat=True)
    if len(whole.encode()) > MAX_BYTES:
        whole = _command(tools, thoughts, flat=False)
    return Grammar(GrammarKind.EBNF, whole)


def _command(tools: Sequence[ToolInfo], thoughts: Sequence[str], *, flat: bool) -> str:
    commands = [f"command{number}" for number in range(len(tools))]
    said = f" {_literal(', ')} ".join(f"{_literal(json.dumps(name) + ': ')} short" for name in thoughts)
    begin, middle, end = _literal('{"thoughts": {'), _literal('}, "command": '), _literal("}")
    quote = _literal('"')
    rules = [
        f"root ::= {begin} {said} {middle} ({' | '.join(commands)}) {end}",
        f'short ::= {quote} [^"\\\\\\x00-\\x1f]{{1,{THOUGHT_CHARACTERS}}} {quote}',
    ]
    for name, tool in zip(commands, tools, strict=True):
        head = _literal(f'{{"name": {json.dumps(tool.name)}, "args": ')
        rules.append(f"{name} ::= {head} {_arguments(tool) if flat else 'object'} {end}")
    return "\n".join(rules) + _JSON_RULES
