"""One request on its way through the engine: its tokens, its blocks, and the text it has so far."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import msgspec

from ...runtime.errors import CallboardError
from ...schemas.serve import FinishReason, Sampling
from ..models.tokenizer import Tokenizer
from .detokenize import Detokenizer, StopFinder
from .sampling import uniform

_ids = itertools.count(1)


class SamplingParams(msgspec.Struct, frozen=True):
    """How the tokens of one request are drawn; see `Generate`."""

    temperature: float
    top_k: int
    top_p: float
    seed: int


class Text:
    """The text of an answer as it grows. `push` and `flush` add to it, `take` hands out what nobody has had yet."""

    def __init__(self, tokenizer: Tokenizer, stops: SequenceOf[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_finder = StopFinder(stops)
        self._pieces: list[str] = []
        self._num_taken = 0

    def push(self, token_id: int) -> bool:
        """Add a token's text; whether a stop string ended the answer."""
        text, stopped = self._stop_finder.push(self._detokenizer.push(token_id))
        self._add(text)
        return stopped

    def flush(self) -> None:
        """Nothing follows: let go what was held back."""
        text, stopped = self._stop_finder.push(self._detokenizer.flush())
        self._add(text if stopped else text + self._stop_finder.flush())

    def take(self) -> str:
        new = "".join(self._pieces[self._num_taken :])
        self._num_taken = len(self._pieces)
        return new

    def whole(self) -> str:
        return "".join(self._pieces)

    def _add(self, text: str) -> None:
        if text:
            self._pieces.append(text)


@dataclass(eq=False)
class Sequence:
    """Prompt and generated tokens of one request, and where their keys and values lie.

        token_ids   p0 p1 p2 p3 p4 | g0 g1 g2
                    <- computed -> <- not yet ->      num_computed: keys and values are in `blocks`

    A running sequence has at least one token that is not computed. The planner owns all of this but `text`, which is
    read as it grows.
    """

    prompt_ids: SequenceOf[int]
    max_tokens: int
    sampling: SamplingParams
    stop_ids: frozenset[int]
    text: Text
    sequence_id: int = field(default_factory=lambda: next(_ids))
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_failures: int = 0
    finish_reason: FinishReason | None = None
    error: CallboardError | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - len(self.prompt_ids)

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def is_done(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def next_sampling(self) -> Sampling:
        """How the next token is drawn; the same after a preemption or a replay."""
        params = self.sampling
        number = uniform(params.seed, self.num_generated) if params.temperature > 0 else 0.0
        return Sampling(params.temperature, params.top_k, params.top_p, number)

    def append(self, token_id: int) -> None:
        """Take a generated token; sets `finish_reason` if it ends the answer."""
        self.token_ids.append(token_id)
        if token_id in self.stop_ids or self.text.push(token_id):
            self.finish_reason = FinishReason.STOP
        elif self.num_generated >= self.max_tokens:
            self.finish_reason = FinishReason.LENGTH
        if self.finish_reason is not None:
            self.text.flush()

    def fail(self, error: CallboardError) -> None:
        self.error = error
