"""The rows that memory bounds: what each op must read and write, over copies of its operands that no cache holds.

A row is made when its turn comes, and freed after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...kernels import native, ops, ops_linear
from ...kernels.grouped import GroupedInt4
from ...kernels.memory import Arena
from ...kernels.quantized import QuantizedCache
from ...kernels.ragged import RaggedBatch
from ...kernels.weights import NativeEngine, PackedWeight, WeightFormat
from .kernels_meter import Call
from .kernels_sizes import Sizes

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Row:
    """`calls`: one operation over different memory. `num_bytes` or `operations`: what one of them costs at least, of
    which the other is 0."""

    calls: list[Call]
    num_bytes: int = 0
    operations: int = 0


Build = Callable[[], Row]


def memory_rows(device: torch.device, sizes: Sizes) -> Iterator[tuple[str, Build]]:
    """(name, how to make it) of each."""
    for kv in ("bfloat16", "int8"):
        yield f"decode_attention.kv_{kv}", lambda kv=kv: decode_attention(device, sizes, kv)
    shape = (sizes.intermediate, sizes.hidden)
    yield "w4a16_row", lambda: linear_row(device, sizes, grouped, shape, 1)
    yield "w4a16_row_square", lambda: linear_row(device, sizes, grouped, (sizes.hidden, sizes.hidden), 1)
    yield "bf16_row", lambda: linear_row(device, sizes, plain, shape, 1)
    if device.type == "cpu" and not native.unavailable():
        for format in (WeightFormat.BFLOAT16, WeightFormat.INT8, WeightFormat.INT4, WeightFormat.NF4):
            yield f"native_{format}_row", lambda format=format: native_row(sizes, format, shape)
    yield "rms_norm", lambda: rms_norm(device, sizes)
    yield "rotary_write", lambda: rotary_write(device, sizes)
    yield "gate_product", lambda: gate_product(device, sizes)


def copies(sizes: Sizes, num_bytes: int) -> range:
    """As many as it takes for none to be found in a cache when it comes again."""
    return range(max(2, -(-sizes.cycle_bytes // num_bytes)))


def decode_batch(device: torch.device, sizes: Sizes) -> RaggedBatch:
    """One new token for each sequence; blocks lie in any order."""
    per_seq = -(-sizes.context // sizes.block_size)
    blocks = torch.randperm(sizes.num_seqs * per_seq).view(sizes.num_seqs, per_seq).tolist()
    lens = [sizes.context] * sizes.num_seqs
    return RaggedBatch.build(lens, [1] * sizes.num_seqs, blocks, sizes.block_size, device)


def random_cache(device: torch.device, sizes: Sizes, kv: str, num_blocks: int) -> torch.Tensor | QuantizedCache:
    shape = (num_blocks, sizes.block_size, sizes.heads.num_kv_heads, sizes.heads.head_dim)
    if kv == "int8":
        codes = torch.randint(-127, 128, shape, dtype=torch.int8, device=device)
        return QuantizedCache(codes, torch.rand(shape[:-1], device=device) / 100)
    return torch.randn(shape, dtype=DTYPE, device=device)


def decode_attention(device: torch.device, sizes: Sizes, kv: str) -> Row:
    heads, batch = sizes.heads, decode_batch(device, sizes)
    num_blocks = batch.block_tables.numel()
    per_token = heads.num_kv_heads * (heads.head_dim * (1 if kv == "int8" else 2) + (4 if kv == "int8" else 0))
    num_bytes = 2 * sizes.num_seqs * sizes.context * per_token
    q = torch.randn(sizes.num_seqs, heads.num_heads, heads.head_dim, dtype=DTYPE, device=device)
    calls: list[Call] = []
    for _ in copies(sizes, num_bytes):
        k, v = (random_cache(device, sizes, kv, num_blocks) for _ in range(2))
        calls.append(lambda k=k, v=v: ops.paged_attention(q, k, v, batch, heads.head_dim**-0.5))
    return Row(calls, num_bytes + 2 * q.nbytes)


def plain(device: torch.device, sizes: Sizes, shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape, dtype=DTYPE, device=device)


def grouped(device: torch.device, sizes: Sizes, shape: tuple[int, int]) -> GroupedInt4:
    """Random codes with zero points."""
    num_out, num_in = shape
    groups = (num_out, num_in // sizes.group_size)
    return GroupedInt4(
        torch.randint(0, 256, (num_out, num_in // 2), dtype=torch.uint8, device=device),
        torch.rand(groups, device=device).half() / 100,
        torch.randint(0, 16, groups, device=device).half(),
    )


Make = Callable[[torch.device, Sizes, tuple[int, int]], torch.Tensor | GroupedInt4]


def linear_row(device: torch.device, sizes: Sizes, make: Make, shape: tuple[int, int], num_rows: int) -> Row:
    first = make(device, sizes, shape)
    weights = [first, *(make(device, sizes, shape) for _ in copies(sizes, first.nbytes)[1:])]
    x = torch.randn(num_rows, shape[1], dtype=DTYPE, device=device)
    kept = [weight if isinstance(weight, torch.Tensor) else ops_linear.place(weight, device) for weight in weights]
    calls: list[Call] = [lambda weight=weight: ops.linear(x, weight) for weight in kept]
    return Row(calls, first.nbytes + x.nbytes + num_rows * shape[0] * x.element_size())


def native_row(sizes: Sizes, format: WeightFormat, shape: tuple[int, int]) -> Row:
    """One row on the native kernels, in all threads that torch would take; weights lie as a decoder's do."""
    engine = NativeEngine(torch.get_num_threads())
    num_bytes = PackedWeight(shape[0], shape[1], format).nbytes
    arena = Arena()
    weights = [PackedWeight(shape[0], shape[1], format, arena=arena) for _ in copies(sizes, num_bytes)]
    some = torch.randn(min(shape[0], 32), shape[1])
    for weight in weights:
        for first in range(0, shape[0], len(some)):
            count = min(len(some), shape[0] - first)
            weight.fill(some[:count], torch.arange(first, first + count))
    x = torch.randn(1, shape[1])
    calls: list[Call] = [lambda weight=weight: engine.linear(x, weight) for weight in weights]
    return Row(calls, num_bytes + x.nbytes + shape[0] * x.element_size())


