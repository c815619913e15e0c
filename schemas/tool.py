"""Tools: what one is, how it is called, what it gives back.

A tool is described as the Model Context Protocol describes one: a name, a text, JSON Schemas in and out, annotations.
Arguments and results are JSON in a string, as models write them. An image, a sound or a file in them is the string of
its name in `media`, where the bytes are a blob, so a large value never goes through JSON.
"""

from __future__ import annotations

import enum

import msgspec

from .base import Message, Request, StreamRequest
from .blob import Blob


class MediaKind(enum.StrEnum):
    IMAGE = "image"
    AUDIO = "audio"
    FILE = "file"


class Media(msgspec.Struct, frozen=True):
    """Bytes that a tool takes or gives. `name` is unique within a message, and stands for it in its JSON."""

    name: str
    kind: MediaKind
    mime: str
    blob: Blob


class ToolAnnotations(msgspec.Struct, frozen=True):
    """What a policy may decide by, with MCP's names, meanings and cautious defaults."""

    title: str = ""
    read_only: bool = False
    destructive: bool = True
    idempotent: bool = False
    open_world: bool = True


class ToolInfo(Message, frozen=True, tag="tool.info"):
    """One tool. `address` is the actor to ask, empty while nobody runs it. `input_schema`, `output_schema`: JSON.

    `version` changes with what the tool does. `timeout` is in seconds; `concurrency`: calls that it works on at once.
    """

    name: str
    description: str
    input_schema: str
    output_schema: str
    annotations: ToolAnnotations = ToolAnnotations()
    address: str = ""
    version: str = ""
    timeout: float = 60.0
    concurrency: int = 1
    tags: tuple[str, ...] = ()


class ToolProgress(Message, frozen=True, tag="tool.progress"):
    """How far a call is. `total` 0 where nobody knows."""

    done: float = 0.0
    total: float = 0.0
    text: str = ""


class ToolPiece(Message, frozen=True, tag="tool.piece"):
    """A part of a result that is worth showing before the whole is there."""

    text: str = ""
    media: tuple[Media, ...] = ()


class ToolResult(Message, frozen=True, tag="tool.result"):
    """`value`: JSON, as the tool's output schema says. `text`: the same for a model to read. `seconds`: in the tool."""

    value: str
    text: str
    media: tuple[Media, ...] = ()
    seconds: float = 0.0


class CallTool(StreamRequest[ToolProgress | ToolPiece, ToolResult], frozen=True, tag="tool.call"):
    """Call the tool that is asked. `arguments`: a JSON object. `session`: state that a tool keeps between calls.

    `key` names the call: a tool's owner may use it to see that a call which comes twice is run once. Errors: `tool.*`.
    """

    arguments: str = "{}"
    media: tuple[Media, ...] = ()
    session: str = ""
    key: str = ""


class MediaTaken(Message, frozen=True, tag="tool.taken"):
    """Tell a tool that media of its results were read: the blobs of these ids may go. Untold, they stay for minutes."""

    ids: tuple[str, ...]


class MediaPut(Message, frozen=True, tag="tool.put.result"):
    """`received` bytes are there; `blob` once all are, to be named in the call."""

    received: int
    blob: Blob | None = None


class PutMedia(Request[MediaPut], frozen=True, tag="tool.put"):
    """A piece of a medium of `size` bytes for a tool on another host, which cannot fetch blobs. In order, from 0 on.

    `upload` is a name of the caller's making for the whole.
    """

    upload: str
    offset: int
    size: int
    data: bytes


class MediaPart(Message, frozen=True, tag="tool.part"):
    data: bytes


class GetMedia(StreamRequest[MediaPart, None], frozen=True, tag="tool.get"):
    """Ask a tool of another host for the bytes of a medium of its results, by its blob's id."""

    id: str


class DescribeTool(Request[ToolInfo], frozen=True, tag="tool.describe"):
    """Ask a tool what it is."""


class ToolList(Message, frozen=True, tag="tool.list.result"):
    """`total`: how many there are where `tools` holds only the best `limit` of them."""

    tools: tuple[ToolInfo, ...]
    total: int = 0


class ListTools(Request[ToolList], frozen=True, tag="tool.list"):
    """Ask the directory (`tools`) or a set of tools for what is there.

    With `query`, the most relevant first. `names`: only these; a name may end in `*`. `limit` 0: all.
    """

    query: str = ""
    names: tuple[str, ...] = ()
    limit: int = 0


class OpenTool(Request[ToolInfo], frozen=True, tag="tool.open"):
    """Ask the directory for a tool that runs: it is started where it is not yet, and `address` is set in the answer."""

    name: str


class OfferTools(Request[ToolList], frozen=True, tag="tool.offer"):
    """Tell the directory of a set of tools at `address`, which it asks for them, and forgets when that actor ends.

    It finds a set by itself within seconds; who starts one in a process of its own on another node says so at once.
    """

    address: str
