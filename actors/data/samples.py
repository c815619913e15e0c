"""What a record of any format becomes: a conversation, a document, or a preference between two answers."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeAlias

import msgspec


class Role(StrEnum):
    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class ToolCall(msgspec.Struct, frozen=True):
    """`arguments`: the JSON object that the tool is called with."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


class Turn(msgspec.Struct, frozen=True):
    """One message of a conversation.

    `loss`: whether a model is to learn to say it; true of the assistant's turns only. `reasoning`: what it thought
    before `content`. `name` and `tool_call_id` are those of a tool's answer.
    """

    role: Role
    content: str
    loss: bool = False
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    tool_call_id: str = ""


class Conversation(msgspec.Struct, frozen=True, tag="conversation"):
    """`tools`: what the assistant may call, each as its API describes it."""

    turns: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...] = ()


class Document(msgspec.Struct, frozen=True, tag="document"):
    """Plain text, all of it to be learnt. A text too large for memory comes in pieces: `begins` and `ends` say which
    piece is the first and which the last."""

    text: str
    begins: bool = True
    ends: bool = True


class Preference(msgspec.Struct, frozen=True, tag="preference"):
    """Two ways to go on from `prompt`, of which the first is the better."""

    prompt: tuple[Turn, ...]
    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]


Sample: TypeAlias = Conversation | Document | Preference


def system(content: str) -> Turn:
    return Turn(Role.SYSTEM, content)


def user(content: str) -> Turn:
    return Turn(Role.USER, content)


def assistant(content: str, *, loss: bool = True) -> Turn:
    return Turn(Role.ASSISTANT, content, loss=loss)


def tool(content: str) -> Turn:
    return Turn(Role.TOOL, content)
