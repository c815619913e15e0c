"""Recording what the app shows, and playing it again: asciicast v2, the format of asciinema, whose player takes it too.

A recording is a file of others when somebody plays it, so only what draws is let through to the terminal: no clipboard,
no title, no device reports.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ..runtime.errors import CallboardError, UsageError

# Pauses are cut to this when a recording is played.
LONGEST_PAUSE_S = 2.0
# Text, and of the control sequences those that move, colour and clear, and the modes that a full screen needs.
_DRAWS = re.compile(
    r"\x1b\[[0-9;:]*[ABCDEFGHJKLMPSTXdfmrsu@]|\x1b\[\?(?:25|7|1049|2026)[hl]|\x1b[78]|[\t\n\r\b]|[^\x00-\x1f\x7f-\x9f]+"
)
# What does not: a sequence is taken whole, so that its inside is not left as text.
_OTHER = re.compile(
    r"\x1b[\]PX^_].*?(?:\x1b\\|\x07|\x9c|$)|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|\x1b[ -/]*[0-~]?|[\x00-\x1f\x7f-\x9f]",
    re.DOTALL,
)
_ANY = re.compile(f"(?P<draws>{_DRAWS.pattern})|(?:{_OTHER.pattern})", re.DOTALL)
_LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"


class RecordingUnfit(CallboardError):
    """A file that is no recording."""

    code = "tui.recording"


class Recorder:
    """Writes a file of events: `o` is output, `i` a key, `r` a new size. Each is there when it happened: a crash of the
    app leaves what led to it."""

    def __init__(self, path: Path, width: int, height: int) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it may hold what one typed
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}", hint="--record names a file") from error
        self._file: IO[str] = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)
        self._began = time.monotonic()
        self._line({"version": 2, "width": width, "height": height, "title": "callboard tui"})

    def output(self, text: str) -> None:
        self._event("o", text)

    def key(self, key: str) -> None:
        self._event("i", key)

    def resized(self, width: int, height: int) -> None:
        self._event("r", f"{width}x{height}")

    def close(self) -> None:
        self._file.close()

    def _event(self, kind: str, text: str) -> None:
        self._line([round(time.monotonic() - self._began, 4), kind, text])

    def _line(self, value: Any) -> None:
        if not self._file.closed:
            self._file.write(json.dumps(value, ensure_ascii=True) + "\n")


def read_recording(path: Path) -> tuple[tuple[int, int], Iterator[tuple[float, str]]]:
    """The size that it was made in, and (seconds, output). Raises RecordingUnfit."""
    try:
        lines = path.read_text("utf-8").splitlines()
        head = json.loads(lines[0])
        if head["version"] != 2:
            raise RecordingUnfit(f"{path} is of version {head['version']}", hint="version 2 is what can be played")
        size = (int(head["width"]), int(head["height"]))
    except OSError as error:
        raise RecordingUnfit(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise RecordingUnfit(f"{path} is no recording", hint="`callboard tui --record FILE` makes one") from error
    return size, _outputs(path, lines[1:])


def _outputs(path: Path, lines: list[str]) -> Iterator[tuple[float, str]]:
    for number, line in enumerate(lines, 2):
        try:
            at, kind, text = json.loads(line)
            if kind == "o":
                yield float(at), str(text)
        except (ValueError, TypeError) as error:
            if number == len(lines) + 1:
                return  # the app was killed while it wrote this
            raise RecordingUnfit(f"{path}: line {number} is no event") from error


def drawing(text: str) -> str:
    """What of it draws, and nothing else."""
    return "".join(found["draws"] or "" for found in _ANY.finditer(text))


def play(path: Path, write: Callable[[str], Any], key: Callable[[float], str], speed: float = 1.0) -> None:
    """Play it. `key` waits so many seconds for a key and returns it, "" for none: space pauses, q ends, + and - change
    the speed."""
    _, outputs = read_recording(path)
    write("\x1b[?1049h\x1b[2J\x1b[H")
    try:
        last = 0.0
        for at, text in outputs:
            left = min(max(0.0, at - last), LONGEST_PAUSE_S) / speed
            last = at
            began = time.monotonic()
            while (rest := left - (time.monotonic() - began)) > 0:
                pressed = key(rest)
                if pressed == " ":
                    while key(60.0) == "":
                        continue
                elif pressed in ("q", "\x03", "\x1b"):
                    return
                elif pressed in ("+", "-"):
                    speed = min(16.0, max(0.25, speed * (2.0 if pressed == "+" else 0.5)))
            write(drawing(text))
        while key(60.0) == "":
            continue
    finally:
        write(_LEAVE)


def play_in_terminal(path: Path) -> int:
    """Play it in this terminal."""
    import termios
    import tty

    (width, height), _ = read_recording(path)
    here = os.get_terminal_size()
    if here.columns < width or here.lines < height:
        print(
            f"callboard: made in {width}x{height}, and this terminal has {here.columns}x{here.lines}", file=sys.stderr
        )
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def key(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return codecs.decode(os.read(descriptor, 1), "latin-1") if ready else ""

    try:
        play(path, write, key)
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
    return 0
