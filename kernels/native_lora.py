"""Linear layers with LoRA that share their input, natively on a CPU: native/lora_rows.h around torch's large products.

Of queries, keys and values, or of gate and up, the input is read once for all low-rank products, and the gradients for
it are one sum. Ranks are filled up with zeros to a multiple of sixteen.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from . import native_training
from .lora_train import LoraPart, dense

_RANKS = 16
_WIDTHS = 32
_BLOCK_ROWS = 128  # LORA_ROWS of native/lora_rows.h


class CRows(ctypes.Structure):
    """`Rows` of native/lora_rows.h."""

    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64))


class CLoraRows(ctypes.Structure):
    """`LoraRows` of native/lora_rows.h."""

    _fields_ = (
        ("wide", CRows),
        ("low", CRows),
        ("made", CRows),
        *((name, ctypes.c_void_p) for name in ("narrowing", "widening", "blocks", "sums")),
        ("num_rows", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("rank", ctypes.c_int32),
        ("is_bf16", ctypes.c_int32),
        ("turned", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


def takes(x: torch.Tensor, parts: Sequence[LoraPart]) -> bool:
    """Whether layers like these are computed here."""
    widths = (size for part in parts for size in part.weight.shape)
    return all(size and size % _WIDTHS == 0 for size in widths) and native_training.takes(x)


def lora_linears(x: torch.Tensor, parts: Sequence[LoraPart]) -> tuple[torch.Tensor, ...]:
    """See `ops_training.lora_linears`; x [num_tokens, num_in]."""
    adapters = [adapter for part in parts for adapter in (part.a, part.b)]
    return _LoraLinears.apply(x.contiguous(), tuple(parts), *adapters)  # pyright: ignore[reportReturnType]


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, parts: tuple[LoraPart, ...], *adapters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        a = _stacked(parts, x.dtype)
        rank = len(a) // len(parts)
        low = x.new_empty(len(x), len(a))
        narrowing = _packed(a)
        _call("cbt_lora_narrow", [_rows(x, low, made=low, narrowing=narrowing)])
        made = [torch.nn.functional.linear(x, dense(part.weight, x.dtype), part.bias) for part in parts]
        filled = [_filled(part.b.to(x.dtype), rank, 1) for part in parts]
        packed = [_packed(b) for b in filled]
        lows = low.split(rank, 1)
        tasks = [
            _rows(y, mine, widening=widening, scale=part.scale)
            for y, mine, widening, part in zip(made, lows, packed, parts, strict=True)
        ]
        _call("cbt_lora_widen", tasks)
        weights = [part.weight if isinstance(part.weight, torch.Tensor) else None for part in parts]
        ctx.save_for_backward(x, low, a, *filled, *weights)
        ctx.packed = [None if isinstance(part.weight, torch.Tensor) else part.weight for part in parts]
        ctx.scales = [part.scale for part in parts]
        ctx.kinds = [(len(part.a), part.a.dtype, part.b.dtype) for part in parts]
        return tuple(made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        x, low, a, *kept = ctx.saved_tensors
        count = len(grads)
        filled, weights = kept[:count], kept[count:]
        rank = len(a) // count
        grad_low = torch.empty_like(low)
        dys = [grad.contiguous() for grad in grads]
        packed_b = [_packed(b, deep=True) for b in filled]
        grads_of_b = [torch.empty(dy.shape[1], own) for dy, (own, _, _) in zip(dys, ctx.kinds, strict=True)]
        blocks = [_blocks(len(x), rank, dy.shape[1]) for dy in dys]
        tasks = [
            _rows(dy, mine, made=made, narrowing=b, scale=scale, blocks=block, sums=sums, turned=sums.shape[1])
            for dy, mine, made, b, scale, block, sums in zip(
                dys, low.split(rank, 1), grad_low.split(rank, 1), packed_b, ctx.scales, blocks, grads_of_b, strict=True
            )
        ]
        _call("cbt_lora_gradient", tasks)
        grad_x: torch.Tensor | None = None
        if ctx.needs_input_grad[0]:
            for weight, packed, dy in zip(weights, ctx.packed, dys, strict=True):
                matrix = dense(packed if weight is None else weight, x.dtype)
                grad_x = dy @ matrix if grad_x is None else grad_x.addmm_(dy, matrix)
        if grad_x is not None:
            widening = _packed(a, deep=True)
            _call("cbt_lora_widen", [_rows(grad_x, grad_low, widening=widening)])
        sums_of_a = torch.empty(a.shape)
        blocks_of_a = _blocks(len(x), *a.shape)
        _call("cbt_lora_gradient", [_rows(x, grad_low, blocks=blocks_of_a, sums=sums_of_a)])
        made: list[torch.Tensor | None] = [grad_x, None]
        for (own, type_a, type_b), grad_a, grad_b in zip(ctx.kinds, sums_of_a.split(rank), grads_of_b, strict=True):
            made += (grad_a[:own].to(type_a), grad_b.to(type_b))
        return tuple(made)


def _stacked(parts: Sequence[LoraPart], dtype: torch.dtype) -> torch.Tensor:
    """All a, one below the other [num_parts * rank, num_in], each with rows of zeros up to the rank of all."""
    rank = -(-max(len(part.a) for part in parts) // _RANKS) * _RANKS
    return torch.cat([_filled(part.a.to(dtype), rank, 0) for part in parts])


def _filled(x: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    missing = size - x.shape[dim]
    if missing:
        x = torch.nn.functional.pad(x, (0, missing) if dim else (0, 0, 0, missing))
    return x.contiguous()


def _packed(x: torch.Tensor, *, deep: bool = False) -> torch.Tensor:
    """A right matrix whose lanes are x's rows, or with `deep` one whose depth they are."""
    out = torch.empty_like(x)
    native_training.library().cbt_lora_pack(
        int(x.dtype == torch.bfloat16), x.data_ptr(), *x.shape, int(deep), out.data_ptr()
    )
    return out


def _blocks(num_rows: int, rank: int, n: int) -> torch.Tensor:
    """Room for the sums of each block of rows, in float32."""
    return torch.empty(-(-num_rows // _BLOCK_ROWS), rank, n)


def _rows(
    wide: torch.Tensor,
    low: torch.Tensor,
    *,
    made: torch.Tensor | None = None,
    narrowing: torch.Tensor | None = None,
    widening: torch.Tensor | None = None,
    blocks: torch.Tensor | None = None,
    sums: torch.Tensor | None = None,
    turned: int = 0,
    scale: float = 1.0,
) -> CLoraRows:
    """`wide` [num_rows, n], `low` and `made` [num_rows, rank]; `sums` [rank, n] or, scaled, [n, turned]. Nothing here
    is kept alive."""
    pointers = (None if x is None else x.data_ptr() for x in (narrowing, widening, blocks, sums))
    to = CRows() if made is None else CRows(made.data_ptr(), made.stride(0))
    return CLoraRows(
        CRows(wide.data_ptr(), wide.stride(0)), CRows(low.data_ptr(), low.stride(0)), to, *pointers,
        *wide.shape, low.shape[1], int(wide.dtype == torch.bfloat16), turned, scale,
    )  # fmt: skip


def _call(name: str, tasks: list[CLoraRows]) -> None:
    array = (CLoraRows * len(tasks))(*tasks)
    native_training.call(name, ctypes.addressof(array), len(tasks))
