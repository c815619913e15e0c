"""Formats of caches as kernels see them: pointers, strides, and which arithmetic turns codes into numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl

from ..packed_heads import NUM_GROUPS
from ..quantized import Cache, PackedCache, QuantizedCache
from .launch import check
from .tiles import FLOATS

# A plain tensor of a floating type.
PLAIN = tl.constexpr(0)
# int8 codes times a scale.
INT8 = tl.constexpr(1)
# Four-bit codes, dimension i in the low half of byte i and i + head_dim / 2 in its high half; each quarter of a head
# times a scale, plus a minimum.
INT4 = tl.constexpr(2)
NAMES = ("plain", "int8", "int4")


@dataclass(frozen=True)
class CacheArguments:
    """One cache [num_blocks, block_size, num_kv_heads, head_dim] for a launch; strides are in values.

    `pointers`: codes, scales, minimums; the codes stand for what the format does not have.
    """

    format: int
    pointers: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    slot_stride: int
    head_stride: int
    scale_slot_stride: int
    code_bytes: int

    @property
    def format_name(self) -> str:
        return NAMES[self.format]


def has_fp8(device: torch.device) -> bool:
    """Whether kernels can compute with float8_e4m3fn; the interpreter can."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 9)


def cache_arguments(name: str, cache: Cache, like: torch.Tensor) -> CacheArguments:
    """ValueError, naming what does not do, where a kernel cannot take this cache."""
    if isinstance(cache, QuantizedCache):
        _check_codes(name, cache.codes, torch.int8, {"scales": cache.scales}, torch.float32, (), like)
        return _arguments(name, INT8.value, cache.codes, cache.scales, cache.codes)
    if isinstance(cache, PackedCache):
        if cache.shape[-1] % NUM_GROUPS:
            raise ValueError(f"{name} has heads of {cache.shape[-1]} dimensions, which have no quarters of one size")
        numbers = {"scales": cache.scales, "minimums": cache.minimums}
        _check_codes(name, cache.codes, torch.uint8, numbers, torch.float16, (NUM_GROUPS,), like)
        return _arguments(name, INT4.value, cache.codes, cache.scales, cache.minimums)
    check(name, cache, dtypes=(*FLOATS, torch.float8_e4m3fn), ndim=4, like=like)
    if cache.dtype == torch.float8_e4m3fn and not has_fp8(cache.device):
        raise ValueError(f"{name} is float8_e4m3fn, which cards before compute capability 8.9 do not have")
    return _arguments(name, PLAIN.value, cache, cache, cache)


def _check_codes(
    name: str,
    codes: torch.Tensor,
    codes_dtype: torch.dtype,
    numbers: dict[str, torch.Tensor],
    dtype: torch.dtype,
    each: tuple[int, ...],
    like: torch.Tensor,
) -> None:
    """`numbers`: what comes to the codes of each token and head, of the shape `each`."""
    shape = (*codes.shape[:3], *each)
    check(f"{name}.codes", codes, dtypes=(codes_dtype,), ndim=4, like=like)
    for part, x in numbers.items():
        check(f"{name}.{part}", x, dtypes=(dtype,), ndim=3 + len(each), like=like)
        if x.shape != shape or not x.is_contiguous():
            raise ValueError(
                f"{name}.{part} has the shape {tuple(x.shape)} and the strides {x.stride()}; a contiguous tensor of "
                f"{shape} is needed"
            )


def _arguments(
    name: str, format: int, codes: torch.Tensor, scales: torch.Tensor, minimums: torch.Tensor
) -> CacheArguments:
    if codes.shape[0] > 1 and codes.stride(0) != codes.shape[1] * codes.stride(1):
        raise ValueError(f"{name} has the strides {codes.stride()}; its blocks must lie one after the other")
    return CacheArguments(
        format=format,
        pointers=(codes, scales, minimums),
        slot_stride=codes.stride(1),
        head_stride=codes.stride(2),
        scale_slot_stride=scales.shape[2:].numel(),  # not read where the codes stand for them
        code_bytes=codes.element_size(),
    )
