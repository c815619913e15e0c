"""The path in torch, for any device: the reference's arithmetic in as few and as large calls as the shapes allow.

On a CPU tokens are drawn by the native kernels where these are.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import native_sampling, plain_sampling
from .lora import Rows
from .packed_heads import turn_back
from .quantized import Cache, is_turned, read_turned, write_pair
from .ragged import RaggedBatch


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    residual.add_(x)
    return F.rms_norm(residual, weight.shape, weight, eps), residual


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = cos[:, None], sin[:, None]
    return _turn(q, cos, sin, interleaved), _turn(k, cos, sin, interleaved)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    rotary_dim = 2 * cos.shape[-1]
    turning = x[..., :rotary_dim].to(cos.dtype)
    first, second = (turning[..., ::2], turning[..., 1::2]) if interleaved else turning.chunk(2, dim=-1)
    halves = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    turned = torch.stack(halves, -1).flatten(-2) if interleaved else torch.cat(halves, -1)
    turned = turned.to(x.dtype)
    return turned if rotary_dim == x.shape[-1] else torch.cat([turned, x[..., rotary_dim:]], -1)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)


def write_kv(k: torch.Tensor, v: torch.Tensor, k_cache: Cache, v_cache: Cache, slots: torch.Tensor) -> None:
    write_pair(k, v, k_cache, v_cache, slots)


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


@dataclass(frozen=True)
class _Decode:
    """Sequences with one new token each and lengths within a factor of two, padded to the longest."""

    rows: torch.Tensor | slice  # where their queries lie among the step's tokens
    num_seqs: int
    blocks: torch.Tensor  # [num_seqs * num_blocks]
    mask: torch.Tensor  # [num_seqs, 1, 1, num_blocks * block_size], added to the scores


@dataclass(frozen=True)
class _Extend:
    """One sequence with several new tokens: a prompt, or a chunk of one after its earlier part."""

    rows: slice
    seq_len: int
    blocks: torch.Tensor  # [num_blocks]
    mask: torch.Tensor | None  # [num_queries, seq_len]; None where the queries are the whole sequence


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
    plain = not softcap and sinks is None
    name = f"plain.{q.dtype}.{window}.{plain}"
    plan = batch.plans.get(name)
    if plan is None:
        plan = batch.plans[name] = _plan(batch, q.dtype, window, allow_causal=plain)
    num_kv_heads, head_dim = k_cache.shape[2:]
    group = q.shape[1] // num_kv_heads
    if is_turned(k_cache):
        q = turn_back(q)
    out = torch.empty_like(q)
    for part in plan:
        keys, values = (read_turned(cache, part.blocks, q.dtype) for cache in (k_cache, v_cache))
        if isinstance(part, _Decode):
            # Queries that share a key/value head stand as several queries of that one head: no copy of the keys.
            shape = (part.num_seqs, -1, num_kv_heads, head_dim)
            queries = q[part.rows].view(part.num_seqs, num_kv_heads, group, head_dim)
            keys, values = keys.view(shape).transpose(1, 2), values.view(shape).transpose(1, 2)
            if plain:
                attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=part.mask, scale=scale)
            else:
                by_query = None if sinks is None else sinks.view(num_kv_heads, group)
                attended = _attend(queries, keys, values, part.mask, scale, softcap, by_query)
            out[part.rows] = attended.reshape(part.num_seqs, -1, head_dim)
            continue
        queries = q[part.rows].transpose(0, 1)[None]
        keys = keys.flatten(0, 1)[: part.seq_len].transpose(0, 1)[None]
        values = values.flatten(0, 1)[: part.seq_len].transpose(0, 1)[None]
        if plain:
            attended = F.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=part.mask,
                is_causal=part.mask is None,
                scale=scale,
                enable_gqa=group > 1,
            )
        else:
            assert part.mask is not None
            keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
            by_head = None if sinks is None else sinks[:, None]
            attended = _attend(queries, keys, values, part.mask, scale, softcap, by_head)
        out[part.rows] = attended[0].transpose(0, 1)
    return turn_back(out) if is_turned(v_cache) else out


def _attend(
    q: torch.Tensor,  # [num_seqs, num_heads, num_queries, head_dim]
    k: torch.Tensor,  # [num_seqs, num_heads, num_keys, head_dim]
    v: torch.Tensor,
    mask: torch.Tensor,  # added to the scores; broadcasts to them
    scale: float,
    softcap: float,
    sinks: torch.Tensor | None,  # [num_heads, num_queries or 1]
) -> torch.Tensor:
    """What PyTorch's own attention does not offer: capped scores and sinks."""
    scores = (q @ k.transpose(-1, -2)).float() if q.dtype != torch.float64 else q @ k.transpose(-1, -2)
    scores = scores.mul_(scale)
    if softcap:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    scores = scores.add_(mask)
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, :, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1)[..., : k.shape[2]]
    return weights.to(v.dtype) @ v


