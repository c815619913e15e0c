"""The one door to numerics: each op has one signature here and picks its path by device.

Paths are modules of functions with these names: `reference` (plain torch, any floating type, written to be read and
to be held against), `plain` (torch, any device; on a CPU with the native kernels' sampling), `gpu.path` (Triton).
Shapes are written where tensors enter; caches and batches are those of `ragged`.
"""

from __future__ import annotations

from typing import Protocol

import torch

from . import native_sampling, ops_linear, plain
from .gpu import launch
from .linears import Weight
from .lora import Rows
from .quantized import Cache
from .ragged import RaggedBatch

_TRITON_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class Path(Protocol):
    """What a path implements."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor: ...
    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor: ...
    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]: ...
    def rotary(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
    ) -> tuple[torch.Tensor, torch.Tensor]: ...
    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor: ...
    def gelu_mul(self, gate_up: torch.Tensor) -> torch.Tensor: ...
    def write_kv(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        k_cache: Cache,
        v_cache: Cache,
        slots: torch.Tensor,
    ) -> None: ...
    def rotary_write(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        k_cache: Cache,
        v_cache: Cache,
        slots: torch.Tensor,
        interleaved: bool,
    ) -> torch.Tensor: ...
    def paged_attention(
        self,
        q: torch.Tensor,
        k_cache: Cache,
        v_cache: Cache,
        batch: RaggedBatch,
        scale: float,
        window: int,
        softcap: float,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor: ...
    def lora(self, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rows: Rows) -> None: ...
    def lora_multi(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        a_stack: torch.Tensor,
        b_stack: torch.Tensor,
        adapter_of_row: torch.Tensor,
    ) -> None: ...
    def mask_tokens(self, logits: torch.Tensor, rows: torch.Tensor, bitmask: torch.Tensor) -> None: ...
    def penalize(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        tokens: torch.Tensor,
        repetition: torch.Tensor,
        offset: torch.Tensor,
    ) -> None: ...
    def greedy(self, logits: torch.Tensor) -> torch.Tensor: ...
    def sample(
        self,
        logits: torch.Tensor,
        temperature: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
        min_p: torch.Tensor,
        uniform: torch.Tensor,
    ) -> torch.Tensor: ...
    def token_logprobs(
        self, logits: torch.Tensor, tokens: torch.Tensor, num_top: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...


def prepare() -> None:
    """Make now what the first call would have to wait for: native kernels are compiled once for a machine."""
    native_sampling.available()


def path_for(x: torch.Tensor) -> Path:
    """The fastest path that takes `x`: Triton's on cards that it compiles for, in types that it multiplies."""
    if x.dtype not in _TRITON_TYPES or launch.unavailable(x.device):
        return plain
    from .gpu import path

    return path


def linear(x: torch.Tensor, weight: torch.Tensor | Weight) -> torch.Tensor:
    """x [num_tokens, num_in], weight [num_out, num_in] -> [num_tokens, num_out]; see also `ops_linear`."""
    if not isinstance(weight, torch.Tensor):
        return ops_linear.linear(x, weight)
    return path_for(x).linear(x, weight)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., hidden] scaled to root mean square one (in at least float32), times weight [hidden]."""
    return path_for(x).rms_norm(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual), each [..., hidden]. `residual` may be overwritten."""
    return path_for(x).add_rms_norm(x, residual, weight, eps)


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding of the first 2 * num_pairs dimensions of each head; the others stay.

    q [num_tokens, num_heads, head_dim], k [num_tokens, num_kv_heads, head_dim]; cos, sin [num_tokens, num_pairs], of
    q's type or float32, the rows of a table picked by position once per step. Dimension i turns with i + num_pairs
    (halves), or, interleaved, 2 i with 2 i + 1 (GPT-J, GLM, Cohere). Returns the turned q and k.
    """
    return path_for(q).rotary(q, k, cos, sin, interleaved)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up [num_tokens, 2 * intermediate] -> silu(first half) * second half, [num_tokens, intermediate]."""
    return path_for(gate_up).silu_mul(gate_up)


