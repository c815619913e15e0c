"""A tool of an MCP server as one of ours: its name made to fit, its schemas kept and held to, its hints mapped."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ....runtime.foreign_schema import BadSchema, BadValue, ForeignSchema
from ..context import ToolContext
from ..errors import ToolArguments, ToolDefinition, ToolResultInvalid
from ..outcome import Outcome
from ..schema_of import Json, Media
from ..schema_tool import SchemaTool
from .config import ServerConfig
from .content import with_media
from .schema_stash import output_schema_of

if TYPE_CHECKING:
    import mcp_types

MAX_NAME = 64
MAX_DESCRIPTION = 8000

Call = Callable[[str, dict[str, Any], ToolContext, bool], Awaitable[Outcome]]


class ForeignTool(SchemaTool):
    """`call(name, arguments, context, has_schema)` asks the server. `theirs`: its name there."""

    def __init__(self, tool: mcp_types.Tool, name: str, config: ServerConfig, call: Call, *, waits: float) -> None:
        self.theirs = tool.name
        self._foreign_input = _schema(tool.input_schema, "input")
        output = output_schema_of(tool)
        self._foreign_output = None if output is None else _schema(output, "output")

        async def run(arguments: dict[str, Any], context: ToolContext) -> Outcome:
            return await call(tool.name, arguments, context, output is not None)

        hints = tool.annotations
        super().__init__(
            name,
            (tool.description or tool.title or (hints.title if hints else None) or tool.name)[:MAX_DESCRIPTION],
            tool.input_schema,
            run,
            output_schema=output,
            title=(tool.title or (hints.title if hints else None) or "")[:200],
            # Of the server alone: questions to people are not on its time.
            timeout=config.timeout_s + waits,
            version=_version(tool),
            tags=("mcp",),
            **(_hints(tool) if config.hints else {}),
        )

    @cached_property
    def _arguments_validator(self) -> Any:
        return self._foreign_input.validator

    @cached_property
    def _result_validator(self) -> Any:
        return None  # held against its schema below

    def accept(self, arguments: Json, media: Media) -> dict[str, Any]:
        try:
            given = self.checked(arguments)
        except BadSchema as error:
            raise ToolDefinition(f"the tool's schema cannot be used: {error}") from None
        if not isinstance(given, dict):
            raise ToolArguments("the arguments are no JSON object", hint="send one JSON object")
        return with_media(given, self._input_schema, media)

    def finish(self, value: Any) -> Outcome:
        """The server's result, held against its own schema. Raises ToolResultInvalid."""
        assert isinstance(value, Outcome)
        if self._foreign_output is not None:
            import json

            try:
                self._foreign_output.check(json.loads(value.value))
            except (BadValue, BadSchema) as error:
                raise ToolResultInvalid(f"the tool's result does not fit its own schema: {error}") from None
        return value


def _schema(schema: dict[str, Any], which: str) -> ForeignSchema:
    try:
        return ForeignSchema(schema)
    except BadSchema as error:
        raise ToolDefinition(f"its {which} schema cannot be used: {error}") from None


def _hints(tool: mcp_types.Tool) -> dict[str, Any]:
    """With MCP's meanings and cautious defaults. What only reads destroys nothing."""
    found = tool.annotations
    if found is None:
        return {}
    read_only = bool(found.read_only_hint)
    return {
        "read_only": read_only,
        "destructive": False if read_only else found.destructive_hint is not False,
        "idempotent": bool(found.idempotent_hint),
        "open_world": found.open_world_hint is not False,
    }


def _version(tool: mcp_types.Tool) -> str:
    """MCP tools have none: what is said of it stands for what it does."""
    said = tool.model_dump_json(by_alias=True, exclude_none=True)
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def names_for(theirs: Iterable[str], patterns: tuple[str, ...]) -> dict[str, str]:
    """Their name to ours, for those that match: letters that ours have not replaced, long ones cut, none twice."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for their in theirs:
        if their in found or not any(fnmatchcase(their, pattern) for pattern in patterns):
            continue
        name = re.sub(r"[^A-Za-z0-9_-]", "_", their) or "tool"
        if len(name) > MAX_NAME or name in taken:
            name = f"{name[: MAX_NAME - 9]}_{hashlib.sha256(their.encode()).hexdigest()[:8]}"
        taken.add(name)
        found[their] = name
    return found
