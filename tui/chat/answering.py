"""One answer as it comes. Its worker only collects; the page looks at most ten times a second at what there is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from ...schemas.serve import Completion, Token
from .conversation import Conversation, Turn

if TYPE_CHECKING:
    from ...schemas.serve import Generate
    from ..session import Session

STOPPED, FAILED = "stopped", "failed"


@dataclass
class Answering:
    """`turn` is the answer's place in the conversation; its text is put there when the answer ends, however it ends."""

    conversation: Conversation
    turn: Turn
    asked: Turn
    model: str
    asking: asyncio.Task[None] | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    began: float = field(default_factory=time.monotonic)
    first: float = 0.0
    num_tokens: int = 0
    ended: bool = False
    completion: Completion | None = None
    _parts: list[str] = field(default_factory=list)
    _text: str = ""

    @property
    def text(self) -> str:
        """All that came so far."""
        if self._parts:
            self._text += "".join(self._parts)
            self._parts.clear()
        return self._text

    @property
    def rate(self) -> float:
        """Tokens a second, so far."""
        seconds = time.monotonic() - self.first
        return self.num_tokens / seconds if self.first and seconds > 0 else 0.0

    async def run(self, session: Session, where: str, request: Generate) -> None:
        """Until the answer's end. Raises what the stream raises; `whole` is right after it in any case."""
        try:
            async with session.stream(where, request) as items:
                async for item in items:
                    if isinstance(item, Token) and item.index == 0:
                        self._take(item)
                self.completion = items.result
                if not self.text:  # one that streams nothing says it all at the end
                    self._parts.append(self.completion.text)
        finally:
            self.ended = True
            self.news.set()

    def _take(self, token: Token) -> None:
        if not self.first:
            self.first = time.monotonic()
        self.num_tokens += len(token.token_ids) or 1
        self._parts.append(token.text)
        self.news.set()

    def whole(self, finish: str) -> Turn:
        """The turn with the text and the figures that there are; `finish` where the engine said nothing."""
        done = self.completion
        if done is None:
            return msgspec.structs.replace(
                self.turn, text=self.text, finish=finish, completion_tokens=self.num_tokens, tokens_per_s=self.rate
            )
        return msgspec.structs.replace(
            self.turn,
            text=self.text,
            finish=done.finish_reason.value,
            prompt_tokens=done.usage.prompt_tokens,
            cached_tokens=done.usage.cached_tokens,
            completion_tokens=done.usage.completion_tokens,
            tokens_per_s=done.timings.tokens_per_s,
            ttft_ms=done.timings.ttft_ms,
        )
