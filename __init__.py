"""Callboard: an actor runtime on a message bus that takes a language model through its whole life.

The names below load on first use (PEP 562), so `import callboard` costs nothing and test runners may import this file
by any name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .actors.tools.client import open_tool as open_tool
    from .actors.tools.context import ToolContext as ToolContext
    from .actors.tools.errors import ToolError as ToolError
    from .actors.tools.tool import Tool as Tool
    from .actors.tools.tool import tool as tool
    from .actors.tools.values import Audio as Audio
    from .actors.tools.values import File as File
    from .actors.tools.values import Image as Image
    from .runtime.actor import Actor as Actor
    from .runtime.actor import handler as handler
    from .runtime.blocking import connect_sync as connect_sync
    from .runtime.client import connect as connect
    from .runtime.errors import CallboardError as CallboardError
    from .runtime.event_log import Appended as Appended
    from .runtime.event_log import EventLog as EventLog
    from .runtime.log_reading import Event as Event
    from .runtime.node import Node as Node
    from .runtime.placement import Here as Here
    from .runtime.placement import OnNode as OnNode
    from .runtime.placement import Process as Process
    from .runtime.placement import Ray as Ray
    from .runtime.refs import Ref as Ref
    from .runtime.supervision import Restart as Restart
    from .runtime.supervision import Strategy as Strategy
    from .runtime.supervision import Supervision as Supervision
    from .runtime.work_queue import Job as Job
    from .runtime.work_queue import WorkQueue as WorkQueue
    from .schemas.base import Message as Message
    from .schemas.base import Request as Request
    from .schemas.base import StreamRequest as StreamRequest
    from .schemas.runtime import Terminated as Terminated

__version__ = "0.1.0"

_HOME = {
    "Actor": "runtime.actor",
    "Appended": "runtime.event_log",
    "Audio": "actors.tools.values",
    "CallboardError": "runtime.errors",
    "Event": "runtime.log_reading",
    "EventLog": "runtime.event_log",
    "File": "actors.tools.values",
    "Here": "runtime.placement",
    "Image": "actors.tools.values",
    "Job": "runtime.work_queue",
    "Message": "schemas.base",
    "Node": "runtime.node",
    "OnNode": "runtime.placement",
    "Process": "runtime.placement",
    "Ray": "runtime.placement",
    "Ref": "runtime.refs",
    "Request": "schemas.base",
    "Restart": "runtime.supervision",
    "Strategy": "runtime.supervision",
    "StreamRequest": "schemas.base",
    "Supervision": "runtime.supervision",
    "Terminated": "schemas.runtime",
    "Tool": "actors.tools.tool",
    "ToolContext": "actors.tools.context",
    "ToolError": "actors.tools.errors",
    "WorkQueue": "runtime.work_queue",
    "connect": "runtime.client",
    "connect_sync": "runtime.blocking",
    "handler": "runtime.actor",
    "open_tool": "actors.tools.client",
    "tool": "actors.tools.tool",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_HOME, "__version__"]
