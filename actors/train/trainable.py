"""What every shard calls: one module from a micro-batch to losses, whatever the model's family and the task.

Hidden states of tokens without loss never meet the output matrix, and of those with loss only a chunk of logits is ever
there (`ops_training.linear_cross_entropy`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...kernels import ops_training
from ..data.tokenized import Sequence
from ..models.errors import UnsupportedModel
from .attention import current_shared
from .attention import packed as packed_attention
from .batches import MicroBatch, packed, padded

# The trial: two texts of so many tokens, and how far the hidden states and logits may be from those of each text alone,
# relative to their size. In bfloat16 two orders of rounding differ by some percent.
_TRIAL = (5, 3)
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


class TrainableModel(nn.Module):
    """`model` is a causal model of transformers, or one with a score for each text. Raises UnsupportedModel where its
    logits are not a scaled product of its hidden states, or where samples that are packed see each other."""

    def __init__(self, model: Any, *, is_packed: bool) -> None:
        super().__init__()
        self.model = model
        self.is_scored: bool = hasattr(model, "score")
        self.scale = 1.0
        self.softcap = float(getattr(model.config.get_text_config(), "final_logit_softcapping", None) or 0.0)
        self._try(is_packed)

    @property
    def decoder(self) -> Any:
        return self.model.base_model if self.is_scored else self.model.get_decoder()

    @property
    def head(self) -> Any:
        return self.model.score if self.is_scored else self.model.get_output_embeddings()

    def forward(self, batch: MicroBatch, *, each: bool = False, next_tokens: bool = False) -> torch.Tensor:
        """The sum of the losses of all tokens with loss, in float32; with `each`, a sum for each sequence [num_seqs].
        Of a model with a score: the scores of each sequence's last token, [num_seqs], in float32. With `next_tokens`,
        in place of either: the likeliest token after each sequence, int64 [num_seqs]."""
        hidden = self.hidden(batch)
        if next_tokens:
            return self.logits(hidden[batch.last]).argmax(-1)
        if self.is_scored:
            scores = self.head(hidden[batch.last]).float()[:, 0]
            return scores if len(scores) else hidden.sum() * 0.0
        rows = hidden[batch.rows]
        if not len(rows):  # nothing to learn here, but every shard goes through every layer in both directions
            return (hidden.float().sum() * 0.0).expand(len(batch.ends)) if each else hidden.float().sum() * 0.0
        if not each:
            return self._loss(rows, batch.targets)
        starts = (0, *batch.ends[:-1])
        return torch.stack([self._loss(rows[a:b], batch.targets[a:b]) for a, b in zip(starts, batch.ends, strict=True)])

    def hidden(self, batch: MicroBatch) -> torch.Tensor:
        """Final hidden states [num_rows * length, hidden]."""
        with packed_attention(batch.cu_seqlens, current_shared()):
            out = self.decoder(input_ids=batch.token_ids, position_ids=batch.position_ids, use_cache=False)
        return out.last_hidden_state.flatten(0, 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [num_rows, hidden] -> float32 [num_rows, vocab]."""
        logits = self.head(hidden).float() * self.scale
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits

    def _loss(self, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        head = self.head
        if type(head) is nn.Linear and head.bias is None:
            scaled = rows * self.scale if self.scale != 1.0 else rows
            return ops_training.linear_cross_entropy(scaled, head.weight, targets, softcap=self.softcap)[0]
        return F.cross_entropy(self.logits(rows), targets, reduction="sum")

    def _try(self, is_packed: bool) -> None:
        was_training = self.training
        self.eval()
        with torch.no_grad():
            vocab = self.model.config.get_text_config().vocab_size
            texts = [np.arange(start, start + length) % vocab for start, length in zip((1, 4), _TRIAL, strict=True)]
            sequences = [Sequence(text, np.ones(len(text), np.uint8)) for text in texts]
            alone = torch.cat([self.hidden(padded([sequence])) for sequence in sequences])
            if is_packed:
                together = self.hidden(packed(sequences))
                if not self._like(together, alone):
                    raise UnsupportedModel(
                        f"samples that are packed see each other in {type(self.model).__name__}",
                        hint='set `batch.packing` to "sorted"',
                    )
            if not self.is_scored:
                self._try_head(padded(sequences[:1]))
        self.train(was_training)

    def _try_head(self, batch: MicroBatch) -> None:
        """Logits may be the product times a number, which is found out here."""
        expected = self.model(input_ids=batch.token_ids, position_ids=batch.position_ids, use_cache=False)
        expected = expected.logits.flatten(0, 1).float()
        hidden = self.hidden(batch)
        plain = self.head(hidden).float()
        raw = self.softcap * torch.atanh((expected / self.softcap).clamp(-0.999, 0.999)) if self.softcap else expected
        scale = float((raw * plain).sum() / plain.square().sum())
        self.scale = 1.0 if abs(scale - 1) < _TOLERANCE[hidden.dtype] else scale
        if not self._like(self.logits(hidden), expected):
            raise UnsupportedModel(
                f"the logits of {type(self.model).__name__} are no scaled product of its hidden states"
            )

    def _like(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        error = float((found - expected).float().norm() / expected.float().norm().clamp(min=1e-12))
        return error <= _TOLERANCE[next(self.model.parameters()).dtype]
