"""The text of an answer as it grows."""

from __future__ import annotations

from collections.abc import Sequence

from ..models.tokenizer import Tokenizer
from .detokenize import Detokenizer, StopFinder


class Text:
    """`push` and `flush` add to it, `take` hands out what nobody has had yet."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_finder = StopFinder(stops) if stops else None
        self._pieces: list[str] = []
        self._num_taken = 0

    def push(self, token_id: int) -> bool:
        """Add a token's text; whether a stop string ended the answer."""
        text = self._detokenizer.push(token_id)
        stopped = False
        if self._stop_finder is not None:
            text, stopped = self._stop_finder.push(text)
        if text:
            self._pieces.append(text)
        return stopped

    def flush(self) -> None:
        """Nothing follows: let go what was held back."""
        text = self._detokenizer.flush()
        if self._stop_finder is not None:
            text, stopped = self._stop_finder.push(text)
            text = text if stopped else text + self._stop_finder.flush()
        if text:
            self._pieces.append(text)

    def take(self) -> str:
        """What came since the last time."""
        start, self._num_taken = self._num_taken, len(self._pieces)
        return self._pieces[start] if self._num_taken - start == 1 else "".join(self._pieces[start:])

    def whole(self) -> str:
        return "".join(self._pieces)
