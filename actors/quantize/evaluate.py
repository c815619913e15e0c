"""What a model lost: perplexity before and after on text that calibration has not seen, and how often both versions
find the same next token. Two models side by side, a layer of each in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...kernels.quantize_kv import KV_ROUNDING
from ..models.config import LlamaConfig
from .block import Block, advance, in_chunks
from .source import Source, load_layer, load_vocabulary

# Tokens whose logits are there at a time.
_ROWS = 512


@dataclass(frozen=True)
class Quality:
    """`agreement`: the share of positions at which both find the same next token the likeliest."""

    perplexity_before: float
    perplexity_after: float
    agreement: float
    num_tokens: int


def block_of(config: LlamaConfig, source: Source, index: int, kv: str = "") -> Block:
    return Block(load_layer(source, index), config.rope_theta, config.rope_scaling, KV_ROUNDING[kv] if kv else None)


def compare(
    before: Source,
    after: Source,
    token_ids: torch.Tensor,
    *,
    rounds_inputs: bool,
    kv: str,
    step: Callable[[int], None] = lambda _: None,
) -> Quality:
    """token_ids int64 [num_seqs, length]. `rounds_inputs`, `kv`: how the quantized model runs. `step` hears how many
    layers are through."""
    first = last_hidden(before, token_ids, step=lambda layer: step(layer))
    num_layers = before.config.num_layers
    second = last_hidden(
        after, token_ids, rounds_inputs=rounds_inputs, kv=kv, step=lambda layer: step(num_layers + layer)
    )
    head_before, head_after = head_of(before), head_of(after)
    lost_before, count = negative_log_likelihood(first, head_before, token_ids)
    lost_after, _ = negative_log_likelihood(second, head_after, token_ids)
    same = 0
    for ours, theirs in zip(first[:, :-1], second[:, :-1], strict=True):
        for one, two in zip(ours.split(_ROWS), theirs.split(_ROWS), strict=True):
            same += int((F.linear(one, head_before).argmax(-1) == F.linear(two, head_after).argmax(-1)).sum())
    return Quality(math.exp(lost_before / count), math.exp(lost_after / count), same / count, count)


def negative_log_likelihood(hidden: torch.Tensor, head: torch.Tensor, token_ids: torch.Tensor) -> tuple[float, int]:
    """Of each token after the first of its sequence, summed, and how many these are. hidden [num_seqs, length,
    hidden], after the last norm; token_ids int64 [num_seqs, length]."""
    lost, count = 0.0, 0
    for states, ids in zip(hidden[:, :-1], token_ids[:, 1:], strict=True):
        for rows, wanted in zip(states.split(_ROWS), ids.split(_ROWS), strict=True):
            lost += float(F.cross_entropy(F.linear(rows, head), wanted, reduction="sum"))
            count += len(wanted)
    return lost, count


def head_of(source: Source) -> torch.Tensor:
    vocabulary = load_vocabulary(source)
    return vocabulary.get("lm_head.weight", vocabulary["model.embed_tokens.weight"])


def last_hidden(
    source: Source,
    token_ids: torch.Tensor,
    *,
    rounds_inputs: bool = False,
    kv: str = "",
    step: Callable[[int], None] = lambda _: None,
) -> torch.Tensor:
    """Hidden states after the last norm, [num_seqs, length, hidden]."""
    config = source.config
    hidden = load_vocabulary(source)["model.embed_tokens.weight"][token_ids]
    for index in range(config.num_layers):
        block = block_of(config, source, index, kv)
        block.rounds_inputs = rounds_inputs
        advance(block, hidden)
        step(index + 1)
    return normed(source, hidden)


def normed(source: Source, hidden: torch.Tensor) -> torch.Tensor:
    """The last norm, in place."""
    norm = load_vocabulary(source)["model.norm.weight"]
    for where, part in in_chunks(hidden):
        hidden[where] = F.rms_norm(part, norm.shape, norm, source.config.rms_norm_eps)
    return hidden
