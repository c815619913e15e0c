"""Attention of training natively on a CPU: native/varlen.h and varlen_gradient.h as an autograd function."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .native_training import CStrided, call, is_bf16, strided, with_whole_rows

HEAD_DIMS = range(16, 257, 16)


class CVarlen(ctypes.Structure):
    """`Varlen` of native/varlen.h."""

    _fields_ = (
        *((name, CStrided) for name in ("q", "k", "v", "out")),
        ("lse", ctypes.c_void_p),
        ("bounds", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("num_seqs", "num_heads", "num_kv_heads", "head_dim", "causal", "window")),
        ("scale", ctypes.c_float),
        ("is_bf16", ctypes.c_int32),
    )


class CVarlenGradient(ctypes.Structure):
    """`VarlenGradient` of native/varlen_gradient.h."""

    _fields_ = (
        ("forward", CVarlen),
        *((name, CStrided) for name in ("grad", "grad_q", "grad_k", "grad_v")),
        ("delta", ctypes.c_void_p),
    )


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float,
    causal: bool,
    window: int,
) -> torch.Tensor:
    """See `ops_attention.varlen_attention`; heads are of `HEAD_DIMS`, and the bounds have been looked at."""
    out = _Varlen.apply(q, k, v, cu_seqlens.to("cpu", torch.int64).contiguous(), scale, causal, window)
    assert isinstance(out, torch.Tensor)
    return out


class _Varlen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bounds: torch.Tensor,
        scale: float,
        causal: bool,
        window: int,
    ) -> torch.Tensor:
        q, k, v = (with_whole_rows(x) for x in (q, k, v))
        out, lse = q.new_empty(q.shape), torch.empty(q.shape[:2])
        ctx.settings = scale, causal, window
        task = _varlen(q, k, v, out, lse, bounds, *ctx.settings)
        call("cbt_varlen", ctypes.addressof(task))
        ctx.save_for_backward(q, k, v, out, lse, bounds)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        q, k, v, out, lse, bounds = ctx.saved_tensors
        grad = with_whole_rows(grads[0])
        made = tuple(x.new_empty(x.shape) for x in (q, k, v))
        delta = torch.empty_like(lse)
        task = CVarlenGradient(
            _varlen(q, k, v, out, lse, bounds, *ctx.settings), strided(grad), *map(strided, made), delta.data_ptr()
        )
        call("cbt_varlen_gradient", ctypes.addressof(task), len(q))
        return *made, None, None, None, None


def _varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    bounds: torch.Tensor,
    scale: float,
    causal: bool,
    window: int,
) -> CVarlen:
    return CVarlen(
        *map(strided, (q, k, v, out)), lse.data_ptr(), bounds.data_ptr(),
        len(bounds) - 1, q.shape[1], k.shape[1], q.shape[2], int(causal), window, scale, is_bf16(q),
    )  # fmt: skip
