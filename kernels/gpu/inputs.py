"""What every linear layer checks of its inputs."""

from __future__ import annotations

import torch

from .launch import check

FLOATING = (torch.float32, torch.float16, torch.bfloat16)


def check_inputs(x: torch.Tensor, shape: tuple[int, int]) -> None:
    """ValueError where x is no floating [num_tokens, num_in] of a weight of that shape."""
    check("x", x, dtypes=FLOATING, ndim=2, like=x)
    if x.shape[1] != shape[1]:
        raise ValueError(f"x has the shape {tuple(x.shape)}; the weight takes {shape[1]} inputs")


def check_bias(bias: torch.Tensor | None, x: torch.Tensor, shape: tuple[int, int]) -> None:
    """ValueError where there is a bias that is no floating [num_out]."""
    if bias is None:
        return
    check("bias", bias, dtypes=FLOATING, ndim=1, like=x)
    if len(bias) != shape[0]:
        raise ValueError(f"bias has {len(bias)} values for {shape[0]} outputs")
