"""Asking a node's control actor (`node.<name>`) closely: about one actor, the kinds it can start, the logs it keeps."""

from __future__ import annotations

import msgspec

from .base import Message, Request, StreamRequest
from .metrics import Durations
from .runtime import ActorInfo


class ActorDescription(Message, frozen=True, kw_only=True, tag="node.actor_description"):
    """What a node knows of an actor that it hosts or supervises.

    `restart`: when its supervisor starts it again. `strategy`, `max_restarts`, `period_s`: how it looks after its own
    `children`. `handles`: the tags of the messages that it takes. `doc`: what its class says of itself. What only the
    process that runs it knows is empty where another one is asked.
    """

    info: ActorInfo
    restart: str
    supervisor: str = ""
    strategy: str = ""
    max_restarts: int = 0
    period_s: float = 0.0
    children: tuple[str, ...] = ()
    handles: tuple[str, ...] = ()
    doc: str = ""
    mailbox_size: int = 0
    mailbox_high: int = 0
    refused: int = 0
    last_error: str = ""
    watchers: int = 0
    durations: Durations = Durations()


class DescribeActor(Request[ActorDescription], frozen=True, tag="node.describe_actor"):
    """Ask a node for all that it knows of one actor. NoSuchActor where it has none of that address."""

    address: str


class KindInfo(msgspec.Struct, frozen=True):
    """`package`: the distribution that announces the kind."""

    name: str
    package: str = ""


class KindList(Message, frozen=True, tag="node.kind_list"):
    kinds: tuple[KindInfo, ...]


class ListKinds(Request[KindList], frozen=True, tag="node.list_kinds"):
    """Ask which kinds of actors a node can start."""


class LogEntry(msgspec.Struct, frozen=True):
    """One line of a log. `process` names the log; `logger` is `stdout` or `stderr` for what was printed; `error`: the
    traceback of what was raised, if anything was."""

    process: str
    message: str
    time: str = ""
    level: str = ""
    actor: str = ""
    trace: str = ""
    logger: str = ""
    error: str = ""


class LogEntries(Message, frozen=True, tag="node.log_entries"):
    """Some lines, in the order of their times."""

    entries: tuple[LogEntry, ...]


class FollowLogs(StreamRequest[LogEntries, None], frozen=True, tag="node.follow_logs"):
    """Ask the daemon for the last lines of its logs, and then for each that is added, until the stream is left.

    `processes`: names of logs, none for all. `actor`: only of that one and those below it; `level`: only of that one
    and above. `lines`: how many to begin with, of each log. Without `follow` it ends with those.
    """

    processes: tuple[str, ...] = ()
    actor: str = ""
    level: str = ""
    lines: int = 100
    follow: bool = True
