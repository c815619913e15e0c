"""One answer, or one text to be looked at, on its way through the engine: its tokens, and where their keys and values
lie."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ...runtime.errors import CallboardError
from ...schemas.serve import FinishReason, Pooling, TokenLogprob
from ...schemas.serve_steps import Drawn, PromptLogprobs, Sampling, SequenceStart
from .text import Text

if TYPE_CHECKING:
    from .fairness import Account
    from .prefix_tree import Node

GREEDY = Sampling()

_ids = itertools.count(1)


class Owner(Protocol):
    """What a sequence belongs to: a request under way. `has_begun`: it was told of tokens before."""

    @property
    def has_begun(self) -> bool: ...

    def advanced(self, sequence: Sequence, now: float) -> None:
        """There is news of a sequence: tokens, its end, or its error. Called once for each step; must not wait."""
        ...


@dataclass(eq=False, slots=True)
class Sequence:
    """What is asked for, what has come of it, and where it stands.

        token_ids   p0 p1 p2 p3 p4 p5 | g0 g1          the prompt, and the tokens generated
                    <- computed ->                     num_computed: results are here, keys and values in `blocks`
                    <- scheduled ----------> | ?       num_scheduled: in steps that were sent; num_pending tokens are
                                                       drawn in them and not known here yet

    A sequence with `max_tokens` 0 generates nothing: it ends when it is pooled, or when the tokens from `first_scored`
    on have their log-probabilities. `max_cached` bounds how many tokens may be found computed already, where their
    hidden states are wanted. The planner owns all from `sequence_id` on; others read.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: frozenset[int] = frozenset()
    text: Text | None = None
    client: str = ""
    priority: int = 0
    adapter: str = ""
    adapter_generation: int = 0
    deterministic: bool = False
    num_draft: int = 0
    prompt_logprobs: int = -1
    first_scored: int = 1
    pooling: Pooling | None = None
    max_cached: int | None = None
    owner: Owner | None = None

    sequence_id: int = field(default_factory=lambda: next(_ids))
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    num_computed: int = 0
    num_scheduled: int = 0
    num_pending: int = 0
    blocks: list[int] = field(default_factory=list)
    anchors: list[int] = field(default_factory=list)
    """Blocks held only because the tree has them where this sequence has its own."""
    node: Node | None = None
    num_known: int = 0
    """Blocks that are in the prefix tree."""
    epoch: int = 0
    """Counts the times that its keys and values were given up."""
    is_running: bool = False
    is_gone: bool = False
    account: Account = field(init=False)
    leads: tuple[Node, tuple[int, ...]] | None = None
    waits_for: tuple[Sequence, Node] | None = None

    entered: float = 0.0
    """When it was taken in."""
    last_token_at: float = 0.0
    num_timed: int = 0
    """Generated tokens that were counted in the pace."""
    began: float = 0.0
    """When the first step that computes it was planned."""
    num_failures: int = 0
    num_cached_tokens: int | None = None
    num_drafted: int = 0
    num_accepted: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    scores: list[TokenLogprob | None] = field(default_factory=list)
    """By place in the prompt, where they are asked for."""
    num_unscored: int = 0
    pooled: tuple[float, ...] | None = None
    finish_reason: FinishReason | None = None
    error: CallboardError | None = None
    is_done: bool = False

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_ids)
        self.num_prompt_tokens = len(self.prompt_ids)
        if self.prompt_logprobs >= 0:
            self.scores = [None] * self.num_prompt_tokens
            self.num_unscored = self.num_prompt_tokens - self.first_scored

    @property
    def namespace(self) -> Hashable:
        """All that its keys and values depend on beside its tokens."""
        return self.adapter, self.adapter_generation, self.deterministic

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def start(self) -> SequenceStart:
        """All that a replica must know, as things are."""
        return SequenceStart(
            token_ids=tuple(self.token_ids),
            num_prompt_tokens=self.num_prompt_tokens,
            sampling=self.sampling,
            adapter=self.adapter,
            prompt_logprobs=self.prompt_logprobs if self.num_unscored else -1,
            pooling=self.pooling,
            deterministic=self.deterministic,
        )

    def reusable_tokens(self) -> int:
        """How many tokens may be found computed: at least one is left, and those whose hidden states are wanted."""
        most = len(self.token_ids) - 1
        if self.max_cached is None or (self.scores and not self.num_unscored):
            return most
        return min(most, self.max_cached)

    def take(self, drawn: Drawn) -> int:
        """Take the tokens of a step, up to the one that ends the answer. Returns how many those are."""
        for index, token_id in enumerate(drawn.tokens):
            self.token_ids.append(token_id)
            if drawn.logprobs:
                self.logprobs.append(drawn.logprobs[index])
            if token_id in self.stop_ids or (self.text is not None and self.text.push(token_id)):
                self._finish(FinishReason.STOP)
            elif self.num_generated >= self.max_tokens:
                self._finish(FinishReason.LENGTH)
            else:
                continue
            return index + 1
        if drawn.ended:
            self._finish(FinishReason.STOP)
        return len(drawn.tokens)

    def take_scores(self, scored: PromptLogprobs) -> None:
        """Take log-probabilities of tokens of the prompt. The same ones may come again after a preemption."""
        for place, entry in enumerate(scored.tokens, scored.first):
            if place >= self.num_prompt_tokens:
                break
            if self.scores[place] is None and place >= self.first_scored:
                self.num_unscored -= 1
            self.scores[place] = entry
        if not self.num_unscored and not self.max_tokens and self.pooling is None:
            self.is_done = True

    def take_pooled(self, vector: tuple[float, ...]) -> None:
        self.pooled = vector
        self.is_done = True

    def fail(self, error: CallboardError) -> None:
        self.error = error
        self.is_done = True

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self.is_done = True
        if self.text is not None:
            self.text.flush()
