"""One step of AdamW on one parameter, in place, with moments in float32 or eight bits: what all paths share, and the
path in torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .blockwise8 import BLOCK, Blockwise8, Moment

# Values at a time: what is made on the way stays small, in memory and in caches.
SLICE = 1 << 20


@dataclass(frozen=True)
class Hyper:
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (arXiv:1711.05101)."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def factors(self, step: int) -> tuple[float, float, float]:
        """Of the step, the first being 1: what the parameter keeps, the step's size, and what the root of the second
        moment is divided by."""
        return (
            1 - self.lr * self.weight_decay,
            self.lr / (1 - self.beta1**step),
            math.sqrt(1 - self.beta2**step),
        )


def new_moments(param: torch.Tensor, *, eight_bits: bool = False) -> tuple[Moment, Moment]:
    """The moments before the first step: in the parameter's type but at least float32, or in eight bits."""
    if eight_bits:
        num, device = param.numel(), param.device
        return Blockwise8.zeros(num, signed=True, device=device), Blockwise8.zeros(num, signed=False, device=device)
    wide = torch.promote_types(param.dtype, torch.float32)
    return torch.zeros_like(param, dtype=wide), torch.zeros_like(param, dtype=wide)


def check(
    param: torch.Tensor,
    grad: torch.Tensor,
    first: Moment,
    second: Moment,
    step: int,
    master: torch.Tensor | None,
    grad_scale: torch.Tensor | None,
) -> None:
    """ValueError, naming the argument, where they do not go together."""
    wide = torch.promote_types(param.dtype, torch.float32)
    tensors = {"param": param, "grad": grad, "master": master}
    for name, signed, moment in (("first", True, first), ("second", False, second)):
        if isinstance(moment, torch.Tensor):
            tensors[name] = moment
        elif moment.signed != signed:
            raise ValueError(f"the {name} moment is of the {'signed' if moment.signed else 'unsigned'} map")
        elif moment.codes.shape != (param.numel(),) or moment.codes.device != param.device:
            raise ValueError(f"the {name} moment has {len(moment.codes)} values on {moment.codes.device}, not param's")
    if isinstance(first, Blockwise8) != isinstance(second, Blockwise8):
        raise ValueError("one moment is in eight bits and the other is not")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.shape != param.shape or tensor.device != param.device or not tensor.is_contiguous():
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)} and the strides {tensor.stride()} on {tensor.device}; "
                f"contiguous and like param, {tuple(param.shape)} on {param.device}, is needed"
            )
        if not tensor.dtype.is_floating_point or (name not in ("param", "grad") and tensor.dtype != wide):
            raise ValueError(f"{name} is {tensor.dtype}; beside a param of {param.dtype} it is {wide}")
    if grad_scale is not None and (grad_scale.numel() != 1 or grad_scale.device != param.device):
        raise ValueError(f"grad_scale has the shape {tuple(grad_scale.shape)} on {grad_scale.device}")
    if step < 1:
        raise ValueError(f"step is {step}; the first is 1")


@torch.no_grad()
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
    """See `ops_training.adamw_step`."""
    check(param, grad, first, second, step, master, grad_scale)
    wide = torch.promote_types(param.dtype, torch.float32)
    flat, flat_grad = param.view(-1), grad.view(-1)
    flat_master = None if master is None else master.view(-1)
    keep, size, root = hyper.factors(step)
    for begin in range(0, param.numel(), SLICE):
        part = slice(begin, min(begin + SLICE, param.numel()))
        values = flat[part].to(wide) if flat_master is None else flat_master[part]
        g = flat_grad[part].to(wide)
        if grad_scale is not None:
            g = g * grad_scale.to(wide)
        m, v = (_unpacked(moment, part, wide) for moment in (first, second))
        m.lerp_(g, 1 - hyper.beta1)
        v.mul_(hyper.beta2).addcmul_(g, g, value=1 - hyper.beta2)
        denominator = v.sqrt().div_(root).add_(hyper.eps)
        values.mul_(keep).addcdiv_(m, denominator, value=-size)
        for moment, new in ((first, m), (second, v)):
            if isinstance(moment, Blockwise8):
                moment.write(new, begin)
        if values.data_ptr() != flat[part].data_ptr():
            flat[part] = values.to(flat.dtype)


def _unpacked(moment: Moment, part: slice, dtype: torch.dtype) -> torch.Tensor:
    """The moment itself, or a copy of what is packed."""
    if isinstance(moment, Blockwise8):
        return moment.dequantize(part.start, part.stop, dtype)
    return moment.view(-1)[part]


assert SLICE % BLOCK == 0