def gelu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up [num_tokens, 2 * intermediate] -> gelu(first half) * second half, gelu in its tanh form (Gemma's)."""
    return path_for(gate_up).gelu_mul(gate_up)


def write_kv(k: torch.Tensor, v: torch.Tensor, k_cache: Cache, v_cache: Cache, slots: torch.Tensor) -> None:
    """Write k, v [num_tokens, num_kv_heads, head_dim] to slots [num_tokens] of the caches
    [num_blocks, block_size, num_kv_heads, head_dim], in the type of these. No slot may occur twice."""
    path_for(k).write_kv(k, v, k_cache, v_cache, slots)


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
    """`rotary`, then `write_kv` of the turned keys, as one op; returns the turned q."""
    return path_for(q).rotary_write(q, k, v, cos, sin, k_cache, v_cache, slots, interleaved)


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
    """Causal attention of each new token over its own sequence, prompts and decoding mixed.

    q [num_tokens, num_heads, head_dim]; caches [num_blocks, block_size, num_kv_heads, head_dim], into which the new
    keys and values are already written; query head h reads key/value head h // (num_heads / num_kv_heads). Softmax
    in at least float32. Returns [num_tokens, num_heads, head_dim].

    `window`: a query at position p sees the keys p - window + 1 to p (0: all up to p). `softcap`: scores s become
    softcap * tanh(s / softcap) (0: as they are). `sinks` [num_heads]: a score more in each head's softmax, which
    takes its share of the weight and brings no value.
    """
    if q.shape[0] != batch.num_tokens:
        raise ValueError(f"q has {q.shape[0]} tokens, the batch {batch.num_tokens}")
    if q.shape[1] % k_cache.shape[2] or q.shape[2] != k_cache.shape[3]:
        raise ValueError(f"q {tuple(q.shape)} does not go with a cache of {tuple(k_cache.shape)}")
    if k_cache.shape[1] != batch.block_size:
        raise ValueError(f"the cache has blocks of {k_cache.shape[1]}, the batch of {batch.block_size}")
    if sinks is not None and sinks.shape != q.shape[1:2]:
        raise ValueError(f"there are {q.shape[1]} heads, but sinks of the shape {tuple(sinks.shape)}")
    return path_for(q).paged_attention(q, k_cache, v_cache, batch, scale, window, softcap, sinks)


def lora(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rows: Rows) -> None:
    """Add a low-rank product to some rows in place: y[rows] += (x[rows] @ a.T) @ b.T.

    y [num_tokens, num_out], x [num_tokens, num_in], a [rank, num_in], b [num_out, rank] (the adapter's scale is in
    it); `rows` is a slice, or int64 indices of which none occurs twice.
    """
    path_for(y).lora(y, x, a, b, rows)


def lora_multi(
    y: torch.Tensor, x: torch.Tensor, a_stack: torch.Tensor, b_stack: torch.Tensor, adapter_of_row: torch.Tensor
) -> None:
    """Add to each row, in place, the low-rank product of the adapter that it names.

    y [num_tokens, num_out], x [num_tokens, num_in], a_stack [num_adapters, rank, num_in], b_stack [num_adapters,
    num_out, rank] (scales in it; smaller ranks padded with zeros), adapter_of_row int [num_tokens], -1 for none. On a
    card a number is not looked at: it must be below num_adapters.
    """
    path_for(y).lora_multi(y, x, a_stack, b_stack, adapter_of_row)


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, bitmask: torch.Tensor) -> None:
    """Set to minus infinity, in place, what a grammar forbids.

    logits [num_rows, vocab]; rows int64 [num_masked], none twice; bitmask int32 [num_masked, ceil(vocab / 32)], token
    t allowed where bit t % 32 of word t // 32 is set, and also where the mask has no such word.
    """
    path_for(logits).mask_tokens(logits, rows, bitmask)


def penalize(
    logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, repetition: torch.Tensor, offset: torch.Tensor
) -> None:
    """Change single logits [num_rows, vocab] in place, at the places (rows[i], tokens[i]), none named twice.

    A positive logit is divided by repetition[i], a negative one multiplied by it (CTRL, arXiv:1909.05858); then
    offset[i] is added. All [num_places]: rows and tokens int64, the others of the logits' type.
    """
    path_for(logits).penalize(logits, rows, tokens, repetition, offset)


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The largest logit of each row, the first of equals: logits [num_rows, vocab] -> int64 [num_rows].

    -1 for a row whose largest is not finite: it holds a NaN, or nothing but minus infinity.
    """
    return path_for(logits).greedy(logits)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """One token per row: logits [num_rows, vocab], the rest [num_rows] -> int64 [num_rows].

    temperature 0 takes the largest logit (the first of equals). Otherwise the row's softmax at that temperature is
    cut to the top_k likeliest tokens (0: no cut), then to the fewest that hold top_p of what remains (1: no cut),
    then to those of at least min_p times the likeliest one's probability; and `uniform` in [0, 1) picks by inverse
    distribution in vocabulary order. Equals at a cut all stay. A row's result depends on nothing but its own inputs.
    temperature, top_p, min_p and uniform are floating, top_k is int64. -1 for a row whose largest logit is not finite.
    """
    return path_for(logits).sample(logits, temperature, top_k, top_p, min_p, uniform)


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities under the softmax of each row: of the row's token, and the likeliest `num_top`.

    logits [num_rows, vocab], tokens int64 [num_rows] -> (floating [num_rows], int64 ids [num_rows, num_top], their
    log-probabilities [num_rows, num_top]), likeliest first and the smaller id first among equals; which of equals at
    the cut are reported is left open, but a `num_top` of 1 names the first of them.
    """
    return path_for(logits).token_logprobs(logits, tokens, num_top)
