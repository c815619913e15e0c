"""Scales of inputs that make a model easier to round: what an input is divided by, its weights are multiplied with.

AWQ (Lin et al., "AWQ: Activation-aware Weight Quantization", 2023): inputs that matter get finer steps; how much so is
searched for. SmoothQuant (Xiao et al., 2022): part of an activation's range moves into the weights, so that both fit
eight bits. Either way the model computes the same as before, until it is rounded.

An input comes from a channel of what is computed before it, whose weights take the division: `sources` int64 [num_in]
names it where that is not one to one (query heads that share a value head). Scales are those of channels.
"""

from __future__ import annotations

from typing import Literal

import torch

from .channels import MAX_INT8, quantize_rows
from .quantize_grid import GridSpec, fit_grid

# Exponents that are tried lie between 0 (no scales) and 1.
EXPONENTS = 20
# As many alphas are tried.
ALPHAS = 20
SMALLEST = 1e-5


def output_error(difference: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """The mean square error of a product's outputs, summed over these, for a `difference` [num_out, num_in] of its
    weights; hessian [num_in, num_in] is the mean of x x^T. A scalar."""
    return ((difference @ hessian) * difference).sum()


def awq_scales(
    weight: torch.Tensor, hessian: torch.Tensor, spec: GridSpec, sources: torch.Tensor | None = None
) -> torch.Tensor:
    """Scales [num_channels] for weight [num_out, num_in], all products of these inputs stacked.

    They are powers of the inputs' root mean squares. The exponent is the one of which plain rounding leaves the least
    output error, 0 among them; their geometric middle is 1.
    """
    squares = hessian.diagonal().clamp(min=0).to(weight.dtype)
    activity = _of_channels(squares, sources, "mean").sqrt().clamp(min=SMALLEST)
    best, least = torch.ones_like(activity), torch.inf
    for step in range(EXPONENTS + 1):
        scales = activity ** (step / EXPONENTS)
        scales = scales / (scales.max() * scales.min()).sqrt()
        each = scales if sources is None else scales[sources]
        scaled = weight * each
        grid = fit_grid(scaled, spec)
        error = float(output_error(grid.values(grid.codes(scaled)) / each - weight, hessian))
        if error < least:
            best, least = scales, error
    return best


def smooth_scales(
    weight: torch.Tensor, largest: torch.Tensor, alpha: float, sources: torch.Tensor | None = None
) -> torch.Tensor:
    """Scales [num_channels]: largest^alpha / (largest weight)^(1 - alpha). `largest` [num_in]: of each input's
    magnitudes. `alpha` 0.5 divides the range evenly; 1 gives all of it to the weights."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is between 0 and 1, not {alpha}")
    inputs = _of_channels(largest.to(weight.dtype), sources, "amax").clamp(min=SMALLEST)
    weights = _of_channels(weight.abs().amax(0), sources, "amax").clamp(min=SMALLEST)
    scales = inputs**alpha / weights ** (1 - alpha)
    return scales / (scales.max() * scales.min()).sqrt()


def searched_smooth_scales(
    weight: torch.Tensor, inputs: torch.Tensor, largest: torch.Tensor, sources: torch.Tensor | None = None
) -> torch.Tensor:
    """`smooth_scales` with the alpha of which the least is lost of `inputs` [num_tokens, num_in], as they come, when
    both sides are rounded to eight bits; no scales at all are tried too.

    One alpha does not suit all products: inputs behind a gate have a few that are many times larger than the rest. What
    is lost of a token counts as a share of its outputs, or a few tokens with huge ones would decide for all others.
    """
    wanted = inputs @ weight.T
    size = wanted.square().sum(1).clamp(min=torch.finfo(wanted.dtype).tiny)
    tried = [smooth_scales(weight, largest, step / ALPHAS, sources) for step in range(1, ALPHAS + 1)]
    candidates = [torch.ones_like(tried[0]), *tried]

    def lost(scales: torch.Tensor) -> float:
        each = scales if sources is None else scales[sources]
        difference = _rounded(inputs / each) @ _rounded(weight * each).T - wanted
        return float((difference.square().sum(1) / size).sum())

    return min(candidates, key=lost)


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """x [num_rows, n] by way of eight bits, with a scale for each row."""
    codes, scales = quantize_rows(x, torch.int8, MAX_INT8)
    return codes * scales[:, None]


def _of_channels(values: torch.Tensor, sources: torch.Tensor | None, reduce: Literal["mean", "amax"]) -> torch.Tensor:
    """From inputs [num_in] to the channels that they come from."""
    if sources is None:
        return values
    channels = values.new_zeros(int(sources.max()) + 1)
    return channels.scatter_reduce_(0, sources, values, reduce, include_self=False)
