"""LangChain's tools as ours, and ours as LangChain's (langchain-core 1.x)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ..context import ToolContext
from ..errors import ToolError
from ..outcome import Outcome
from ..schema_tool import SchemaTool
from ..values import BY_KIND, File, kind_of
from .callee import Callee, callee, framework

if TYPE_CHECKING:
    from ..client import OpenedTool
    from ..tool import Tool

_PACKAGE = "langchain-core"
_MODULE = "langchain_core.tools"
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_-]")
_MEDIA = ("image", "audio", "file")


def from_langchain(tool: Any, **options: Any) -> SchemaTool:
    """A tool of LangChain's (`BaseTool`) as one of ours.

    `options` are those of `@tool`: LangChain says nothing of what is harmless.
    Its result is what it returns; of content blocks, texts and media. What it raises as `ToolException`, or would turn
    into a text for the model, is a `ToolError`.
    """
    tool_exception = framework(_MODULE, _PACKAGE).ToolException

    schema = _schema_of(tool)

    async def run(arguments: dict[str, Any], context: ToolContext) -> Any:
        # Called as by a model, what it makes of an error is marked as one.
        call = {"name": tool.name, "args": arguments, "id": context.key or "call", "type": "tool_call"}
        handled = tool.handle_tool_error or tool.handle_validation_error
        try:
            found = await tool.ainvoke(call if handled or tool.response_format != "content" else arguments)
        except tool_exception as error:
            raise ToolError(str(error) or "the tool failed and did not say why") from error
        if getattr(found, "type", "") == "tool":
            if getattr(found, "status", "") == "error":
                raise ToolError(_text_of(found.content))
            found = found.content
        return _plain(found)

    options.setdefault("concurrency", 1)
    return SchemaTool(
        _NOT_A_NAME.sub("_", tool.name)[:64],
        tool.description or tool.name,
        schema,
        run,
        **options,
    )


def _schema_of(tool: Any) -> dict[str, Any]:
    """Without the arguments that LangChain puts in itself."""
    found: Any = tool.tool_call_schema
    schema = dict(found) if isinstance(found, dict) else found.model_json_schema()
    schema.pop("title", None)
    schema.pop("description", None)
    return {"type": "object", **schema}


def _plain(value: Any) -> Any:
    """What a LangChain tool returned, as what one of ours may give back."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, list) and value and all(isinstance(one, dict) and "type" in one for one in value):
        return _from_blocks(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return value


def _from_blocks(blocks: list[dict[str, Any]]) -> Any:
    """Content blocks as LangChain 1 has them. Where one is of no known kind, all are given back as they are."""
    texts: list[str] = []
    media: list[File] = []
    for block in blocks:
        if block["type"] == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif block["type"] in _MEDIA and isinstance(block.get("base64"), str):
            mime = block.get("mime_type", "")
            media.append(BY_KIND[kind_of(mime)].from_bytes(base64.b64decode(block["base64"]), mime))
        else:
            return blocks
    text = "\n".join(texts)
    if not media:
        return text
    return media[0] if len(media) == 1 and not text else {"text": text, "media": media}


def _text_of(content: Any) -> str:
    return content if isinstance(content, str) else msgspec.json.encode(content).decode()


def to_langchain(tool: Tool | OpenedTool | Callee) -> Any:
    """One of our tools as LangChain's (a `StructuredTool`): for `invoke`, `ainvoke` and models that `bind_tools`.

    Content is the text for a model, with media as content blocks; the artifact is the `Outcome`. A ToolError becomes a
    `ToolException`, which the model is shown.
    """
    module = framework(_MODULE, _PACKAGE)

    called = callee(tool)

    def content(outcome: Outcome) -> tuple[Any, Outcome]:
        blocks = [_to_block(file) for file in outcome.media.values()]
        return ([{"type": "text", "text": outcome.text}, *blocks] if blocks else outcome.text), outcome

    def run(**arguments: Any) -> tuple[Any, Outcome]:
        try:
            return content(called.call(arguments))
        except ToolError as error:
            raise module.ToolException(_told(error)) from error

    async def arun(**arguments: Any) -> tuple[Any, Outcome]:
        try:
            return content(await called.acall(arguments))
        except ToolError as error:
            raise module.ToolException(_told(error)) from error

    schema: dict[str, Any] = msgspec.json.decode(called.info.input_schema or "{}")
    return module.StructuredTool(
        name=_NOT_A_NAME.sub("_", called.info.name)[:64],
        description=called.info.description,
        args_schema={"type": "object", "properties": {}, **schema},
        func=run,
        coroutine=arun,
        response_format="content_and_artifact",
        handle_tool_error=True,
        tags=list(called.info.tags) or None,
    )


def _to_block(file: File) -> dict[str, Any]:
    return {"type": file.kind.value, "base64": base64.b64encode(file.view).decode(), "mime_type": file.mime}


def _told(error: ToolError) -> str:
    return f"{error.message}\n{error.hint}" if error.hint else error.message
