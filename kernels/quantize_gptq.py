"""GPTQ: columns are rounded one after another, and those still to come make up for the error of each.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022): the inverse
of the Hessian by Cholesky, blocks of columns, and inputs in the order of their activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .quantize_grid import Grid, GridSpec, clip_grid, fit_grid, nearest

BLOCK = 128
# Share of the mean diagonal that is added to the diagonal; tenfold each time that it does not suffice.
DAMPING = 0.01
MAX_DAMPING = 1.0
# The same where weights are fitted to inputs: more, since what is fitted is small and the inputs are few.
FIT_DAMPING = 0.03


@dataclass(frozen=True)
class Rounded:
    """codes [num_out, num_in] (whole numbers in a floating type, inputs in their own order) on a grid.

    `order`: int64 [num_in] where the groups are not of inputs in a row: the inputs in the order in which every
    `group_size` of them share a grid. None where they are in their own.
    """

    codes: torch.Tensor
    grid: Grid
    order: torch.Tensor | None = None

    def groups(self) -> torch.Tensor:
        """int64 [num_in]: the group of each input."""
        if self.order is None:
            return self.grid.groups
        return torch.empty_like(self.order).index_copy_(0, self.order, self.grid.groups)

    def values(self) -> torch.Tensor:
        """What the codes stand for, [num_out, num_in]."""
        scales, zeros = self.grid.columns(self.groups())
        return (self.codes - zeros) * scales


def round_to_nearest(weight: torch.Tensor, spec: GridSpec) -> Rounded:
    """Plain rounding of weight [num_out, num_in]."""
    grid = fit_grid(weight, spec)
    return Rounded(grid.codes(weight), grid)


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    spec: GridSpec,
    *,
    act_order: bool = True,
    static_groups: bool = True,
    clip: bool = True,
    damping: float = DAMPING,
) -> Rounded:
    """weight [num_out, num_in]; hessian [num_in, num_in], the sum or mean of x x^T over inputs x.

    `act_order`: inputs of the largest mean square first. `static_groups`: grids are fitted before anything is rounded,
    to inputs in their own order, so that none has to be written; else to each group as its turn comes, which makes up
    for what was rounded before it, and with `act_order` leaves an order. `clip`: grids are drawn in as AWQ
    does. ValueError for a Hessian that is not finite.
    """
    num_in = weight.shape[1]
    if hessian.shape != (num_in, num_in):
        raise ValueError(f"hessian is {list(hessian.shape)}; the weight has {num_in} inputs")
    importance = hessian.diagonal()
    order = torch.arange(num_in, device=weight.device)
    if act_order:
        order = torch.argsort(importance, descending=True, stable=True)
    inverse = inverse_factor(hessian[order][:, order], damping).to(weight.dtype)
    # Turned, so that what is rounded in a step lies together: [num_in, num_out].
    left = weight.T[order].contiguous()
    # Inputs that were always zero say nothing of their weights, and then zero is as good as any.
    left[importance[order] == 0] = 0
    fixed = _grid(weight, hessian, spec, clip) if static_groups else None
    group = spec.group(num_in)
    of_column = order // group if fixed else torch.arange(num_in, device=order.device) // group
    codes = torch.empty_like(left)
    grids: list[Grid] = []
    scales = zeros = left.new_empty(0)
    for first in range(0, num_in, BLOCK):
        last = min(first + BLOCK, num_in)
        errors = torch.empty_like(left[first:last])
        for column, which in enumerate(of_column[first:last].tolist(), first):
            if fixed is not None:
                scales, zeros = fixed.scales[:, which], fixed.zeros[:, which]
            elif column % group == 0:
                end = min(column + group, num_in)
                fresh = left[column:end].clone()
                if end > last:  # what this block's errors have not reached yet
                    fresh[last - column :] -= inverse[first:column, last:end].T @ errors[: column - first]
                own = order[column:end]
                grids.append(_grid(fresh.T, hessian[own][:, own], spec, clip))
                scales, zeros = grids[-1].scales[:, 0], grids[-1].zeros[:, 0]
            codes[column] = nearest(left[column], scales, zeros, spec)
            error = (left[column] - (codes[column] - zeros) * scales) / inverse[column, column]
            errors[column - first] = error
            left[column + 1 : last].addr_(inverse[column, column + 1 : last], error, alpha=-1)
        left[last:] -= inverse[first:last, last:].T @ errors
    own_order = torch.empty_like(codes).index_copy_(0, order, codes).T.contiguous()
    if fixed is not None:
        return Rounded(own_order, fixed)
    scales, zeros = (torch.cat([getattr(grid, name) for grid in grids], 1) for name in ("scales", "zeros"))
    return Rounded(own_order, Grid(spec, num_in, scales, zeros), order if act_order else None)


def fit_to_inputs(weight: torch.Tensor, hessian: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """The weight [num_out, num_in] that gives of inputs x, in least squares, what `weight` gives of other inputs y.

    hessian, shift [num_in, num_in]: the means of x x^T and of (y - x) x^T, x as it comes in a model whose layers before
    are rounded, y in the model itself. Rounding this one by GPTQ has the objective of Li et al., "GPTAQ: Efficient
    Finetuning-Free Quantization for Asymmetric Calibration" (2025), which makes up for what was lost before.
    """
    wide = hessian.to(torch.float64)
    damped = wide + torch.eye(len(wide), dtype=torch.float64, device=wide.device) * (
        FIT_DAMPING * wide.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    )
    moved = torch.linalg.solve(damped, (weight @ shift).to(torch.float64), left=False)
    return weight + moved.to(weight.dtype)


def _grid(weight: torch.Tensor, hessian: torch.Tensor, spec: GridSpec, clip: bool) -> Grid:
    return clip_grid(weight, hessian, spec) if clip else fit_grid(weight, spec)


def inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor U of the damped Hessian's inverse, U^T U, float64.

    Row i of U, over its diagonal, says how the inputs after i make up for an error of i.
    """
    wide = hessian.to(torch.float64)
    if not bool(wide.isfinite().all()):
        raise ValueError("the hessian is not finite: an input of this product overflowed")
    mean = wide.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    eye = torch.eye(len(wide), dtype=torch.float64, device=wide.device)
    while damping <= MAX_DAMPING:
        factor, failed = torch.linalg.cholesky_ex(wide + eye * (damping * mean))
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not int(failed):
                return upper
        damping *= 10
    raise ValueError("the hessian is not positive, however much it is damped")
