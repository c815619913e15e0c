"""Lagent's actions as our tools, and our tools as Lagent's actions (0.2.4, which imports only with `cachetools` beside
it)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ....runtime.errors import CallboardError
from ..context import ToolContext
from ..errors import ToolDefinition, ToolError
from ..schema_tool import SchemaTool
from ..values import File
from .callee import Callee, callee, framework, lasting_path

if TYPE_CHECKING:
    from ..client import OpenedTool
    from ..tool import Tool

_FROM_LAGENT = {"STRING": "string", "FLOAT": "number", "NUMBER": "number", "BOOLEAN": "boolean", "ARRAY": "array"}
_TO_LAGENT = {"string": "STRING", "number": "FLOAT", "integer": "NUMBER", "boolean": "BOOLEAN", "array": "Array"}
_MEDIA = ("image", "audio", "video", "file")


def from_lagent(action: Any, **options: Any) -> list[SchemaTool]:
    """The tools of a `BaseAction`: one, or, of a toolkit, one for each of its APIs. `options` are those of `@tool`.

    Lagent knows no types but text, numbers, truth values and lists. What an action gives back is its text, and the
    files that it names as images, sounds or videos.
    """
    description: dict[str, Any] = action.description
    apis = description["api_list"] if action.is_toolkit else [description]
    prefix = re.sub(r"\W", "_", description["name"])
    options.setdefault("concurrency", 1)
    return [
        _tool(action, api, f"{prefix}_{api['name']}" if action.is_toolkit else prefix, description, options)
        for api in apis
    ]


def _tool(action: Any, api: dict[str, Any], name: str, whole: dict[str, Any], options: dict[str, Any]) -> SchemaTool:
    properties: dict[str, Any] = {}
    for parameter in api["parameters"]:
        kind = _FROM_LAGENT.get(str(parameter.get("type", "STRING")).upper(), "string")
        properties[parameter["name"]] = {"type": kind, "description": parameter.get("description", "")}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(api["required"]),
        "additionalProperties": False,
    }
    called = api["name"] if action.is_toolkit else "run"

    def run(arguments: dict[str, Any], context: ToolContext) -> Any:
        done = action(json.dumps(arguments), called)
        if int(done.state) != 0:
            raise ToolError(done.errmsg or "the action failed and did not say why")
        return _ours(done.result or [])

    text = api.get("description") or whole.get("description") or name
    return SchemaTool(name[:64], text, schema, run, **options)


def _ours(result: list[dict[str, Any]]) -> Any:
    texts: list[str] = []
    media: list[File] = []
    for each in result:
        content = each["content"]
        if each["type"] in _MEDIA and isinstance(content, str) and Path(content).is_file():
            media.append(File.from_path(content).sorted_out())
        else:
            texts.append(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str))
    text = "\n".join(texts)
    if not media:
        return text
    return media[0] if len(media) == 1 and not text else {"text": text, "media": media}


def to_lagent(
    *tools: Tool | OpenedTool | Callee, name: str = "callboard", description: str = "Tools of the company."
) -> Any:
    """Our tools as an action: one as a plain action, several as a toolkit of that name.

    What a tool gives back is its text; media are the paths of files. A ToolError is an action's error.
    """
    schema = framework("lagent.schema", "lagent cachetools")

    callees = [callee(tool) for tool in tools]
    if not callees:
        raise ToolDefinition("an action is made of one tool or more")
    base = _base()

    def call(one: Callee, arguments: dict[str, Any]) -> Any:
        kind = one.info.name
        try:
            outcome = one.call(arguments)
        except CallboardError as error:
            words = f"{error.message} ({error.hint})" if error.hint else error.message
            return schema.ActionReturn(args=arguments, type=kind, errmsg=words, state=schema.ActionStatusCode.API_ERROR)
        result = [{"type": "text", "content": outcome.text}]
        result += [{"type": file.kind.value, "content": lasting_path(file)} for file in outcome.media.values()]
        return schema.ActionReturn(args=arguments, type=kind, result=result)

    return base(callees, name, description, call)


def _base() -> Any:
    """The one class for all: Lagent registers each class of actions by its name, and takes none twice."""
    global _class
    if _class is None:
        base = framework("lagent.actions", "lagent cachetools").BaseAction

        class CallboardAction(base):
            """Tools of a Callboard company."""

            def __init__(self, callees: Sequence[Callee], name: str, description: str, call: Any) -> None:
                self._callees = {_identifier(one.info.name): one for one in callees}
                self._call = call
                apis = [_api(own, one) for own, one in self._callees.items()]
                self._is_toolkit = len(apis) > 1
                whole = {"name": name, "description": description, "api_list": apis} if self._is_toolkit else apis[0]
                super().__init__(description=whole)

            def run(self, **arguments: Any) -> Any:
                return self._call(next(iter(self._callees.values())), arguments)

            def __getattr__(self, name: str) -> Any:
                found = self.__dict__.get("_callees", {}).get(name)
                if found is None or not self._is_toolkit:
                    raise AttributeError(name)
                return lambda **arguments: self._call(found, arguments)

        _class = CallboardAction
    return _class


_class: Any = None


def _api(name: str, one: Callee) -> dict[str, Any]:
    schema: dict[str, Any] = msgspec.json.decode(one.info.input_schema or "{}")
    parameters = [
        {
            "name": parameter,
            "type": _TO_LAGENT.get(part.get("type", ""), "STRING") if isinstance(part.get("type"), str) else "STRING",
            "description": part.get("description", ""),
        }
        for parameter, part in schema.get("properties", {}).items()
    ]
    return {
        "name": name,
        "description": one.info.description,
        "parameters": parameters,
        "required": list(schema.get("required", ())),
    }


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name, flags=re.ASCII)
