"""The reference of an optimizer's step: written out for one value at a time, in any floating type."""

from __future__ import annotations

import torch

from .adamw import Hyper
from .blockwise8 import BLOCK, Moment, dynamic_map


def adamw_step(
    param: torch.Tensor,
    grad: torch.Tensor,
    first: Moment,
    second: Moment,
    step: int,
    hyper: Hyper,
    master: torch.Tensor | None = None,
    grad_scale: torch.Tensor | None = None,
) -> None:
    target = param if master is None else master
    g = grad.to(target.dtype) if grad_scale is None else grad.to(target.dtype) * grad_scale
    m = hyper.beta1 * values_of(first, g) + (1 - hyper.beta1) * g
    v = hyper.beta2 * values_of(second, g) + (1 - hyper.beta2) * g**2
    m_hat = m / (1 - hyper.beta1**step)
    v_hat = v / (1 - hyper.beta2**step)
    target.sub_(hyper.lr * (m_hat / (v_hat.sqrt() + hyper.eps) + hyper.weight_decay * target))
    keep(first, m)
    keep(second, v)
    if master is not None:
        param.copy_(master)


def values_of(moment: Moment, like: torch.Tensor) -> torch.Tensor:
    if isinstance(moment, torch.Tensor):
        return moment
    table = dynamic_map(moment.signed).tolist()
    scales = moment.scales.tolist()
    numbers = [table[code] * scales[i // BLOCK] for i, code in enumerate(moment.codes.tolist())]
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).view(like.shape)


def keep(moment: Moment, values: torch.Tensor) -> None:
    if isinstance(moment, torch.Tensor):
        moment.copy_(values)
        return
    table = dynamic_map(moment.signed).to(values)
    for i, block in enumerate(values.flatten().split(BLOCK)):
        scale = block.abs().max()
        shares = block / scale if scale > 0 else block
        codes = (shares[:, None] - table).abs().argmin(1)
        if not moment.signed:
            codes[(codes == 0) & (block > 0)] = 1
        moment.codes[i * BLOCK : (i + 1) * BLOCK] = codes.to(torch.uint8)
        moment.scales[i] = scale
