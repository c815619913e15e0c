"""The text of single tokens, as APIs that report log-probabilities show them."""

from __future__ import annotations

from collections.abc import Iterable

from ...runtime.refs import Ref
from ...schemas.serve import Detokenize, TokenLogprob

# Of an engine's vocabulary so many are kept: more than answers usually draw from.
MAX_KNOWN = 200_000


class TokenWords:
    """Of one engine; what it was told once is kept."""

    def __init__(self, scheduler: Ref) -> None:
        self._scheduler = scheduler
        self._bytes: dict[int, bytes] = {}

    async def learn(self, token_ids: Iterable[int]) -> None:
        """Ask for those that are not known yet, so that `bytes_of` and `text_of` know them."""
        new = tuple({token_id for token_id in token_ids if token_id not in self._bytes})
        if not new:
            return
        if len(self._bytes) + len(new) > MAX_KNOWN:
            self._bytes.clear()
        pieces = (await self._scheduler.ask(Detokenize(new))).pieces
        self._bytes.update(zip(new, pieces, strict=True))

    async def learn_logprobs(self, logprobs: Iterable[TokenLogprob]) -> None:
        await self.learn([one for entry in logprobs for one in (entry.token_id, *(top for top, _ in entry.top))])

    def bytes_of(self, token_id: int) -> bytes:
        return self._bytes[token_id]

    def text_of(self, token_id: int) -> str:
        """Bytes that are a part of a character only are shown as escapes: texts must tell tokens apart."""
        piece = self._bytes[token_id]
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
