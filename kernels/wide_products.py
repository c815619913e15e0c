"""Products in float32 on a CPU without a gradient, by oneDNN: its code uses all that the processor has. torch itself
takes MKL for them, which on AMD's processors keeps to 256 bits and is half as fast."""

from __future__ import annotations

import torch


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., num_in], weight [num_out, num_in], bias [num_out] -> [..., num_out]; as `torch.nn.functional.linear`,
    which it is for all that oneDNN does not take: other types and devices, where gradients are wanted, under autocast,
    and where torch was built without it."""
    if not _taken(x, weight):
        return torch.nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def second_moment(x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    """x [num_rows, n], y [num_rows, m] (x itself unless given) -> the sum of x y^T over the rows, [n, m]."""
    turned = x.T.contiguous()
    return linear(turned, turned if y is None else y.T.contiguous())


def _taken(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
