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
        *((name, ctypes.c_void_p) for name in ("narrowing", "widening", "blocks", "sums")),
        ("num_rows", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("rank", ctypes.c_int32),
        ("is_bf16", ctypes.c_int32),
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
        low = x.new_empty(len(x), len(a))
        _call("cbt_lora_narrow", x, low, narrowing=_packed(a))
        rank = len(a) // len(parts)
        made: list[torch.Tensor] = []
        for number, part in enumerate(parts):
            y = torch.nn.functional.linear(x, dense(part.weight, x.dtype), part.bias)
            widening = _packed(_filled(part.b.to(x.dtype), rank, 1))
            _call("cbt_lora_widen", y, low[:, number * rank :][:, :rank], widening=widening, scale=part.scale)
            made.append(y)
        weights = [part.weight if isinstance(part.weight, torch.Tensor) else None for part in parts]
        ctx.save_for_backward(x, low, *adapters, *weights)
        ctx.packed = [None if isinstance(part.weight, torch.Tensor) else part.weight for part in parts]
        ctx.scales = [part.scale for part in parts]
        return tuple(made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        x, low, *kept = ctx.saved_tensors
        count = len(grads)
        parts = [
            LoraPart(packed if weight is None else weight, a, b, scale)
            for a, b, weight, packed, scale in zip(
                kept[: 2 * count : 2], kept[1 : 2 * count : 2], kept[2 * count :], ctx.packed, ctx.scales, strict=True
            )
        ]
        a = _stacked(parts, x.dtype)
        rank = len(a) // count
        grad_low = torch.empty_like(low)
        grad_x: torch.Tensor | None = None
        grads_of_b: list[torch.Tensor] = []
        for number, (part, grad) in enumerate(zip(parts, grads, strict=True)):
            dy, mine = grad.contiguous(), slice(number * rank, (number + 1) * rank)
            b = _filled(part.b.to(x.dtype), rank, 1)
            sums = _call(
                "cbt_lora_output", dy, low[:, mine], grad_low[:, mine],
                narrowing=_packed(b, deep=True), scale=part.scale, adds_up=True,
            )  # fmt: skip
            grads_of_b.append(sums[: part.b.shape[1]].T.mul(part.scale).to(part.b.dtype))
            if ctx.needs_input_grad[0]:
                weight = dense(part.weight, x.dtype)
                grad_x = dy @ weight if grad_x is None else grad_x.addmm_(dy, weight)
        if grad_x is not None:
            _call("cbt_lora_widen", grad_x, grad_low, widening=_packed(a, deep=True))
        sums = _call("cbt_lora_input", x, grad_low, adds_up=True)
        made: list[torch.Tensor | None] = [grad_x, None]
        for number, (part, grad_b) in enumerate(zip(parts, grads_of_b, strict=True)):
            made += [sums[number * rank :][: len(part.a)].to(part.a.dtype), grad_b]
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


def _call(
    name: str,
    wide: torch.Tensor,
    low: torch.Tensor,
    *others: torch.Tensor,
    narrowing: torch.Tensor | None = None,
    widening: torch.Tensor | None = None,
    scale: float = 1.0,
    adds_up: bool = False,
) -> torch.Tensor:
    """`wide` [num_rows, n], `low` [num_rows, rank]; returns the sums [rank, n] in float32, or nothing of use."""
    (num_rows, n), rank = wide.shape, low.shape[1]
    size = (rank, n) if adds_up else (0, 0)
    sums, blocks = torch.empty(size), torch.empty(-(-num_rows // _BLOCK_ROWS), *size)
    task = CLoraRows(
        CRows(wide.data_ptr(), wide.stride(0)), CRows(low.data_ptr(), low.stride(0)),
        narrowing.data_ptr() if narrowing is not None else None, widening.data_ptr() if widening is not None else None,
        blocks.data_ptr(), sums.data_ptr(), num_rows, n, rank, int(wide.dtype == torch.bfloat16), scale,
    )  # fmt: skip
    native_training.call(
        name, ctypes.addressof(task), *(value for other in others for value in (other.data_ptr(), other.stride(0)))
    )
    return sums