def _plan(batch: RaggedBatch, dtype: torch.dtype, window: int, *, allow_causal: bool) -> list[_Decode | _Extend]:
    """`allow_causal`: a prompt that is a whole sequence, and limited by nothing but its order, goes without a mask."""
    starts, seq_lens = batch.lengths()
    parts: list[_Decode | _Extend] = []
    decodes: dict[int, list[int]] = defaultdict(list)  # bit length of the number of blocks: sequences
    for seq, seq_len in enumerate(seq_lens):
        begin, end = starts[seq], starts[seq + 1]
        num_blocks = -(-seq_len // batch.block_size)
        if end - begin == 1:
            decodes[num_blocks.bit_length()].append(seq)
        elif end > begin:
            mask = None
            if not allow_causal or end - begin < seq_len or 0 < window < seq_len:
                mask = _mask(batch.positions[begin:end, None], seq_len, dtype, window)
            parts.append(_Extend(slice(begin, end), seq_len, batch.block_tables[seq, :num_blocks], mask))
    for seqs in decodes.values():
        num_blocks = max(-(-seq_lens[seq] // batch.block_size) for seq in seqs)
        index = torch.tensor(seqs, device=batch.seq_lens.device)
        rows = batch.query_starts[index]
        mask = _mask(batch.seq_lens[index, None] - 1, num_blocks * batch.block_size, dtype, window)
        first = starts[seqs[0]]
        contiguous = seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        parts.append(
            _Decode(
                rows=slice(first, first + len(seqs)) if contiguous else rows,
                num_seqs=len(seqs),
                blocks=batch.block_tables[index, :num_blocks].flatten(),
                mask=mask[:, None, None],
            )
        )
    return parts


def _mask(positions: torch.Tensor, num_keys: int, dtype: torch.dtype, window: int) -> torch.Tensor:
    """positions [num_queries, 1] -> [num_queries, num_keys]: 0 where a query sees a key, else minus infinity."""
    age = positions - torch.arange(num_keys, device=positions.device)
    hidden = (age < 0) | (age >= window) if window else age < 0
    return torch.zeros(age.shape, dtype=dtype, device=age.device).masked_fill_(hidden, float("-inf"))


def lora(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rows: Rows) -> None:
    low = F.linear(x[rows], a)
    if isinstance(rows, slice):
        y[rows].addmm_(low, b.T)
    else:
        y.index_add_(0, rows, F.linear(low, b))


def lora_multi(
    y: torch.Tensor, x: torch.Tensor, a_stack: torch.Tensor, b_stack: torch.Tensor, adapter_of_row: torch.Tensor
) -> None:
    for adapter in adapter_of_row.unique().tolist():
        if adapter >= 0:
            rows = (adapter_of_row == adapter).nonzero()[:, 0]
            lora(y, x, a_stack[adapter], b_stack[adapter], rows)


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, bitmask: torch.Tensor) -> None:
    covered = min(logits.shape[1], 32 * bitmask.shape[1])
    if logits.device.type != "cpu":
        bits = torch.arange(32, dtype=torch.int32, device=bitmask.device)
        allowed = ((bitmask[..., None] >> bits) & 1).bool().flatten(1)[:, :covered]
        logits[rows, :covered] = logits[rows, :covered].masked_fill(~allowed, float("-inf"))
        return
    import numpy as np  # not where there is only a card: see tests/gpu

    # numpy unpacks bits some ten times faster than torch can shift them out.
    words = np.ascontiguousarray(bitmask.numpy(), dtype="<i4").view(np.uint8)
    forbidden = torch.from_numpy(np.unpackbits(~words, axis=1, count=covered, bitorder="little")).view(torch.bool)
    for row, mask in zip(rows.tolist(), forbidden, strict=True):
        logits[row, :covered].masked_fill_(mask, float("-inf"))


def penalize(
    logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, repetition: torch.Tensor, offset: torch.Tensor
) -> None:
    values = logits[rows, tokens]
    logits[rows, tokens] = torch.where(values > 0, values / repetition, values * repetition).add_(offset)


def greedy(logits: torch.Tensor) -> torch.Tensor:
    return native_sampling.greedy(logits) if native_sampling.takes(logits) else plain_sampling.greedy(logits)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    path = native_sampling if native_sampling.takes(logits) else plain_sampling
    return path.sample(logits, temperature, top_k, top_p, min_p, uniform)


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if num_top <= native_sampling.MAX_TOP and native_sampling.takes(logits):
        return native_sampling.token_logprobs(logits, tokens, num_top)
    rows = logits if logits.dtype == torch.float64 else logits.float()
    total = rows.logsumexp(-1, keepdim=True)
    own = rows.gather(1, tokens[:, None]) - total
    if num_top == 1:
        ids = plain_sampling.greedy(rows).clamp(min=0)[:, None]  # the first of equals, which topk does not promise
        top = rows.gather(1, ids)
    else:
        ids = rows.topk(min(num_top, rows.shape[1])).indices.sort(-1).values
        top, order = rows.gather(1, ids).sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(1, order)
    return own[:, 0], ids, top - total
