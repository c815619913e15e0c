"""The layouts in which checkpoints keep quantized weights, turned into the formats of this package and back.

Tensors in, tensors out; files are the loader's. Layouts are those of AutoAWQ (GEMM version), GPTQ (AutoGPTQ's, and
version 2 of GPTQModel) and compressed-tensors (pack-quantized and int-quantized). In all of them eight codes of four
bits lie in an int32; in AWQ's in an order of its own. A tensor that does not fit is a ValueError that names it as the
layout does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .channels import ChannelInt8
from .grouped import MAX_CODE, SYMMETRIC_ZERO, GroupedInt4, pack_nibbles, unpack_nibbles

CODES_PER_WORD = 8
# Bits 4 i to 4 i + 3 of an AWQ word hold the column AWQ_ORDER[i] of its eight.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def from_awq(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, group_size: int) -> GroupedInt4:
    """AutoAWQ's GEMM layout: qweight int32 [num_in, num_out / 8], qzeros int32 [num_groups, num_out / 8], scales
    [num_groups, num_out]. `group_size` -1: one group a row."""
    _matrix("qweight", qweight, torch.int32)
    num_in, num_out = qweight.shape[0], qweight.shape[1] * CODES_PER_WORD
    group_size = num_in if group_size == -1 else group_size
    if group_size < 1 or num_in % group_size:
        raise ValueError(f"qweight has {num_in} inputs, which are no groups of {group_size}")
    _matrix("qzeros", qzeros, torch.int32, (num_in // group_size, qweight.shape[1]))
    _scales("scales", scales, (num_in // group_size, num_out))
    zeros = _unpack_awq(qzeros).T.to(scales.dtype)
    return GroupedInt4(_pack_bytes(_unpack_awq(qweight).T), scales.T.contiguous(), zeros.contiguous())


def to_awq(weight: GroupedInt4) -> dict[str, torch.Tensor]:
    """qweight, qzeros and scales of `from_awq`.

    ValueError where inputs are reordered, zeros lie between codes, or outputs are not in eights.
    """
    num_out, _ = weight.shape
    if weight.order is not None:
        raise ValueError("order: the AWQ layout keeps inputs in their own order")
    if num_out % CODES_PER_WORD:
        raise ValueError(f"codes: the AWQ layout needs outputs in eights, not {num_out}")
    return {
        "qweight": _pack_awq(unpack_nibbles(weight.codes).T),
        "qzeros": _pack_awq(_whole_zeros(weight).T),
        "scales": weight.scales.T.contiguous(),
    }


def from_gptq(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, g_idx: torch.Tensor | None, version: int
) -> GroupedInt4:
    """GPTQ's layout: qweight int32 [num_in / 8, num_out], qzeros int32 [num_groups, num_out / 8], scales [num_groups,
    num_out], g_idx int32 [num_in], the group of each input.

    Version 1 (`checkpoint_format` "gptq") keeps each zero less one, modulo 16; version 2 ("gptq_v2") as it is.
    """
    if version not in (1, 2):
        raise ValueError(f"version is 1 or 2, not {version}")
    _matrix("qweight", qweight, torch.int32)
    num_in, num_out = qweight.shape[0] * CODES_PER_WORD, qweight.shape[1]
    _scales("scales", scales, (None, num_out))
    num_groups = len(scales)
    if num_groups == 0 or num_in % num_groups:
        raise ValueError(f"scales has {num_groups} groups for {num_in} inputs, which are not of one size")
    if num_out % CODES_PER_WORD:
        raise ValueError(f"qweight has {num_out} outputs; this layout needs them in eights")
    _matrix("qzeros", qzeros, torch.int32, (num_groups, num_out // CODES_PER_WORD))
    zeros = _unpack(qzeros).T
    if version == 1:
        zeros = (zeros + 1) & MAX_CODE
    codes = _unpack(qweight.T)
    order = _order("g_idx", g_idx, num_in, num_groups)
    if order is not None:
        codes = codes[:, order]
    return GroupedInt4(_pack_bytes(codes), scales.T.contiguous(), zeros.to(scales.dtype).contiguous(), order)


def from_compressed_int4(
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    g_idx: torch.Tensor | None,
    shape: Sequence[int] | torch.Tensor,
    symmetric: bool,
) -> GroupedInt4:
    """compressed-tensors' pack-quantized with four bits: weight_packed int32 [num_out, ceil(num_in / 8)], weight_scale
    [num_out, num_groups], weight_zero_point int32 [ceil(num_out / 8), num_groups] (none where symmetric), weight_g_idx
    int32 [num_in] (the group of each input; all -1 as if there were none), weight_shape [2].

    Codes and zero points lie eight above what the layout calls their value.
    """
    num_out, num_in = _shape(shape)
    _matrix("weight_packed", packed, torch.int32, (num_out, -(-num_in // CODES_PER_WORD)))
    _scales("weight_scale", scale, (num_out, None))
    num_groups = scale.shape[1]
    if num_groups == 0 or num_in % num_groups or num_in % 2:
        raise ValueError(
            f"weight_scale has {num_groups} groups for {num_in} inputs, an even number in groups of one size"
        )
    if symmetric:
        if zero_point is not None:
            raise ValueError("weight_zero_point is there, but the weight is said to be symmetric")
        zeros = torch.full_like(scale, SYMMETRIC_ZERO)
    else:
        if zero_point is None:
            raise ValueError("weight_zero_point is missing, and the weight is not symmetric")
        _matrix("weight_zero_point", zero_point, torch.int32, (-(-num_out // CODES_PER_WORD), num_groups))
        zeros = _unpack(zero_point.T).T[:num_out].to(scale.dtype)
    codes = _unpack(packed)[:, :num_in]
    if g_idx is not None and bool((g_idx == -1).all()):
        g_idx = None
    order = _order("weight_g_idx", g_idx, num_in, num_groups)
    if order is not None:
        codes = codes[:, order]
    return GroupedInt4(_pack_bytes(codes), scale.contiguous(), zeros.contiguous(), order)


def to_compressed_int4(weight: GroupedInt4, *, symmetric: bool = False) -> dict[str, torch.Tensor]:
    """weight_packed, weight_scale, weight_shape and, as there are any, weight_zero_point and weight_g_idx.

    `symmetric` is what the checkpoint's configuration says of all its weights: zero points are then left out, and must
    be 8. Refused: zeros between codes.
    """
    num_out, num_in = weight.shape
    codes = unpack_nibbles(weight.codes)
    tensors: dict[str, torch.Tensor] = {}
    if weight.order is not None:
        groups = torch.arange(num_in, device=codes.device) // weight.group_size
        codes = torch.empty_like(codes).index_copy_(1, weight.order, codes)
        tensors["weight_g_idx"] = torch.empty_like(groups).index_copy_(0, weight.order, groups).to(torch.int32)
    zeros = _whole_zeros(weight)
    if symmetric:
        if bool((zeros != SYMMETRIC_ZERO).any()):
            raise ValueError(f"zeros are not {SYMMETRIC_ZERO} throughout: the weight is not symmetric")
    else:
        tensors["weight_zero_point"] = _pack(zeros.T).T.contiguous()
    tensors["weight_packed"] = _pack(codes)
    tensors["weight_scale"] = weight.scales
    tensors["weight_shape"] = torch.tensor([num_out, num_in])
    return tensors


def from_compressed_int8(weight: torch.Tensor, scale: torch.Tensor) -> ChannelInt8:
    """compressed-tensors' int-quantized, symmetric with a scale a channel: weight int8 [num_out, num_in], weight_scale
    [num_out, 1] (or [num_out])."""
    _matrix("weight", weight, torch.int8)
    if scale.ndim == 1:
        scale = scale[:, None]
    _scales("weight_scale", scale, (weight.shape[0], 1))
    return ChannelInt8(weight.contiguous(), scale[:, 0].float().contiguous())


def to_compressed_int8(weight: ChannelInt8) -> dict[str, torch.Tensor]:
    """weight and weight_scale of `from_compressed_int8`, the scales float32 [num_out, 1]."""
    return {"weight": weight.codes, "weight_scale": weight.scales[:, None]}


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """int32 [rows, n] -> int32 [rows, 8 n] of 0 to 15, the lowest bits first."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    return (words[..., None] >> shifts & MAX_CODE).flatten(1)


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """[rows, n] of 0 to 15 -> int32 [rows, ceil(n / 8)], the inverse of `_unpack`; zeros fill the last word."""
    words = F.pad(codes.to(torch.int64), (0, -codes.shape[1] % CODES_PER_WORD)).unflatten(1, (-1, CODES_PER_WORD))
    shifts = torch.arange(0, 32, 4, device=codes.device)
    values = (words << shifts).sum(-1)
    # The word's bits, read as a signed number.
    return torch.where(values >= 1 << 31, values - (1 << 32), values).to(torch.int32)