def rms_norm(device: torch.device, sizes: Sizes) -> Row:
    num_rows = max(1, sizes.tensor_bytes // (sizes.hidden * DTYPE.itemsize))
    weight = torch.randn(sizes.hidden, dtype=DTYPE, device=device)
    calls: list[Call] = []
    num_bytes = 2 * num_rows * sizes.hidden * DTYPE.itemsize
    for _ in copies(sizes, num_bytes // 2):
        x = torch.randn(num_rows, sizes.hidden, dtype=DTYPE, device=device)
        calls.append(lambda x=x: ops.rms_norm(x, weight, 1e-5))
    return Row(calls, num_bytes)


def rotary_write(device: torch.device, sizes: Sizes) -> Row:
    """Queries and keys turned, keys and values written to their blocks."""
    heads = sizes.heads
    num_tokens = max(1, sizes.tensor_bytes // (heads.num_heads * heads.head_dim * DTYPE.itemsize))
    num_blocks = -(-num_tokens // sizes.block_size)
    slots = torch.randperm(num_blocks * sizes.block_size)[:num_tokens].to(device)
    angles = torch.rand(num_tokens, heads.head_dim // 2, device=device)
    cos, sin = angles.cos().to(DTYPE), angles.sin().to(DTYPE)
    calls: list[Call] = []
    num_bytes = 2 * num_tokens * (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim * DTYPE.itemsize
    num_bytes += cos.nbytes + sin.nbytes + slots.nbytes
    for _ in copies(sizes, num_bytes):
        q, k, v = (
            torch.randn(num_tokens, count, heads.head_dim, dtype=DTYPE, device=device)
            for count in (heads.num_heads, heads.num_kv_heads, heads.num_kv_heads)
        )
        caches = tuple(random_cache(device, sizes, "bfloat16", num_blocks) for _ in range(2))
        calls.append(
            lambda q=q, k=k, v=v, caches=caches: ops.rotary_write(q, k, v, cos, sin, caches[0], caches[1], slots)
        )
    return Row(calls, num_bytes)


def gate_product(device: torch.device, sizes: Sizes) -> Row:
    num_rows = max(1, sizes.tensor_bytes // (sizes.intermediate * DTYPE.itemsize))
    num_bytes = 3 * num_rows * sizes.intermediate * DTYPE.itemsize
    calls: list[Call] = []
    for _ in copies(sizes, num_bytes):
        gate_up = torch.randn(num_rows, 2 * sizes.intermediate, dtype=DTYPE, device=device)
        calls.append(lambda gate_up=gate_up: ops.silu_mul(gate_up))
    return Row(calls, num_bytes)


def prefill_attention(device: torch.device, sizes: Sizes) -> Mapping[str, Row]:
    """One prompt, causal: ours over a paged cache, and PyTorch's own over plain tensors."""
    heads, length = sizes.heads, sizes.prefill
    num_blocks = -(-length // sizes.block_size)
    table = torch.randperm(num_blocks).tolist()
    batch = RaggedBatch.build([length], [length], [table], sizes.block_size, device)
    q = torch.randn(length, heads.num_heads, heads.head_dim, dtype=DTYPE, device=device)
    k, v = (torch.randn(length, heads.num_kv_heads, heads.head_dim, dtype=DTYPE, device=device) for _ in range(2))
    k_cache, v_cache = (random_cache(device, sizes, "bfloat16", num_blocks) for _ in range(2))
    ops.write_kv(k, v, k_cache, v_cache, batch.slots)
    operations = 4 * heads.num_heads * heads.head_dim * (length * (length + 1) // 2)
    scale = heads.head_dim**-0.5
    q4, k4, v4 = (x.transpose(0, 1)[None].contiguous() for x in (q, k, v))
    return {
        "prefill_attention": Row([lambda: ops.paged_attention(q, k_cache, v_cache, batch, scale)], 0, operations),
        "prefill_attention_sdpa": Row(
            [lambda: F.scaled_dot_product_attention(q4, k4, v4, is_causal=True, scale=scale, enable_gqa=True)],
            0,
            operations,
        ),
    }
