"""How models write the tool calls that they make. Each family was trained on one way, which its chat template shows.

| format | what a call looks like |
|---|---|
| hermes | `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Qwen, Hermes, SmolLM |
| llama3 | the whole answer is `{"name": ..., "parameters": {...}}`, several with `;` between |
| internlm | `<|action_start|><|plugin|>{"name": ..., "parameters": {...}}<|action_end|>` |
| mistral | `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, later `[TOOL_CALLS]name[ARGS]{...}` |
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import ConfigError

_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\][\w-]*)?\s*(?:\[ARGS\])?\s*(?=\{)")


@dataclass(frozen=True)
class ToolFormat:
    """`opens` is what a call begins with, `closes` what it ends with ("": the next call, or the end of the text).
    `is_bare`: a call may also be the whole text, without a mark. `arguments`: the key of a call's arguments. `as_list`:
    several calls come in one list.
    """

    name: str
    opens: str
    closes: str
    arguments: str = "arguments"
    is_bare: bool = False
    as_list: bool = False

    def calls_in(self, body: str) -> list[tuple[str, str]] | None:
        """(name, arguments as JSON) of each call between the marks; None where it is none."""
        values = _values(body)
        if values is None:
            return None
        calls = [self._call(value) for value in values]
        found = [call for call in calls if call is not None]
        return found if found and len(found) == len(calls) else None

    def _call(self, value: Any) -> tuple[str, str] | None:
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        # What a model was trained on in other forms shows through, so either key is taken.
        arguments = next((value[key] for key in (self.arguments, "arguments", "parameters") if key in value), {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                return None
        if not isinstance(arguments, dict):
            return None
        return value["name"], json.dumps(arguments, ensure_ascii=False)

    def schema(self, tools: dict[str, Any]) -> dict[str, Any]:
        """The JSON Schema of a call of one of `tools`, the schemas of their arguments by name, as it stands between the
        marks."""
        options = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, self.arguments: parameters},
                "required": ["name", self.arguments],
                "additionalProperties": False,
            }
            for name, parameters in tools.items()
        ]
        one = options[0] if len(options) == 1 else {"anyOf": options}
        return {"type": "array", "items": one, "minItems": 1} if self.as_list else one


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>")
LLAMA3 = ToolFormat("llama3", "<|python_tag|>", "", "parameters", is_bare=True)
INTERNLM = ToolFormat("internlm", "<|action_start|><|plugin|>", "<|action_end|>", "parameters")
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", "", as_list=True)
FORMATS = {each.name: each for each in (HERMES, LLAMA3, INTERNLM, MISTRAL)}


def tool_format(template: str, name: str = "") -> ToolFormat:
    """The format of that name; without one, that of the chat template, and Hermes' where the template shows none (it is
    what is then written for it). Raises ConfigError."""
    if name:
        if name not in FORMATS:
            raise ConfigError(f"there is no format of tool calls '{name}'", hint=f"choose one of {', '.join(FORMATS)}")
        return FORMATS[name]
    for format, sign in ((INTERNLM, "<|action_start|>"), (MISTRAL, "[TOOL_CALLS]"), (HERMES, "<tool_call>")):
        if sign in template:
            return format
    return LLAMA3 if "<|python_tag|>" in template or '"parameters"' in template else HERMES


def _values(body: str) -> list[Any] | None:
    """The JSON values one behind the other in `body`, a list's one by one; None where something else stands there."""
    decoder = json.JSONDecoder()
    values: list[Any] = []
    at = 0
    while at < len(body):
        if body[at].isspace() or body[at] == ";":
            at += 1
            continue
        named = _NAMED.match(body, at)
        try:
            value, end = decoder.raw_decode(body, named.end() if named else at)
        except (ValueError, RecursionError):
            return None
        if named:
            value = {"name": named[1], "arguments": value}
        values += value if isinstance(value, list) else [value]
        at = end
    return values