def _unpack_awq(words: torch.Tensor) -> torch.Tensor:
    eights = _unpack(words).unflatten(1, (-1, CODES_PER_WORD))
    order = torch.tensor(AWQ_ORDER, device=words.device)
    return torch.empty_like(eights).index_copy_(2, order, eights).flatten(1)


def _pack_awq(codes: torch.Tensor) -> torch.Tensor:
    order = torch.tensor(AWQ_ORDER, device=codes.device)
    return _pack(codes.unflatten(1, (-1, CODES_PER_WORD))[..., order].flatten(1))


def _pack_bytes(codes: torch.Tensor) -> torch.Tensor:
    return pack_nibbles(codes.to(torch.uint8)).contiguous()


def _whole_zeros(weight: GroupedInt4) -> torch.Tensor:
    zeros = weight.zeros.to(torch.int32)
    if bool((zeros != weight.zeros).any()) or bool(((zeros < 0) | (zeros > MAX_CODE)).any()):
        raise ValueError(f"zeros are not whole numbers from 0 to {MAX_CODE}, which is what this layout keeps")
    return zeros


def _order(name: str, g_idx: torch.Tensor | None, num_in: int, num_groups: int) -> torch.Tensor | None:
    """Inputs sorted by group, or None where they are so already."""
    if g_idx is None:
        return None
    if g_idx.shape != (num_in,) or g_idx.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} is {_said(g_idx)}; a group is needed for each of {num_in} inputs")
    order = torch.sort(g_idx, stable=True).indices
    expected = torch.arange(num_in, device=g_idx.device) // (num_in // num_groups)
    if bool((g_idx[order] != expected).any()):
        raise ValueError(
            f"{name} does not have {num_in // num_groups} inputs for each of the groups 0 to {num_groups - 1}"
        )
    return None if bool((g_idx == expected).all()) else order


def _shape(shape: Sequence[int] | torch.Tensor) -> tuple[int, int]:
    sizes = [int(size) for size in shape]
    if len(sizes) != 2 or min(sizes) < 1:
        raise ValueError(f"weight_shape is {sizes}; this layout keeps matrices")
    return sizes[0], sizes[1]


def _matrix(name: str, x: torch.Tensor, dtype: torch.dtype, shape: tuple[int, int] | None = None) -> None:
    if x.dtype != dtype or x.ndim != 2 or 0 in x.shape or (shape is not None and x.shape != shape):
        needed = "a matrix" if shape is None else f"{list(shape)}"
        raise ValueError(f"{name} is {_said(x)}; {str(dtype).removeprefix('torch.')} {needed} is needed")


def _scales(name: str, x: torch.Tensor, shape: tuple[int | None, int | None]) -> None:
    fits = x.ndim == 2 and all(size in (None, actual) for size, actual in zip(shape, x.shape, strict=True))
    if not x.is_floating_point() or not fits:
        needed = " x ".join("groups" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} is {_said(x)}; floating {needed} is needed")
    if not x.isfinite().all():
        raise ValueError(f"{name} has NaN or infinity in it")


def _said(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
