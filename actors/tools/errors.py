"""Errors of tools, each of them an answer that a model can act on.

ToolError                tool             what a tool itself says: `raise ToolError("what is wrong", hint="...")`
├── ToolFailed           tool.failed      the tool raised something that its author did not foresee
├── ToolArguments        tool.arguments   arguments that do not fit its input schema; `detail` has the problems as JSON
│   └── MediaAway        tool.media_away  a medium on another host, which a tool's process cannot fetch: send it
├── ToolResultInvalid    tool.result      what the tool gave back does not fit its own output schema
├── ToolTimeout          tool.timeout     it took longer than its time
├── ToolOverLimit        tool.limit       its process needed more memory or more processes than it may have
├── ToolBusy             tool.busy        it has as many calls in hand and waiting as it takes
├── ToolSetupFailed      tool.setup       what it needs before its first call could not be made ready
├── ForeignToolError     tool.*           an error of a tool's own kind, whose class this process has not loaded
├── NoSuchTool           tool.none        nobody offers a tool of that name
└── ToolDefinition       tool.definition  what was written or announced as a tool is none
"""

from __future__ import annotations

from ...runtime.errors import CallboardError, RemoteError
from ...schemas.base import ErrorInfo


class ToolError(CallboardError):
    code = "tool"


class ForeignToolError(ToolError):
    """`info.code` is the code as sent; it goes on under that code."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message, hint=info.hint, detail=info.detail)
        self.info = info

    def to_info(self) -> ErrorInfo:
        return self.info


def as_tool_error(error: RemoteError) -> CallboardError:
    """A `ToolError` where the code says that it is one, so that whoever handles those handles all of them."""
    return ForeignToolError(error.info) if error.info.code.startswith("tool.") else error


class ToolFailed(ToolError):
    code = "tool.failed"
    default_hint = "other arguments may help; `callboard logs` has the traceback"


class ToolArguments(ToolError):
    code = "tool.arguments"
    default_hint = "call it again with arguments that fit its schema"


class MediaAway(ToolArguments):
    code = "tool.media_away"
    default_hint = "send it to the tool in pieces (`tool.put`), and name the blob that it answers with"


class ToolResultInvalid(ToolError):
    code = "tool.result"
    default_hint = "the tool is at fault, not the arguments: tell its author"


class ToolTimeout(ToolError):
    code = "tool.timeout"
    default_hint = "ask for less at once, or raise the tool's timeout"


class ToolOverLimit(ToolError):
    code = "tool.limit"
    default_hint = "ask for less at once; `[tools.NAME.process]` of the settings has the limits"


class ToolBusy(ToolError):
    code = "tool.busy"
    default_hint = "call it again in a moment"


class ToolSetupFailed(ToolError):
    code = "tool.setup"
    default_hint = "the next call tries again"


class NoSuchTool(ToolError):
    code = "tool.none"
    default_hint = "`callboard tool list` shows those that are there"


class ToolDefinition(ToolError, TypeError):
    code = "tool.definition"
