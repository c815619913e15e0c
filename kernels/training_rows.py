"""What training does to rows besides products, in torch, on any device: autograd differentiates it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import plain


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `ops_training.rms_norm`."""
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ops_training.add_rms_norm`."""
    total = x + residual
    return F.rms_norm(total, weight.shape, weight, eps), total


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ops_training.rotary`."""
    return plain.rotary(q, k, cos, sin, interleaved)


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """See `ops_training.silu_mul`."""
    return F.silu(gate) * up
