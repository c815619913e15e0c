"""The door to linear layers whose weights are quantized: one `linear` for every format, on every device."""

from __future__ import annotations

from typing import Any

import torch

from . import linears
from .channels import ChannelInt8, Fp8Weight
from .gpu import launch
from .grouped import GroupedInt4
from .linears import Weight
from .nf4 import Nf4Weight
from .planar import PlanarInt4, PlanarNf4
from .quantized import QuantizedWeight
from .weights import WeightFormat


def place(weight: Weight, device: torch.device) -> Weight:
    """Move a weight (itself: drop it) to a device, and return it as the kernels there read it.

    Where Triton kernels run, four bits are repacked (`planar`); a weight that is only moved there is multiplied in
    plain torch. ValueError for groups of a size that these kernels do not take.
    """
    weight.to(device)
    if launch.unavailable(device):
        return weight
    if isinstance(weight, GroupedInt4):
        return PlanarInt4.from_grouped(weight)
    if isinstance(weight, Nf4Weight):
        return PlanarNf4.from_nf4(weight)
    if isinstance(weight, QuantizedWeight) and weight.format is WeightFormat.INT4:
        return PlanarInt4.from_q4_1(weight)
    if isinstance(weight, QuantizedWeight) and weight.format is WeightFormat.NF4:
        return PlanarNf4.from_quantized(weight)
    return weight


def linear(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., num_in], bias [num_out] -> [..., num_out] of x's type, summed in at least float32.

    `GroupedInt4`, `Nf4Weight` and what `place` makes of them multiply inputs as they are, and pass gradients on to
    them (a weight has none). `ChannelInt8` and `Fp8Weight` round inputs with one scale a token, and take none that
    require a gradient. `QuantizedWeight` rounds them as its format says, but on a card not at all.
    """
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x has the shape {tuple(x.shape)}; the weight takes {weight.shape[1]} inputs")
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"bias has the shape {tuple(bias.shape)} for {weight.shape[0]} outputs")
    wants_gradient = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    if wants_gradient and isinstance(weight, ChannelInt8 | Fp8Weight):
        raise ValueError("x requires a gradient, which rounded inputs have not")
    rows = x.reshape(-1, x.shape[-1])
    if not _has_kernel(weight) or launch.unavailable(x.device):
        out = linears.linear(rows, weight, bias)
    elif wants_gradient:
        out = _Product.apply(rows, weight, bias)
    else:
        out = _on_card(rows, weight, bias)
    return out.view(*x.shape[:-1], weight.shape[0])


def _has_kernel(weight: Weight) -> bool:
    if isinstance(weight, QuantizedWeight):
        return weight.format is WeightFormat.INT8
    return isinstance(weight, PlanarInt4 | PlanarNf4 | ChannelInt8 | Fp8Weight)


def _on_card(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor:
    if isinstance(weight, PlanarInt4):
        from .gpu.linear_int4 import linear_int4

        return linear_int4(x, weight, bias)
    if isinstance(weight, PlanarNf4):
        from .gpu.linear_nf4 import linear_nf4

        return linear_nf4(x, weight, bias)
    if isinstance(weight, Fp8Weight):
        from .gpu.linear_fp8 import linear_fp8

        return linear_fp8(x, weight, bias)
    from .gpu.linear_int8 import linear_int8, linear_int8_a16

    if isinstance(weight, ChannelInt8):
        return linear_int8(x, weight, bias)
    assert isinstance(weight, QuantizedWeight)
    return linear_int8_a16(x, weight, bias)


class _Product(torch.autograd.Function):
    """A product on a card whose gradient is one with the weight as it is kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.weight = weight
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _on_card(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        (gradient,) = gradients
        weight: Weight = ctx.weight
        of_x = of_bias = None
        if ctx.needs_input_grad[0]:
            total = gradient.new_zeros(len(gradient), weight.shape[1], dtype=torch.float32)
            for first, last in linears.slices(weight):
                total += gradient[:, first:last] @ _rows(weight, first, last, gradient.dtype)
            order = weight.order if isinstance(weight, PlanarInt4) else None
            kept = total.to(gradient.dtype)
            of_x = kept if order is None else torch.empty_like(kept).index_copy_(1, order, kept)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return of_x, None, of_bias


def _rows(weight: Weight, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of a weight on a card, columns in the order in which they are kept."""
    if isinstance(weight, PlanarInt4 | PlanarNf4):
        from .gpu.four_bits import dense

        return dense(weight, dtype, first, last)
    assert isinstance(weight, QuantizedWeight)
    return weight.rows(slice(first, last), dtype)
