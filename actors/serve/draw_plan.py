"""The rows of logits that tokens are drawn from, and how each is drawn: collected row by row, drawn all at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ...kernels import ops
from ...kernels.upload import upload
from ...schemas.serve import TokenLogprob
from .logprobs import token_logprobs
from .replica_sequence import ReplicaSequence
from .sampling import uniform


class DrawnRows(NamedTuple):
    """A token for each row (-1 where none has a finite logit), and the log-probabilities of rows that want them."""

    tokens: list[int]
    logprobs: dict[int, TokenLogprob]


class _Changes(NamedTuple):
    """What becomes of some logits of one row: see `ops.penalize`. No token is named twice."""

    row: int
    tokens: np.ndarray
    repetition: float
    offset: np.ndarray | float


class DrawPlan:
    """`add` takes down all that the draw of a sequence's next token depends on, past the guesses that the sequence has
    advanced over; `draw` applies that to the logits: grammar, penalties, bias, `min_tokens`, and then `ops.sample`.

    A row is drawn by its own numbers only, whatever the other rows are. `is_plain`: each row takes the likeliest token
    of its logits as they are, and nothing is reported. `reports`: whether log-probabilities are wanted where the
    sequence asks for them.
    """

    def __init__(self, *, reports: bool = True) -> None:
        self.num_rows = 0
        self._reports = reports
        self.is_plain = True
        self._parameters: list[tuple[float, int, float, float, float]] = []
        self._mask_rows: list[int] = []
        self._masks: list[np.ndarray] = []
        # Penalties and bias may name the same token, and so may bias and stops: one pass each, in this order.
        self._penalties: list[_Changes] = []
        self._biases: list[_Changes] = []
        self._stops: list[_Changes] = []
        self._wanted: dict[int, int] = {}

    def add(self, sequence: ReplicaSequence) -> None:
        """The row for the sequence's next token. GrammarFailed where it can have none: then there is no row."""
        if sequence.is_plain:
            self._parameters.append(_LIKELIEST)
        else:
            self._add_special(self.num_rows, sequence)
        self.num_rows += 1

    def draw(self, logits: torch.Tensor) -> DrawnRows:
        """A token for each row. logits [num_rows, vocab] may be overwritten."""
        if self.is_plain:
            return DrawnRows(ops.greedy(logits).tolist(), {})
        # A copy, since what follows changes the logits, and what is reported is the model's own distribution.
        raw = logits[upload([torch.tensor(list(self._wanted))], logits.device)[0]] if self._wanted else None
        self._adjust(logits)
        columns = np.array(self._parameters, np.float64).T
        temperature, top_k, top_p, min_p, number = upload([torch.from_numpy(c) for c in columns], logits.device)
        tokens = ops.sample(logits, temperature, top_k.long(), top_p, min_p, number).tolist()
        return DrawnRows(tokens, {} if raw is None else self._report(raw, tokens))

    def _add_special(self, row: int, sequence: ReplicaSequence) -> None:
        sampling, index = sequence.sampling, sequence.next_index
        if sequence.grammar is not None:
            self._masks.append(sequence.grammar.mask().copy())
            self._mask_rows.append(row)
        number = uniform(sampling.seed, index) if sampling.temperature > 0 else 0.0
        self._parameters.append((sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, number))
        if sequence.counts is not None:
            generated = sequence.counts.generated
            offset = -(sampling.frequency_penalty * generated + sampling.presence_penalty * (generated > 0))
            self._penalties.append(_Changes(row, sequence.counts.ids.copy(), sampling.repetition_penalty, offset))
        if len(sequence.bias_ids):
            self._biases.append(_Changes(row, sequence.bias_ids, 1.0, sequence.bias_values))
        if index < sampling.min_tokens and len(sequence.stop_array):
            self._stops.append(_Changes(row, sequence.stop_array, 1.0, float("-inf")))
        if self._reports and sampling.logprobs >= 0:
            self._wanted[row] = sampling.logprobs
        self.is_plain = False

    def _adjust(self, logits: torch.Tensor) -> None:
        if self._masks:
            (bitmask,) = upload([torch.from_numpy(np.stack(self._masks))], logits.device)
            (rows,) = upload([torch.tensor(self._mask_rows)], logits.device)
            ops.mask_tokens(logits, rows, bitmask)
        for changes in (self._penalties, self._biases, self._stops):
            if changes:
                _change(logits, changes)

    def _report(self, raw: torch.Tensor, tokens: list[int]) -> dict[int, TokenLogprob]:
        drawn = torch.tensor([max(0, tokens[row]) for row in self._wanted], device=raw.device)
        return dict(zip(self._wanted, token_logprobs(raw, drawn, [*self._wanted.values()]), strict=True))


_LIKELIEST = (0.0, 0, 1.0, 0.0, 0.0)


def _change(logits: torch.Tensor, changes: list[_Changes]) -> None:
    lengths = [len(change.tokens) for change in changes]
    rows = np.repeat([change.row for change in changes], lengths)
    tokens = np.concatenate([change.tokens for change in changes])
    repetition = np.repeat([change.repetition for change in changes], lengths)
    offset = np.concatenate([np.broadcast_to(change.offset, len(change.tokens)) for change in changes])
    places = upload([torch.from_numpy(rows), torch.from_numpy(tokens)], logits.device)
    factors = upload([torch.from_numpy(values.astype(np.float64)) for values in (repetition, offset)], logits.device)
    ops.penalize(logits, *places, *(values.to(logits.dtype) for values in factors))
