"""What a replica computes: steps over a model and its paged cache. Blocking; one thread at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...kernels.upload import upload
from ...runtime.errors import CallboardError
from ...schemas.serve import Adapters, TokenLogprob
from ...schemas.serve_steps import Drawn, FailedSequence, Pooled, PromptLogprobs, Step, StepResult, StepSequence
from ..models.errors import NoSuchAdapter
from ..models.served import ServedModel
from .block_tables import BlockTables
from .drafts import Drafter
from .draw_plan import DrawnRows, DrawPlan
from .errors import GrammarFailed, NothingToDraw, UnknownSequence
from .grammar import GrammarCompiler
from .pooling import pool
from .prompt_scores import score_prompt
from .replica_sequence import ReplicaSequence
from .step_batch import Part, build_batch

_NOTHING = Drawn(())


@dataclass
class _Outcome:
    """What comes of a step, as it is found out."""

    drawn: dict[int, Drawn] = field(default_factory=dict)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    pooled: list[Pooled] = field(default_factory=list)
    failed: list[FailedSequence] = field(default_factory=list)


class Runner:
    """A model, its cache, and what is known of each sequence that was started and not forgotten.

    `compiler` makes the compiler of grammars when the first one is needed. `drafter` guesses ahead where a step allows
    it, at most `num_draft` tokens.
    """

    def __init__(
        self,
        model: ServedModel,
        num_blocks: int,
        block_size: int,
        compiler: Callable[[], GrammarCompiler],
        drafter: Drafter | None = None,
        num_draft: int = 0,
    ) -> None:
        self.model = model
        self.cache = model.new_cache(num_blocks, block_size)
        self.drafter = drafter
        self._num_draft = num_draft
        self._make_compiler = compiler
        self._compiler: GrammarCompiler | None = None
        self._tables = BlockTables()
        self._sequences: dict[int, ReplicaSequence] = {}
        self._adapters: frozenset[str] = frozenset()
        self.adapters()
        self._is_batch_invariant: bool = getattr(model, "batch_invariant", False)
        # Where a model finds its likeliest tokens without making logits of them.
        self._likeliest: Callable[[torch.Tensor], torch.Tensor] | None = getattr(model, "likeliest", None)

    @property
    def num_sequences(self) -> int:
        return len(self._sequences)

    @torch.inference_mode()
    def execute(self, step: Step) -> StepResult:
        """Compute the step's tokens, write their keys and values, and draw the next tokens that it wants.

        A sequence that cannot be computed is in `failed` and forgotten; where it was to draw, its `Drawn` is empty.
        ValueError for a step that contradicts what is known here.
        """
        began = time.perf_counter()
        for sequence_id in step.forget:
            self._forget(sequence_id)
        outcome = _Outcome()
        parts = [part for asked in step.sequences if (part := self._take(asked, outcome)) is not None]
        self._guess(parts)
        for deterministic in (False, True):
            group = [part for part in parts if self._is_apart(part) is deterministic]
            if group:
                self._compute(group, deterministic, outcome)
        drawn = tuple(outcome.drawn.get(part.sequence_id, _NOTHING) for part in step.sequences if part.draws)
        return StepResult(
            step_id=step.step_id,
            drawn=drawn,
            seconds=time.perf_counter() - began,
            prompt_logprobs=tuple(outcome.prompt_logprobs),
            pooled=tuple(outcome.pooled),
            failed=tuple(outcome.failed),
        )

    def forget_all(self) -> None:
        for sequence_id in tuple(self._sequences):
            self._forget(sequence_id)

    def load_adapter(self, name: str, path: Path) -> Adapters:
        """Load a LoRA adapter, or replace the one of that name."""
        self.model.load_adapter(name, path)
        return self.adapters()

    def unload_adapter(self, name: str) -> Adapters:
        """A sequence that goes on with it fails. Raises NoSuchAdapter."""
        self.model.unload_adapter(name)
        return self.adapters()

    def adapters(self) -> Adapters:
        infos = self.model.adapters()
        self._adapters = frozenset(info.name for info in infos)
        return Adapters(infos)

    def _take(self, asked: StepSequence, outcome: _Outcome) -> Part | None:
        """The part as it can be computed; None if its sequence has failed."""
        try:
            sequence = self._started(asked)
            if sequence.adapter and sequence.adapter not in self._adapters:
                raise NoSuchAdapter(f"there is no adapter '{sequence.adapter}'")
        except CallboardError as error:
            self._fail(asked.sequence_id, error, outcome)
            return None
        self._tables.extend(sequence.row, asked.new_blocks)
        part = Part(asked, sequence)
        self._check(part)
        return part

    def _started(self, asked: StepSequence) -> ReplicaSequence:
        if asked.start is None:
            sequence = self._sequences.get(asked.sequence_id)
            if sequence is None:
                raise UnknownSequence(f"the replica holds no sequence {asked.sequence_id}")
            return sequence
        self._forget(asked.sequence_id)
        start = asked.start
        grammar = None
        if start.sampling.grammar is not None:
            generated = start.token_ids[start.num_prompt_tokens :]
            grammar = self._grammars().start(start.sampling.grammar, start.sampling.stop_ids, generated)
        sequence = ReplicaSequence(asked.sequence_id, start, self._tables.take(), grammar)
        self._sequences[asked.sequence_id] = sequence
        return sequence

    def _check(self, part: Part) -> None:
        asked, known = part.asked, len(part.sequence.tokens)
        room = self._tables.num_blocks(part.sequence.row) * self.cache.block_size
        if asked.num_tokens < 1 or part.end > min(known, room) or (asked.draws and part.end != known):
            raise ValueError(
                f"sequence {asked.sequence_id} has {known} tokens and room for {room}: tokens {asked.num_cached} to "
                f"{part.end} cannot be computed" + (" and one drawn after them" if asked.draws else "")
            )

    def _forget(self, sequence_id: int) -> None:
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is not None:
            self._tables.give_back(sequence.row)
            if self.drafter is not None:
                self.drafter.forget(sequence_id)

    def _fail(self, sequence_id: int, error: CallboardError, outcome: _Outcome) -> None:
        self._forget(sequence_id)
        outcome.failed.append(FailedSequence(sequence_id, error.code, str(error)))

    def _grammars(self) -> GrammarCompiler:
        if self._compiler is None:
            self._compiler = self._make_compiler()
        return self._compiler

    def _is_apart(self, part: Part) -> bool:
        """Whether the part needs a forward pass whose arithmetic does not depend on the batch."""
        return part.sequence.deterministic and not self._is_batch_invariant

    def _guess(self, parts: list[Part]) -> None:
        if self.drafter is None:
            return
        wanted = [(part, limit) for part in parts if part.asked.num_draft and (limit := self._guess_limit(part)) > 0]
        if wanted:
            guesses = self.drafter.propose([(part.sequence, limit) for part, limit in wanted], self._tables)
            for (part, _), proposed in zip(wanted, guesses, strict=True):
                part.guesses = proposed

    def _guess_limit(self, part: Part) -> int:
        sequence = part.sequence
        if not part.asked.draws or sequence.has_ended:
            return 0
        room = self._tables.num_blocks(sequence.row) * self.cache.block_size
        most = min(part.asked.num_draft, self._num_draft, min(room, self.model.context_length) - part.end)
        return sequence.pace.limit(most) if most > 0 else 0

    def _compute(self, parts: list[Part], deterministic: bool, outcome: _Outcome) -> None:
        """One forward pass over these parts, and all that is wanted of it."""
        plan = DrawPlan()
        drawing: list[Part] = []
        computed: list[Part] = []
        for part in parts:
            if part.asked.draws and not part.sequence.has_ended:
                try:
                    plan_rows(part, plan)
                except GrammarFailed as error:
                    self._fail(part.asked.sequence_id, error, outcome)
                    continue
                drawing.append(part)
            elif part.asked.draws:
                outcome.drawn[part.asked.sequence_id] = Drawn((), ended=True)
            computed.append(part)
        if not computed:
            return
        hidden = self._forward(computed, deterministic)
        for part in computed:
            if part.sequence.prompt_logprobs >= 0:
                scores = score_prompt(self.model, hidden, part, deterministic)
                outcome.prompt_logprobs += () if scores is None else (scores,)
            if part.sequence.pooling is not None:
                pooled = pool(hidden, part)
                outcome.pooled += () if pooled is None else (pooled,)
        if drawing:
            rows = [row for part in drawing for row in range(part.last_row, part.last_row + len(part.guesses) + 1)]
            picked = hidden if len(rows) == len(hidden) else hidden[upload([torch.tensor(rows)], hidden.device)[0]]
            self._take_drawn(drawing, self._draw(plan, picked, deterministic), outcome)

    def _draw(self, plan: DrawPlan, hidden: torch.Tensor, deterministic: bool) -> DrawnRows:
        if plan.is_plain and self._likeliest is not None:
            return DrawnRows(self._likeliest(hidden).tolist(), {})
        return plan.draw(self.model.logits(hidden, deterministic))

    def _forward(self, parts: list[Part], deterministic: bool) -> torch.Tensor:
        token_ids, batch = build_batch(parts, self._tables, self.cache.block_size, self.model.device)
        adapters = [part.sequence.adapter for part in parts]
        return self.model.forward(token_ids, self.cache, batch, adapters if any(adapters) else None, deterministic)

    def _take_drawn(self, drawing: list[Part], drawn: DrawnRows, outcome: _Outcome) -> None:
        row = 0
        for part in drawing:
            try:
                outcome.drawn[part.asked.sequence_id] = self._accept(part, drawn, row)
            except NothingToDraw as error:
                self._fail(part.asked.sequence_id, error, outcome)
            row += len(part.guesses) + 1

    def _accept(self, part: Part, drawn: DrawnRows, row: int) -> Drawn:
        """Take what was drawn for a part from its first row on, up to the first guess that was wrong. NothingToDraw."""
        sequence, guesses = part.sequence, part.guesses
        tokens = drawn.tokens[row : row + len(guesses) + 1]
        num_right = 0
        while num_right < len(guesses) and tokens[num_right] == guesses[num_right]:
            num_right += 1
        del tokens[num_right + 1 :]
        if tokens[-1] < 0:
            raise NothingToDraw("no token has a finite logit: bias or grammar leave none, or the model is damaged")
        for token in tokens:
            sequence.append(token)
        if guesses:
            sequence.pace.record(len(guesses), num_right)
            if self.drafter is not None:
                self.drafter.settle(sequence, num_right)
        logprobs: tuple[TokenLogprob, ...] = ()
        if sequence.sampling.logprobs >= 0:
            logprobs = tuple(drawn.logprobs[row + i] for i in range(len(tokens)))
        return Drawn(tuple(tokens), logprobs, len(guesses), sequence.has_ended)


def plan_rows(part: Part, plan: DrawPlan) -> None:
    """Rows for the part's next token and for the one behind each guess; guesses that cannot be drawn are dropped.

    GrammarFailed where no token can be drawn at all.
    """
    sequence = part.sequence
    plan.add(sequence)
    if not part.guesses:
        return
    for place, guess in enumerate(part.guesses):
        if not sequence.advance(guess):
            del part.guesses[place:]
            break
        plan.add(sequence)
    sequence.retreat()
