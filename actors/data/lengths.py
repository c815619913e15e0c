"""Samples longer than a model's context: cut off, left out, or split."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from .rendering import Rendered, RenderedPair


class TooLong(StrEnum):
    TRUNCATE = "truncate"  # what does not fit is cut off at the end
    DROP = "drop"  # the sample is left out
    SPLIT = "split"  # the sample becomes several


class Counts(msgspec.Struct):
    """What became of the records of a file. `num_dropped`: too long, or nothing to learn was left of them."""

    num_records: int = 0
    num_samples: int = 0
    num_tokens: int = 0
    num_loss_tokens: int = 0
    num_bad: int = 0
    num_truncated: int = 0
    num_dropped: int = 0
    num_split: int = 0

    def add(self, other: Counts) -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def fit(rendered: Rendered | RenderedPair, max_tokens: int, too_long: TooLong, counts: Counts) -> list[Rendered]:
    """The sequences of at most `max_tokens` (0: of any length) that a sample becomes; a pair becomes two or none.

    The pieces of a split overlap by one token, which carries no loss where it begins a piece: so every token with loss
    is predicted once, from what is before it in its piece. A pair is never split but left out.
    """
    if isinstance(rendered, RenderedPair):
        return _fit_pair(rendered, max_tokens, too_long, counts)
    if not max_tokens or rendered.num_tokens <= max_tokens:
        return [rendered]
    if too_long is TooLong.SPLIT and max_tokens > 1:
        counts.num_split += 1
        pieces = [rendered.part(0, max_tokens)]
        for start in range(max_tokens - 1, rendered.num_tokens - 1, max_tokens - 1):
            pieces.append(rendered.part(start, start + max_tokens, context=1))
        pieces = [piece for piece in pieces if piece.num_loss_tokens]
    elif too_long is TooLong.TRUNCATE:
        pieces = [rendered.part(0, max_tokens)]
        pieces = [piece for piece in pieces if piece.num_loss_tokens]
        counts.num_truncated += len(pieces)
    else:
        pieces = []
    counts.num_dropped += not pieces
    return pieces


def _fit_pair(pair: RenderedPair, max_tokens: int, too_long: TooLong, counts: Counts) -> list[Rendered]:
    both = [pair.chosen, pair.rejected]
    if not max_tokens or all(one.num_tokens <= max_tokens for one in both):
        return both
    cut = [one.part(0, min(max_tokens, one.num_tokens)) for one in both]
    if too_long is TooLong.TRUNCATE and all(one.num_loss_tokens for one in cut):
        counts.num_truncated += 1
        return cut
    counts.num_dropped += 1
    return []
