"""The text of an answer as it grows."""

from __future__ import annotations

from collections.abc import Sequence

from ...schemas.serve import ModelToolCall
from ..models.tokenizer import Tokenizer
from ..models.tool_parser import ToolCallParser
from .detokenize import Detokenizer, StopFinder


class Text:
    """`push` and `flush` add to it, `take` hands out what nobody has had yet.

    `parser` takes the tool calls out of it; `shown` are control tokens that count as text for that.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        parser: ToolCallParser | None = None,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, shown)
        self._parser = parser
        self._stop_finder = StopFinder(stops) if stops else None
        self._pieces: list[str] = []
        self._num_taken = 0

    def push(self, token_id: int) -> bool:
        """Add a token's text; whether a stop string ended the answer."""
        text = self._detokenizer.push(token_id)
        stopped = False
        if self._stop_finder is not None:
            text, stopped = self._stop_finder.push(text)
        if self._parser is not None:
            text = self._parser.push(text)
        if text:
            self._pieces.append(text)
        return stopped

    def flush(self) -> None:
        """Nothing follows: let go what was held back."""
        text = self._detokenizer.flush()
        if self._stop_finder is not None:
            text, stopped = self._stop_finder.push(text)
            text = text if stopped else text + self._stop_finder.flush()
        if self._parser is not None:
            text = self._parser.push(text) + self._parser.finish()
        if text:
            self._pieces.append(text)

    def take(self) -> str:
        """What came since the last time."""
        start, self._num_taken = self._num_taken, len(self._pieces)
        return self._pieces[start] if self._num_taken - start == 1 else "".join(self._pieces[start:])

    @property
    def stop(self) -> str:
        """The stop string that ended it, "" for none."""
        return "" if self._stop_finder is None else self._stop_finder.found

    @property
    def tool_calls(self) -> tuple[ModelToolCall, ...]:
        return () if self._parser is None else tuple(self._parser.calls)

    def whole(self) -> str:
        return "".join(self._pieces)
