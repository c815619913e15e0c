"""What a line of a log holds, as it is written (one JSON object) and as it is read back and filtered.

The actor and the trace of a line are those that the logging task works for, so nobody has to name them.
"""

from __future__ import annotations

import io
import logging
import re
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from .context import current_place
from .messages import UNDECODABLE

# A print without an end, a progress bar say, becomes lines of so many characters.
MAX_PRINTED = 16_384

LEVELS = ("debug", "info", "warning", "error", "critical")


class LogError(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was raised: its type, its stable code if it has one, its hint, where it came from."""

    type: str
    message: str = ""
    code: str = ""
    hint: str = ""
    traceback: str = ""


class LogLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. `logger` is `stdout` or `stderr` for what was printed. A line that nobody's logging wrote has a
    `message` only."""

    message: str
    time: str = ""
    level: str = ""
    node: str = ""
    actor: str = ""
    trace: str = ""
    logger: str = ""
    error: LogError | None = None


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(LogLine)


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON, in the name of `node`."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        place = current_place.get()
        fields: dict[str, Any] = vars(record)
        return _encode(
            LogLine(
                message=record.getMessage(),
                time=datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
                level=record.levelname.lower(),
                node=self._node,
                # What the runtime says of an actor that does not run names it itself.
                actor=fields.get("actor") or place.address,
                trace=place.trace.trace_id if place.trace is not None else "",
                logger=record.name,
                error=_error_of(record),
            )
        ).decode()


def _error_of(record: logging.LogRecord) -> LogError | None:
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return None
    code, hint = getattr(error, "code", ""), getattr(error, "hint", "")
    return LogError(
        type(error).__name__,
        str(error),
        code if isinstance(code, str) else "",
        hint if isinstance(hint, str) else "",
        "".join(traceback.format_exception(error)),
    )


class Printed(io.TextIOBase):
    """Stands for `sys.stdout` or `sys.stderr`: whole lines become lines of the log, with their actor."""

    def __init__(self, beneath: TextIO, name: str) -> None:
        self._beneath = beneath
        self._name = name
        self._parts: dict[str, str] = {}

    def write(self, text: str) -> int:
        actor = current_place.get().address
        *lines, rest = (self._parts.pop(actor, "") + text).split("\n")
        if len(rest) > MAX_PRINTED:
            lines, rest = [*lines, rest], ""
        if rest:
            self._parts[actor] = rest
        for line in lines:
            self._say(actor, line)
        return len(text)

    def flush(self) -> None:
        """A line that is not whole waits for its end; `close_lines` does not."""

    def close_lines(self) -> None:
        parts, self._parts = self._parts, {}
        for actor, rest in parts.items():
            self._say(actor, rest)

    def _say(self, actor: str, line: str) -> None:
        """Past the level that is set: whoever prints something wants it seen."""
        fields = {"name": self._name, "msg": line.rstrip("\r"), "levelno": logging.INFO, "levelname": "INFO"}
        record = logging.makeLogRecord({**fields, "actor": actor})
        for handler in logging.getLogger().handlers:
            handler.handle(record)

    def fileno(self) -> int:
        return self._beneath.fileno()

    @property
    def buffer(self) -> Any:
        return self._beneath.buffer

    def writable(self) -> bool:
        return True


# Reading

# nats-server's own lines: [pid] 2026/01/31 12:00:00.000000 [INF] text
_NATS = re.compile(r"\[\d+\] (\d{4})/(\d\d)/(\d\d) (\d\d:\d\d:\d\d\.\d+) \[(\w{3})\] (.*)", re.DOTALL)
_NATS_LEVELS = {"TRC": "debug", "DBG": "debug", "INF": "info", "WRN": "warning", "ERR": "error", "FTL": "critical"}


def read_line(text: str) -> LogLine:
    """Any line of any log of ours."""
    if text[:1] == "{":
        try:
            return _decoder.decode(text)
        except UNDECODABLE:  # somebody printed JSON of his own
            return LogLine(text)
    found = _NATS.fullmatch(text)
    if found is None:
        return LogLine(text)
    year, month, day, time, level, message = found.groups()
    local = datetime.fromisoformat(f"{year}-{month}-{day}T{time}").astimezone(UTC)
    return LogLine(message, local.isoformat(timespec="microseconds"), _NATS_LEVELS.get(level, "info"), logger="nats")


def plain(line: LogLine) -> str:
    """For a terminal: local time, who, what, and below it where an error came from."""
    if not line.time:
        return line.message
    when = datetime.fromisoformat(line.time).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    who = line.actor or line.node
    trace = f" [trace {line.trace[:8]}]" if line.trace else ""
    below = ""
    if line.error is not None:
        below = "".join(f"\n    {text}" for text in line.error.traceback.rstrip().splitlines())
    return f"{when} {line.level.upper()} {f'{who}: ' if who else ''}{line.message}{trace}{below}"


class Wanted:
    """Which lines to show. A line that no logging wrote passes every level: it may be somebody's last words."""

    def __init__(self, actor: str = "", level: str = "", since: datetime | None = None, trace: str = "") -> None:
        self._actor = actor
        self._levels = frozenset(LEVELS[LEVELS.index(level) :]) if level else frozenset()
        self._since = since.astimezone(UTC).isoformat(timespec="microseconds") if since is not None else ""
        self._trace = trace

    @property
    def everything(self) -> bool:
        return not (self._actor or self._levels or self._since or self._trace)

    def has(self, line: LogLine, process: str, time: str) -> bool:
        """`process` is the log's name and `time` that of the line, or of the last before it that has one."""
        if self._since and time < self._since:
            return False
        if self._levels and line.level and line.level not in self._levels:
            return False
        if self._trace and not line.trace.startswith(self._trace):
            return False
        if self._actor:
            of = line.actor or (process if not line.time else "")
            return of == self._actor or of.startswith(f"{self._actor}.")
        return True
