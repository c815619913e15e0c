"""Takes what a model thinks aloud, between `<think>` and `</think>`, out of its answer while it is written."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"


class Split(NamedTuple):
    reasoning: str
    content: str


class _State(Enum):
    START = auto()
    OPENED = auto()  # the line breaks before the thoughts
    THINKING = auto()
    BETWEEN = auto()  # the line breaks before the answer
    ANSWERING = auto()


class ReasoningSplitter:
    """Thoughts stand at the very beginning of an answer, or they are none. `in_thought`: the prompt has begun one."""

    def __init__(self, in_thought: bool = False) -> None:
        self._in_thought = in_thought
        self._held = ""
        self._state = _State.START

    def push(self, text: str) -> Split:
        self._held += text
        if self._state is _State.START:
            start = self._held.lstrip()
            if start.startswith(OPEN):
                self._state = _State.OPENED
                self._held = start[len(OPEN) :]
            elif not OPEN.startswith(start):
                self._state = _State.OPENED if self._in_thought else _State.ANSWERING
        if self._state is _State.OPENED:
            self._held = self._held.lstrip("\n")
            if self._held:
                self._state = _State.THINKING
        reasoning = self._thoughts() if self._state is _State.THINKING else ""
        if self._state is _State.BETWEEN:
            self._held = self._held.lstrip("\n")
            if self._held:
                self._state = _State.ANSWERING
        content = self._take(len(self._held)) if self._state is _State.ANSWERING else ""
        return Split(reasoning, content)

    def finish(self) -> Split:
        """Nothing follows: what was held back."""
        rest = self._take(len(self._held))
        is_thought = self._state is _State.THINKING or (self._in_thought and self._state is _State.START)
        return Split(rest, "") if is_thought else Split("", rest)

    def _thoughts(self) -> str:
        """What is certain to be thought. The line break before the end belongs to neither."""
        at = self._held.find(CLOSE)
        if at >= 0:
            reasoning = self._take(at).rstrip("\n")
            self._take(len(CLOSE))
            self._state = _State.BETWEEN
            return reasoning
        held = self._held
        longest = min(len(held), len(CLOSE) - 1)
        overlap = next((n for n in range(longest, 0, -1) if CLOSE.startswith(held[-n:])), 0)
        return self._take(len(held[: len(held) - overlap].rstrip("\n")))

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken


def split(text: str, in_thought: bool = False) -> Split:
    """Of a whole answer."""
    splitter = ReasoningSplitter(in_thought)
    first, last = splitter.push(text), splitter.finish()
    return Split(first.reasoning + last.reasoning, first.content + last.content)
