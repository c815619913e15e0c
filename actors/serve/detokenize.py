"""From a stream of token ids to a stream of text: whole characters only, and nothing past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ..models.tokenizer import Tokenizer


class Detokenizer:
    """Decodes token by token. A character whose bytes are spread over tokens comes out with the last of them.

    `shown`: control tokens that come out as they are written; the others do not come out.
    """

    def __init__(self, tokenizer: Tokenizer, shown: frozenset[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; may be empty."""
        skip_control = token_id not in self._shown
        return self._decoder.decode(self._tokenizer.token_bytes(token_id, skip_control=skip_control))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)


class StopFinder:
    """Passes text on until one of `stops` occurs in it, wherever pieces are divided.

    Text that may yet turn out to begin a stop string is held back until that is decided. `found` is the one that
    occurred, "" before.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = ""
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is free to go, whether a stop string was found). The stop string and what follows are dropped."""
        if not self._stops:
            return text, False
        if self.found:
            return "", True
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.found = min(found)
            passed, self._held = self._held[:at], ""
            return passed, True
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        passed, self._held = self._held[:cut], self._held[cut:]
        return passed, False

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """How many characters at the end of the held text are a beginning of `stop`."""
        longest = min(len(self._held), len(stop) - 1)
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
