"""Samples as tokens with a loss mask, as a model is trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..models.chat_template import ChatTemplate
from ..models.tokenizer import Tokenizer
from .errors import DataError
from .fitting import Fitting
from .samples import Conversation, Document, Role, Sample, Turn
from .spans import Ending, Span, find_spans
from .templates import choose_template


@dataclass(frozen=True, eq=False)
class Rendered:
    """One sequence of tokens.

    `token_ids` int32 [num_tokens]; `loss_mask` bool [num_tokens], true where a token is to be learnt from those before
    it; `offsets` int32 [num_tokens, 2], each token's characters in `text`; `loss_spans`, the characters of `text` that
    carry loss, in order. A token that has characters in and out of a span carries loss.
    """

    text: str
    token_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    offsets: NDArray[np.int32]
    loss_spans: tuple[tuple[int, int], ...]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_loss_tokens(self) -> int:
        return int(self.loss_mask.sum())

    @property
    def loss_text(self) -> list[str]:
        return [self.text[start:end] for start, end in self.loss_spans]

    def part(self, start: int, end: int, *, context: int = 0) -> Rendered:
        """Tokens `start` to `end`, the first `context` of them without loss, and their text."""
        offsets = self.offsets[start:end]
        first, last = (int(offsets[0, 0]), int(offsets[-1, 1])) if len(offsets) else (0, 0)
        learnt = int(offsets[context, 0]) if context < len(offsets) else last
        spans = [(max(a, learnt) - first, min(b, last) - first) for a, b in self.loss_spans]
        mask = self.loss_mask[start:end].copy()
        mask[:context] = False
        return Rendered(
            self.text[first:last],
            self.token_ids[start:end],
            mask,
            offsets - first,
            tuple((a, b) for a, b in spans if a < b),
        )


class RenderedPair(msgspec.Struct, frozen=True):
    chosen: Rendered
    rejected: Rendered


class Renderer:
    """Renders samples for one model. `template`: "" the model's own, or a built-in one's name."""

    def __init__(self, tokenizer: Tokenizer, template: str = "") -> None:
        self.tokenizer = tokenizer
        self._template_name = template

    @cached_property
    def template(self) -> ChatTemplate:
        return choose_template(self.tokenizer, self._template_name)

    @cached_property
    def _fitting(self) -> Fitting:
        return Fitting.of(self.template)

    def render(self, sample: Sample) -> Rendered | RenderedPair:
        """Raises NoSpans, RequestInvalid, DataError: the sample cannot be used with this model's template."""
        if isinstance(sample, Document):
            return self._document(sample)
        if isinstance(sample, Conversation):
            return self._conversation(sample.turns, sample.tools)
        return RenderedPair(
            self._conversation((*sample.prompt, *sample.chosen), ()),
            self._conversation((*sample.prompt, *sample.rejected), ()),
        )

    def _conversation(self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]]) -> Rendered:
        messages, tools_written = self._fitting.messages(turns, tools)
        spoken = iter([turn.loss for turn in turns if turn.role is Role.ASSISTANT])
        loss = [message["role"] == "assistant" and next(spoken) for message in messages]
        text, spans = find_spans(self.template, messages, tools_written, loss)
        ids, offsets = self.tokenizer.encode_with_offsets(text)
        return self._masked(text, ids, np.array(offsets, np.int32).reshape(-1, 2), spans)

    def _masked(self, text: str, ids: list[int], offsets: NDArray[np.int32], spans: Sequence[Span]) -> Rendered:
        token_ids = np.array(ids, np.int32)
        mask = np.zeros(len(ids), np.bool_)
        exact: list[tuple[int, int]] = []
        for span in spans:
            start, end = span.start, self._end(span, text, token_ids, offsets)
            # A token without characters (a space that the tokenizer puts before a text) lies where it begins.
            inside = (offsets[:, 0] < end) & (np.maximum(offsets[:, 1], offsets[:, 0] + 1) > start)
            mask |= inside
            if exact and exact[-1][1] == start:
                start = exact.pop()[0]
            exact.append((start, end))
        return Rendered(text, token_ids, mask, offsets, tuple(exact))

    def _end(self, span: Span, text: str, token_ids: NDArray[np.int32], offsets: NDArray[np.int32]) -> int:
        """Where the span ends for the model: behind the token that ends its turn, and not behind what the template
        writes after that."""
        stops = self.tokenizer.stop_ids
        if span.ending is Ending.TURN:
            ends = stops | self.tokenizer.control_ids
            last = int(np.searchsorted(offsets[:, 0], span.end)) - 1
            while last >= 0 and offsets[last, 0] >= span.start:
                if int(token_ids[last]) in ends:
                    return int(offsets[last, 1])
                if text[offsets[last, 0] : offsets[last, 1]].strip():
                    break
                last -= 1
            return span.end
        behind = int(np.searchsorted(offsets[:, 0], span.end))
        if behind < len(token_ids) and offsets[behind, 0] == span.end and int(token_ids[behind]) in stops:
            return int(offsets[behind, 1])
        return span.end

    def _document(self, document: Document) -> Rendered:
        """The text between the tokens that the model knows a text's beginning and end by."""
        tokenizer = self.tokenizer
        ids, places = tokenizer.encode_with_offsets(document.text)
        before = list(tokenizer.prefix) if document.begins else []
        if document.ends and tokenizer.eos_id is None:
            raise DataError("the tokenizer has no token that ends a text")
        after = [tokenizer.eos_id] if document.ends and tokenizer.eos_id is not None else []
        text, offsets = "", []
        for token_id in before:
            offsets.append((len(text), len(text) + len(self._written(token_id))))
            text += self._written(token_id)
        start = len(text)
        offsets += [(start + a, start + b) for a, b in places]
        text += document.text
        for token_id in after:
            offsets.append((len(text), len(text) + len(self._written(token_id))))
            text += self._written(token_id)
        mask = np.ones(len(offsets), np.bool_)
        mask[: len(before)] = False
        return Rendered(
            text,
            np.array([*before, *ids, *after], np.int32),
            mask,
            np.array(offsets, np.int32).reshape(-1, 2),
            ((start, len(text)),) if start < len(text) else (),
        )

    def _written(self, token_id: int) -> str:
        return self.tokenizer.token_bytes(token_id, skip_control=False).decode("utf-8", "replace")
