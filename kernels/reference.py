"""The reference of every op: plain torch, one sequence or row at a time, any floating type (float64 in tests)."""

from __future__ import annotations

import math

import torch

from .lora import Rows
from .packed_heads import pack_heads
from .quantized import Cache, PackedCache, QuantizedCache, quantize_heads, read_blocks, to_kept
from .ragged import RaggedBatch


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight.T


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = _wide(x)
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + residual
    return rms_norm(total, weight, eps), total


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    num_pairs = cos.shape[1]

    def turn(x: torch.Tensor) -> torch.Tensor:
        out = x.clone()
        for i in range(num_pairs):
            first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + num_pairs)
            c, s = cos[:, None, i], sin[:, None, i]
            out[..., first] = x[..., first] * c - x[..., second] * s
            out[..., second] = x[..., second] * c + x[..., first] * s
        return out

    return turn(q), turn(k)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def gelu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return 0.5 * gate * (1 + torch.tanh(inner)) * up


def write_kv(k: torch.Tensor, v: torch.Tensor, k_cache: Cache, v_cache: Cache, slots: torch.Tensor) -> None:
    for x, cache in ((k, k_cache), (v, v_cache)):
        for token, slot in enumerate(slots.tolist()):
            place = divmod(slot, cache.shape[1])
            if isinstance(cache, QuantizedCache):
                codes, scales = quantize_heads(x[token][None])
                cache.codes[place], cache.scales[place] = codes[0], scales[0]
            elif isinstance(cache, PackedCache):
                codes, scales, minimums = pack_heads(x[token][None])
                cache.codes[place], cache.scales[place], cache.minimums[place] = codes[0], scales[0], minimums[0]
            else:
                cache[place] = to_kept(x[token], cache.dtype)


def rotary_write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: Cache,
    v_cache: Cache,
    slots: torch.Tensor,
    interleaved: bool = False,
) -> torch.Tensor:
    q, k = rotary(q, k, cos, sin, interleaved)
    write_kv(k, v, k_cache, v_cache, slots)
    return q


def paged_attention(
    q: torch.Tensor,
    k_cache: Cache,
    v_cache: Cache,
    batch: RaggedBatch,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.empty_like(q)
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k_cache.shape[2]
    starts = batch.query_starts.tolist()
    for seq, seq_len in enumerate(batch.seq_lens.tolist()):
        begin, end = starts[seq], starts[seq + 1]
        table = batch.block_tables[seq, : -(-seq_len // batch.block_size)]
        keys = read_blocks(k_cache, table, wide).flatten(0, 1)[:seq_len].repeat_interleave(group, dim=1)
        values = read_blocks(v_cache, table, wide).flatten(0, 1)[:seq_len].repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", _wide(q[begin:end]), keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        age = batch.positions[begin:end, None] - torch.arange(seq_len, device=q.device)  # [queries, keys]
        hidden = (age < 0) | (age >= window) if window else age < 0
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, _wide(sinks)[:, None, None].expand(-1, end - begin, 1)], dim=-1)
        weights = scores.softmax(dim=-1)[..., :seq_len]
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
    return out


def lora(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rows: Rows) -> None:
    y[rows] += ((_wide(x[rows]) @ _wide(a).T) @ _wide(b).T).to(y.dtype)


def lora_multi(
    y: torch.Tensor, x: torch.Tensor, a_stack: torch.Tensor, b_stack: torch.Tensor, adapter_of_row: torch.Tensor
) -> None:
    for row, adapter in enumerate(adapter_of_row.tolist()):
        if adapter >= 0:
            lora(y, x, a_stack[adapter], b_stack[adapter], slice(row, row + 1))


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, bitmask: torch.Tensor) -> None:
    for row, words in zip(rows.tolist(), bitmask.tolist(), strict=True):
        for token in range(min(logits.shape[1], 32 * len(words))):
            if not words[token // 32] >> token % 32 & 1:
                logits[row, token] = float("-inf")


def penalize(
    logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, repetition: torch.Tensor, offset: torch.Tensor
) -> None:
    for row, token, factor, added in zip(
        rows.tolist(), tokens.tolist(), repetition.unbind(), offset.unbind(), strict=True
    ):
        value = logits[row, token]
        logits[row, token] = (value / factor if value > 0 else value * factor) + added


def greedy(logits: torch.Tensor) -> torch.Tensor:
    largest = logits.amax(-1, keepdim=True)
    return (logits == largest).int().argmax(-1).where(largest[:, 0].isfinite(), -1)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    columns = (temperature.tolist(), top_k.tolist(), top_p.tolist(), min_p.tolist(), uniform.tolist())
    picked = [_sample_row(_wide(row), *values) for row, *values in zip(logits, *columns, strict=True)]
    return torch.tensor(picked, dtype=torch.int64, device=logits.device)


def _sample_row(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> int:
    if temperature == 0 or not logits.max().isfinite():
        return int(greedy(logits[None]))
    weights = ((logits - logits.max()) / temperature).exp()
    if top_k:
        smallest_kept = weights.sort(descending=True).values[min(top_k, len(weights)) - 1]
        weights = weights.where(weights >= smallest_kept, 0)
    if top_p < 1:
        ordered = weights.sort(descending=True).values
        needed = int((ordered.cumsum(0) < top_p * weights.sum()).sum())
        weights = weights.where(weights >= ordered[min(needed, len(ordered) - 1)], 0)
    weights = weights.where(weights >= min_p, 0)  # the likeliest token weighs 1
    reached = weights.cumsum(0)
    chosen = int((reached <= uniform * reached[-1]).sum())
    return min(chosen, int(weights.nonzero()[-1]))  # rounding may leave `uniform` just past the last weight


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logprobs = _wide(logits).log_softmax(-1)
    ordered, ids = logprobs.sort(dim=-1, descending=True, stable=True)
    return logprobs.gather(1, tokens[:, None])[:, 0], ids[:, :num_top], ordered[:, :num_top]


def _wide(x: torch.Tensor) -> torch.Tensor:
    """At least float32: what accumulates is never kept in half precision."""
    return x if x.dtype == torch.float64 else x.float()
