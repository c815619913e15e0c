"""Takes the tool calls out of an answer while it is written."""

from __future__ import annotations

import secrets

from ...schemas.serve import ModelToolCall
from .tool_formats import ToolFormat


class ToolCallParser:
    """`push` gives back what is text for whoever reads it; `calls` grows as calls are complete.

    Text that may yet turn out to begin a call is held back, and so is space before it, which belongs to neither. What
    looked like a call and is none that can be read comes out as the text that it is.
    """

    def __init__(self, format: ToolFormat) -> None:
        self.calls: list[ModelToolCall] = []
        self._format = format
        self._held = ""
        self._body: str | None = None
        self._mark = ""
        self._nothing_yet = True

    def push(self, text: str) -> str:
        self._held += text
        passed: list[str] = []
        while self._step(passed):
            pass
        return "".join(passed)

    def finish(self) -> str:
        """Nothing follows. What was held back and is text after all."""
        if self._body is None:
            held, self._held = self._held, ""
            return "" if self.calls and not held.strip() else held
        body, self._held, self._body = self._held, "", None
        return "" if self._take(body) else self._mark + body

    def _step(self, passed: list[str]) -> bool:
        """Whether there is more to do with what is held."""
        if self._body is not None:
            return self._in_call(passed)
        if self._nothing_yet and self._format.is_bare:
            start = self._held.lstrip()
            if not start:
                return False
            if start[0] in "{[":
                self._begin("", self._held)
                return True
        opens = self._format.opens
        at = self._held.find(opens)
        if at >= 0:
            before = self._held[:at]
            if before.strip():
                passed.append(before.rstrip())
            self._nothing_yet = False
            self._begin(opens, self._held[at + len(opens) :])
            return True
        free = len(self._held) - _overlap(self._held, opens)
        free = len(self._held[:free].rstrip())
        if free:
            passed.append(self._held[:free])
            self._held = self._held[free:]
            self._nothing_yet = False
        return False

    def _begin(self, mark: str, body: str) -> None:
        self._body, self._mark, self._held = "", mark, body

    def _in_call(self, passed: list[str]) -> bool:
        closes = self._format.closes
        at = self._held.find(closes or self._format.opens)  # without an end of its own, a call ends where one begins
        if at < 0:
            return False
        body, self._held = self._held[:at], self._held[at + len(closes) :]
        self._body = None
        if not self._take(body):
            passed.append(f"{self._mark}{body}{closes}")
        return True

    def _take(self, body: str) -> bool:
        found = self._format.calls_in(body)
        if found is None:
            return False
        # Nine letters and digits: the only ids that every template takes.
        self.calls += [ModelToolCall(secrets.token_hex(5)[:9], name, arguments) for name, arguments in found]
        return True


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` are a beginning of `mark`."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
