"""What GPTQ leaves is gone over again: steps of grids are fitted to the codes that were chosen, and codes to the steps.

Codes one input at a time, each to the best that the others allow, as in Behdin et al., "QuantEase: Optimization-based
Quantization for Language Models" (2023). GPTQ rounds an input knowing only those that follow; here all others count.
Neither half can make the error larger.
"""

from __future__ import annotations

import torch

from .quantize_gptq import BLOCK, Rounded, damped
from .quantize_grid import Grid, nearest

ROUNDS = 4


def refine(weight: torch.Tensor, hessian: torch.Tensor, rounded: Rounded, rounds: int = ROUNDS) -> Rounded:
    """weight [num_out, num_in]; hessian [num_in, num_in], the mean of x x^T over inputs x, damped as GPTQ's.

    The result stands for weights whose outputs are at least as near to those of `weight` as `rounded`'s, by the damped
    Hessian. Zeros stay as they are.
    """
    wide = damped(hessian).to(weight.dtype)
    for _ in range(rounds):
        rounded = _fit_codes(weight, wide, _fit_scales(weight, wide, rounded))
    return rounded


def _fit_scales(weight: torch.Tensor, hessian: torch.Tensor, rounded: Rounded) -> Rounded:
    """All scales of an output at once, in least squares: one small system for each."""
    grid, groups = rounded.grid, rounded.groups()
    steps = rounded.codes - grid.zeros.index_select(1, groups)
    num_groups = grid.scales.shape[1]
    wanted = weight @ hessian
    left = steps.new_empty(len(steps), num_groups, num_groups)
    right = steps.new_empty(len(steps), num_groups)
    for group in range(num_groups):
        inputs = (groups == group).nonzero().squeeze(1)
        own = steps[:, inputs]
        left[:, group].zero_().index_add_(1, groups, (own @ hessian[inputs]) * steps)
        right[:, group] = (own * wanted[:, inputs]).sum(1)
    left, right = left.to(torch.float64), right.to(torch.float64)
    # A group whose codes are all zeros has no say in its scale: it keeps it.
    none = left.diagonal(dim1=1, dim2=2) <= 0
    left += torch.diag_embed(none.to(left.dtype))
    right = torch.where(none, grid.scales.to(right.dtype), right)
    found, failed = torch.linalg.solve_ex(left, right)
    spec = grid.spec
    fitted = found.to(spec.scale_dtype).to(weight.dtype)
    good = (failed == 0) & ((fitted > 0) & fitted.isfinite()).all(1)
    tried = Grid(spec, grid.num_in, torch.where(good[:, None], fitted, grid.scales), grid.zeros)
    return _better(weight, hessian, rounded, Rounded(rounded.codes, tried, rounded.order))


def _better(weight: torch.Tensor, hessian: torch.Tensor, old: Rounded, new: Rounded) -> Rounded:
    """The scales of `new` for the outputs of which they leave less, else those of `old`; codes are the same."""
    lost = [
        ((difference @ hessian) * difference).sum(1) for difference in (old.values() - weight, new.values() - weight)
    ]
    scales = torch.where((lost[1] < lost[0])[:, None], new.grid.scales, old.grid.scales)
    return Rounded(old.codes, Grid(old.grid.spec, old.grid.num_in, scales, old.grid.zeros), old.order)


def _fit_codes(weight: torch.Tensor, hessian: torch.Tensor, rounded: Rounded) -> Rounded:
    """One round over all inputs, in their order."""
    spec = rounded.grid.spec
    scales, zeros = (part.T.contiguous() for part in rounded.grid.columns(rounded.groups()))
    codes = rounded.codes.T.contiguous()  # turned, so that what is rounded in a step lies together
    values = (codes - zeros) * scales
    pull = hessian @ (weight.T - values)
    least = torch.finfo(hessian.dtype).tiny
    for first in range(0, len(codes), BLOCK):
        last = min(first + BLOCK, len(codes))
        moved = torch.empty_like(values[first:last])
        for column in range(first, last):
            best = values[column] + pull[column] / hessian[column, column].clamp(min=least)
            codes[column] = nearest(best, scales[column], zeros[column], spec)
            moved[column - first] = values[column] - (codes[column] - zeros[column]) * scales[column]
            pull[column:last].addr_(hessian[column:last, column], moved[column - first])
        pull[last:].addmm_(hessian[last:, first:last], moved)
    return Rounded(codes.T.contiguous(), rounded.grid, rounded.order)
