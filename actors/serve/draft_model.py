"""Guesses of a smaller model that reads along, with a cache of its own under the same block numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from ...kernels.ragged import RaggedBatch
from ...kernels.upload import upload
from ..models.served import ServedModel
from .block_tables import BlockTables
from .draw_plan import DrawPlan
from .errors import GrammarFailed
from .replica_sequence import ReplicaSequence

# Of a long prompt that the draft model has not read yet, so many tokens are read at once.
TOKENS_AT_ONCE = 256


@dataclass(slots=True, eq=False)
class _Guessing:
    """A sequence being guessed, and its guesses so far; `num_ahead` of these the draft model has read itself."""

    sequence: ReplicaSequence
    limit: int
    guesses: list[int] = field(default_factory=list)
    num_ahead: int = 0


class ModelDrafter:
    """`vocab_size` is that of the model whose tokens are guessed; both must have the same tokenizer.

    A guess is drawn as the token itself will be, with the same random number, penalties and grammar: where the two
    models agree on the distribution they agree on the token, whatever the temperature.

    Blocks may be shared by sequences with a common beginning, and then hold the same tokens: each writes the same keys
    and values there, whoever comes first.
    """

    def __init__(self, model: ServedModel, num_blocks: int, block_size: int, vocab_size: int) -> None:
        self._model = model
        self._cache = model.new_cache(num_blocks, block_size)
        self._vocab_size = vocab_size
        self._num_computed: dict[int, int] = {}  # tokens of each sequence whose keys and values are in the cache
        self._last: dict[int, _Guessing] = {}

    @property
    def weight_bytes(self) -> int:
        return self._model.weight_bytes

    @property
    def cache_bytes(self) -> int:
        return self._cache.num_bytes

    def propose(self, wanted: Sequence[tuple[ReplicaSequence, int]], tables: BlockTables) -> list[list[int]]:
        everyone = [_Guessing(sequence, limit) for sequence, limit in wanted]
        # What lies beyond the draft model's own context it cannot read.
        live = [one for one in everyone if len(one.sequence.tokens) + one.limit <= self._model.context_length]
        if live:
            hidden = self._catch_up([one.sequence for one in live], tables)
            try:
                while live := self._draw(live, hidden):
                    hidden = self._read_guesses(live, tables)
            finally:
                for one in everyone:
                    one.sequence.retreat()
        for one in everyone:
            self._last[one.sequence.sequence_id] = one
        return [one.guesses for one in everyone]

    def settle(self, sequence: ReplicaSequence, num_right: int) -> None:
        guessing = self._last.pop(sequence.sequence_id)
        self._num_computed[sequence.sequence_id] += min(num_right, guessing.num_ahead)

    def forget(self, sequence_id: int) -> None:
        self._num_computed.pop(sequence_id, None)
        self._last.pop(sequence_id, None)

    def _catch_up(self, sequences: Sequence[ReplicaSequence], tables: BlockTables) -> torch.Tensor:
        """Read what has come since; the hidden states [num_sequences, hidden] of each one's last token."""
        last: dict[int, torch.Tensor] = {}
        behind = list(sequences)
        while behind:
            spans = []
            for sequence in behind:
                start = self._num_computed.get(sequence.sequence_id, 0)
                spans.append((start, min(len(sequence.tokens), start + TOKENS_AT_ONCE)))
            new = [sequence.tokens[start:end] for sequence, (start, end) in zip(behind, spans, strict=True)]
            hidden = self._read(behind, new, [end for _, end in spans], tables)
            for sequence, (_, end), row in zip(behind, spans, hidden, strict=True):
                self._num_computed[sequence.sequence_id] = end
                last[sequence.sequence_id] = row
            behind = [s for s in behind if self._num_computed[s.sequence_id] < len(s.tokens)]
        return torch.stack([last[sequence.sequence_id] for sequence in sequences])

    def _draw(self, live: list[_Guessing], hidden: torch.Tensor) -> list[_Guessing]:
        """One more guess for each, from hidden [len(live), hidden]. Returns those that are to get another."""
        plan = DrawPlan(reports=False)
        drawing: list[_Guessing] = []
        rows: list[int] = []
        for row, one in enumerate(live):
            try:
                plan.add(one.sequence)
            except GrammarFailed:
                continue
            drawing.append(one)
            rows.append(row)
        if not drawing:
            return []
        going: list[_Guessing] = []
        for one, token in zip(drawing, plan.draw(self._logits(hidden[rows])).tokens, strict=True):
            if token >= 0 and one.sequence.advance(token):
                one.guesses.append(token)
                if len(one.guesses) < one.limit:
                    going.append(one)
        return going

    def _read_guesses(self, live: list[_Guessing], tables: BlockTables) -> torch.Tensor:
        for one in live:
            one.num_ahead += 1
        return self._read(
            [one.sequence for one in live],
            [one.guesses[-1:] for one in live],
            [len(one.sequence.tokens) + len(one.guesses) for one in live],
            tables,
        )

    def _read(
        self,
        sequences: Sequence[ReplicaSequence],
        new: Sequence[Sequence[int]],
        ends: Sequence[int],
        tables: BlockTables,
    ) -> torch.Tensor:
        """Compute these tokens, which end at these places; hidden states [num_sequences, hidden] of the last ones."""
        width = -(-max(ends) // self._cache.block_size)
        batch = RaggedBatch.from_arrays(
            np.array(ends),
            np.array([len(tokens) for tokens in new]),
            tables.cut([sequence.row for sequence in sequences], width),
            self._cache.block_size,
            self._model.device,
        )
        given = torch.tensor([token for tokens in new for token in tokens])
        (token_ids,) = upload([given], self._model.device)
        return self._model.forward(token_ids, self._cache, batch)[batch.query_starts[1:] - 1]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits over the other model's vocabulary: one may have been padded further than the other."""
        logits = self._model.logits(hidden)[:, : self._vocab_size]
        missing = self._vocab_size - logits.shape[1]
        return F.pad(logits, (0, missing), value=float("-inf")) if missing else logits
