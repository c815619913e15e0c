"""Rounding that is learned: an offset for each weight and the ends of each group's grid, by the sign of the gradient.

Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs" (2023; the method that
is called AutoRound): what is rounded is weight / scale + offset, and the gradient passes through the rounding as if it
were not there.
"""

from __future__ import annotations

from typing import Any

import torch

from .quantize_gptq import Rounded
from .quantize_grid import Grid, GridSpec, fit_grid, grouped

# An offset moves a weight to one of the two codes beside it. Ends of a grid move by half at most.
MOST_OFFSET = 0.5
# Without momentum, and with ends as fast as offsets, it comes half as far (correlated inputs, 200 steps).
MOMENTUM = 0.9
ENDS_RATE = 0.1
ENDS = (0.5, 1.5)


class _Rounding(torch.autograd.Function):
    """weight, offsets [num_out, num_groups, group], scales, zeros [num_out, num_groups, 1] -> values of the codes."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: torch.Tensor,
        offsets: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor,
        spec: GridSpec,
    ) -> torch.Tensor:
        steps = weight * _inverse(scales)
        codes = (steps + offsets).round_().add_(zeros)
        inside = (codes >= spec.smallest) & (codes <= spec.largest)
        whole = codes.clamp_(spec.smallest, spec.largest).sub_(zeros)
        ctx.save_for_backward(torch.where(inside, whole - steps, whole), inside, scales)
        return whole * scales

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        of_scale, inside, scales = ctx.saved_tensors
        of_codes = gradient * scales
        of_offsets = of_codes * inside
        of_zeros = (of_offsets - of_codes).sum(-1, keepdim=True)  # a code at an end stays, and its zero moves away
        return None, of_offsets, (gradient * of_scale).sum(-1, keepdim=True), of_zeros, None


class LearnedRounding:
    """One weight [num_out, num_in] on its way to codes; `learned` are the tensors to be changed, `step` changes them.
    It begins with plain rounding.
    """

    def __init__(self, weight: torch.Tensor, spec: GridSpec) -> None:
        self._spec = spec
        self._num_in = weight.shape[1]
        self._weight = grouped(weight, spec)
        start = fit_grid(weight, spec)
        scales, zeros = start.scales[..., None], start.zeros[..., None]
        self._low = (spec.smallest - zeros) * scales
        self._high = (spec.largest - zeros) * scales
        self._offsets = torch.zeros_like(self._weight).requires_grad_()
        self._factors = torch.ones_like(scales).requires_grad_(), torch.ones_like(scales).requires_grad_()
        self._momenta = tuple(torch.zeros_like(tensor) for tensor in self.learned)

    @property
    def learned(self) -> tuple[torch.Tensor, ...]:
        return self._offsets, *self._factors

    def values(self) -> torch.Tensor:
        """What the codes stand for, [num_out, num_in], with a gradient."""
        rounded = _Rounding.apply(self._weight, self._offsets, *self._grid(), self._spec)
        assert isinstance(rounded, torch.Tensor)
        return rounded.flatten(1)[:, : self._num_in]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step of `rate` against the sign of the gradients' running sum; the gradients are dropped."""
        for tensor, momentum in zip(self.learned, self._momenta, strict=True):
            assert tensor.grad is not None
            momentum.mul_(MOMENTUM).add_(tensor.grad)
            tensor.sub_(momentum.sign(), alpha=rate if tensor is self._offsets else rate * ENDS_RATE)
            tensor.grad = None
        self._offsets.clamp_(-MOST_OFFSET, MOST_OFFSET)
        for factor in self._factors:
            factor.clamp_(*ENDS)

    @torch.no_grad()
    def rounded(self) -> Rounded:
        scales, zeros = self._grid()
        codes = (self._weight * _inverse(scales) + self._offsets).round_().add_(zeros)
        codes = codes.clamp_(self._spec.smallest, self._spec.largest).flatten(1)[:, : self._num_in].contiguous()
        return Rounded(codes, Grid(self._spec, self._num_in, scales[..., 0].detach(), zeros[..., 0].detach()))

    def _grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = (end * factor for end, factor in zip((self._low, self._high), self._factors, strict=True))
        scales = _as(self._spec.scale_dtype, (high - low) / (self._spec.largest - self._spec.smallest))
        if self._spec.symmetric:
            return scales, torch.full_like(scales, (self._spec.largest + 1) // 2)
        zeros = -low * _inverse(scales)
        return scales, zeros + (zeros.round().clamp(0, self._spec.largest) - zeros).detach()


def _as(dtype: torch.dtype, x: torch.Tensor) -> torch.Tensor:
    """As it is in `dtype`, with the gradient of what it was: that would vanish in sixteen bits."""
    return x + (x.to(dtype).to(x.dtype) - x).detach()


def _inverse(scales: torch.Tensor) -> torch.Tensor:
    return torch.where(scales > 0, 1 / scales, 0)
