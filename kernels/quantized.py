"""Weights, keys and values in few bits, in plain torch: the arithmetic of native/weights.h on any device.

A product rounds its inputs as the native ones do (bfloat16, int8 in groups of 32, or 16 bits) and then multiplies them
with what the codes stand for, some rows of the matrix at a time, so that no whole matrix is ever there in floating
point.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .native import int8_input_bits
from .packed_heads import NUM_GROUPS, pack_heads, turn_back, unpack_turned
from .weights import WeightFormat

GROUP = 32
GROUP_NF4 = 64
# Two halves of 8 bits with signs: 127 * 256 + 127.
LARGEST_CODE = 32639
# Values of a matrix that are there in floating point at a time: 64 MiB in float32.
SLICE = 1 << 24
FP8_MAX = torch.finfo(torch.float8_e4m3fn).max

# Quantiles of the normal distribution, scaled to [-1, 1]: Dettmers et al., "QLoRA" (2023), appendix E.
NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class QuantizedWeight(nn.Module):
    """A matrix [num_out, num_in] in any format of `WeightFormat` but FLOAT32.

    `codes`: bfloat16 or int8 [num_out, num_in], or two of four bits in a byte, uint8 [num_out, padded num_in / 2] (the
    low half is the first). `scales`: INT8 float32 [num_out, 1], INT4 and NF4 half [num_out, num_groups]; `minimums`:
    INT4, the same.
    """

    codes: torch.Tensor
    scales: torch.Tensor | None
    minimums: torch.Tensor | None

    def __init__(
        self,
        format: WeightFormat,
        num_in: int,
        codes: torch.Tensor,
        scales: torch.Tensor | None = None,
        minimums: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.format = format
        self.num_out = len(codes)
        self.num_in = num_in
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("minimums", minimums)

    @classmethod
    def from_float(cls, weight: torch.Tensor, format: WeightFormat) -> QuantizedWeight:
        """weight [num_out, num_in] of any floating type."""
        if format is WeightFormat.FLOAT32:
            raise ValueError("a float32 weight is a tensor")
        num_rows = max(1, SLICE // weight.shape[1])
        parts = list(zip(*(_quantize(rows.float(), format) for rows in weight.split(num_rows)), strict=True))
        return cls(format, weight.shape[1], *(torch.cat(part) for part in parts))

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_out, self.num_in

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """What the codes stand for, [num_out, num_in]."""
        return self.rows(slice(None), dtype)

    def rows(self, which: torch.Tensor | slice, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Some rows of it, [count, num_in]."""
        codes = self.codes[which]
        if self.scales is None:
            return codes.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        scales = self.scales[which].to(wide)
        if self.format is WeightFormat.INT8:
            return (codes.to(wide) * scales).to(dtype)
        unpacked = torch.stack([codes & 0x0F, codes >> 4], -1).flatten(1)
        if self.minimums is not None:
            groups = unpacked.unflatten(1, (-1, GROUP)).to(wide)
            values = groups * scales[..., None] + self.minimums[which].to(wide)[..., None]
        else:
            table = torch.tensor(NF4_VALUES, device=codes.device).bfloat16().to(wide)
            values = table[unpacked.unflatten(1, (-1, GROUP_NF4)).int()] * scales[..., None]
        return values.flatten(1)[:, : self.num_in].to(dtype)

    def slices(self, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """`dequantize` in pieces, from the first row to the last."""
        step = max(1, SLICE // self.num_in)
        for first in range(0, self.num_out, step):
            yield self.rows(slice(first, first + step), dtype)


def _quantize(weight: torch.Tensor, format: WeightFormat) -> tuple[torch.Tensor, ...]:
    """float32 [num_rows, num_in] -> codes, scales, minimums, as many as the format has."""
    if format is WeightFormat.BFLOAT16:
        return (weight.bfloat16(),)
    if format is WeightFormat.INT8:
        top = weight.abs().amax(1, keepdim=True)
        return (weight * _inverse(top, 127)).round().to(torch.int8), top / 127
    if format is WeightFormat.INT4:
        # Copies of a row's last value change neither the least nor the largest of its group.
        groups = F.pad(weight[:, None], (0, -weight.shape[1] % GROUP), mode="replicate")[:, 0].unflatten(1, (-1, GROUP))
        low, high = groups.amin(-1), groups.amax(-1)
        minimums, scales = low.half(), ((high - low) / 15).half()
        codes = ((groups - minimums.float()[..., None]) * _inverse(scales.float(), 1)[..., None]).round().clamp(0, 15)
        return _pack(codes), scales, minimums
    padded = F.pad(weight, (0, -weight.shape[1] % GROUP_NF4)).contiguous()
    groups = padded.unflatten(1, (-1, GROUP_NF4))
    scales = groups.abs().amax(-1).half()
    table = torch.tensor(NF4_VALUES, device=weight.device)
    codes = torch.bucketize(groups * _inverse(scales.float(), 1)[..., None], (table[1:] + table[:-1]) / 2)
    return _pack(codes), scales


def _inverse(x: torch.Tensor, numerator: float) -> torch.Tensor:
    """A division: of a plain number torch makes a product with the reciprocal, which is rounded twice."""
    return torch.where(x > 0, torch.full_like(x, numerator) / x, 0)


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """[num_rows, num_groups, group] of four bits -> bytes [num_rows, ...]."""
    pairs = codes.to(torch.uint8).flatten(1).unflatten(1, (-1, 2))
    return pairs[..., 0] | pairs[..., 1] << 4


def linear(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """x [..., num_in] -> [..., num_out] of the same type; computed in at least float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if weight.format in (WeightFormat.BFLOAT16, WeightFormat.NF4):
        rounded = x.bfloat16().to(wide)
    elif weight.format is WeightFormat.INT8 and x.device.type == "cpu" and int8_input_bits(weight.num_in) == 16:
        rounded = _round_to_16_bits(x.to(wide))
    else:
        rounded = _round_to_int8(x.to(wide))
    return torch.cat([F.linear(rounded, rows) for rows in weight.slices(wide)], -1).to(x.dtype)


def _round_to_int8(x: torch.Tensor) -> torch.Tensor:
    """Each value as the nearest multiple of a 127th of the largest of its group of 32."""
    groups = F.pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
    top = groups.abs().amax(-1, keepdim=True)
    return ((groups * _inverse(top, 127)).round() * (top / 127)).flatten(-2)[..., : x.shape[-1]]


def _round_to_16_bits(x: torch.Tensor) -> torch.Tensor:
    """Each value as one of 2 * 32,639 + 1 codes, of which the largest is that of its row."""
    top = x.abs().amax(-1, keepdim=True)
    return (x * _inverse(top, LARGEST_CODE)).round() * (top / LARGEST_CODE)


@dataclass(frozen=True)
class QuantizedCache:
    """Keys or values of one layer in int8, a scale for each token and head.

    codes int8 [num_blocks, block_size, num_kv_heads, head_dim], scales float32 [num_blocks, block_size, num_kv_heads].
    """

    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


@dataclass(frozen=True)
class PackedCache:
    """Keys or values of one layer in four bits, turned as `packed_heads` says: codes times a scale, plus a minimum, for
    each quarter of a token's head.

    codes uint8 [num_blocks, block_size, num_kv_heads, head_dim / 2], dimension i in the low half of byte i and
    i + head_dim / 2 in its high half, so that each half of a head comes out of one shift; scales and minimums half
    [num_blocks, block_size, num_kv_heads, 4].
    """

    codes: torch.Tensor
    scales: torch.Tensor
    minimums: torch.Tensor

    @staticmethod
    def part_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the codes, and of scales and minimums, for a cache [num_blocks, block_size, num_kv_heads, head_dim];
        ValueError where heads have no quarters."""
        if shape[-1] % NUM_GROUPS:
            raise ValueError(f"heads of {shape[-1]} dimensions have no quarters of one size")
        return (*shape[:-1], shape[-1] // 2), (*shape[:-1], NUM_GROUPS)

    @classmethod
    def zeros(cls, shape: tuple[int, ...], device: torch.device | str = "cpu") -> PackedCache:
        """Raises what `part_shapes` raises."""
        codes, numbers = cls.part_shapes(shape)
        scales, minimums = torch.zeros(2, *numbers, dtype=torch.float16, device=device)
        return cls(torch.zeros(codes, dtype=torch.uint8, device=device), scales, minimums)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.codes.shape[:-1], 2 * self.codes.shape[-1]))

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + self.minimums.nbytes


Cache = torch.Tensor | QuantizedCache | PackedCache


def quantize_heads(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[num_tokens, num_kv_heads, head_dim] -> codes int8, scales float32 [num_tokens, num_kv_heads]."""
    wide = x.float()
    top = wide.abs().amax(-1, keepdim=True)
    return (wide * _inverse(top, 127)).round().to(torch.int8), top[..., 0] / 127


def to_kept(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In the type of a plain cache: float8_e4m3fn, which has no infinity, ends at its largest number."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(dtype) if dtype == torch.float8_e4m3fn else x.to(dtype)


def _indexable(x: torch.Tensor) -> torch.Tensor:
    """Numbers of eight bits as bytes: what picks and places rows does not know them all."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


def write_slots(x: torch.Tensor, cache: Cache, slots: torch.Tensor) -> None:
    """Write x [num_tokens, num_kv_heads, head_dim] to the slots of a cache of any type."""
    if isinstance(cache, QuantizedCache):
        codes, scales = quantize_heads(x)
        cache.codes.flatten(0, 1).index_copy_(0, slots, codes)
        cache.scales.flatten(0, 1).index_copy_(0, slots, scales)
    elif isinstance(cache, PackedCache):
        _write_packed(pack_heads(x), cache, slots)
    else:
        _indexable(cache.flatten(0, 1)).index_copy_(0, slots, _indexable(to_kept(x, cache.dtype)))


def write_pair(k: torch.Tensor, v: torch.Tensor, k_cache: Cache, v_cache: Cache, slots: torch.Tensor) -> None:
    """`write_slots` of both; what is packed is packed at once."""
    if isinstance(k_cache, PackedCache) and isinstance(v_cache, PackedCache):
        both = pack_heads(torch.stack([k, v]))
        for i, cache in enumerate((k_cache, v_cache)):
            _write_packed((both[0][i], both[1][i], both[2][i]), cache, slots)
    else:
        write_slots(k, k_cache, slots)
        write_slots(v, v_cache, slots)


def _write_packed(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor], cache: PackedCache, slots: torch.Tensor
) -> None:
    for kept, new in zip((cache.codes, cache.scales, cache.minimums), parts, strict=True):
        kept.flatten(0, 1).index_copy_(0, slots, new)


def read_blocks(cache: Cache, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The blocks in that order and type, [len(blocks), block_size, num_kv_heads, head_dim]."""
    kept = read_turned(cache, blocks, torch.promote_types(dtype, torch.float32) if is_turned(cache) else dtype)
    return turn_back(kept).to(dtype) if is_turned(cache) else kept


def is_turned(cache: Cache) -> bool:
    return isinstance(cache, PackedCache)


def read_turned(cache: Cache, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As `read_blocks`, but what is kept turned stays so: to be met by queries that are turned, too."""
    if isinstance(cache, QuantizedCache):
        scales = cache.scales.index_select(0, blocks)[..., None]
        return (cache.codes.index_select(0, blocks) * scales).to(dtype)
    if isinstance(cache, PackedCache):
        codes, scales, minimums = (kept.index_select(0, blocks) for kept in (cache.codes, cache.scales, cache.minimums))
        return unpack_turned(codes, scales, minimums, dtype)
    return _indexable(cache).index_select(0, blocks).view(cache.dtype).to(dtype)
