"""The door to what only training needs: each op has one signature here and picks its path by device.

A card takes the Triton path where it can run (`gpu.launch.unavailable` says why not), everything else torch's.
"""

from __future__ import annotations

import torch

from . import adamw, cross_entropy, lora_train
from .adamw import Hyper
from .blockwise8 import Moment
from .gpu import launch
from .lora_train import FrozenWeight


def _takes_triton(x: torch.Tensor) -> bool:
    """Float64 is for checks, and stays with torch."""
    return x.device.type == "cuda" and x.dtype != torch.float64 and not launch.unavailable(x.device)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    ignore_index: int = -100,
    softcap: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the logits hidden @ weight.T against targets, of which only a chunk is ever in memory.

    hidden [num_tokens, hidden], weight [vocab, hidden] of the same type, targets int64 [num_tokens]. Returns the sum of
    the losses, a scalar in at least float32 that is differentiable by hidden and weight (once), and how many targets
    were not `ignore_index`, int64: divide by the count of a whole step.

    `softcap`: logits x become softcap * tanh(x / softcap) (0: as they are). `label_smoothing`: that share of the loss
    is against the uniform distribution. The gradients are made in the forward pass where they are asked for. A target
    that is neither ignored nor a token is a ValueError, on a card a loss of NaN, since to look would be to wait.
    """
    if _takes_triton(hidden):
        from .gpu import cross_entropy as on_card

        return on_card.linear_cross_entropy(hidden, weight, targets, ignore_index, softcap, label_smoothing)
    settings = cross_entropy.Settings(ignore_index, softcap, label_smoothing)
    return cross_entropy.linear_cross_entropy(hidden, weight, targets, settings, cross_entropy.row_losses)


def lora_linear(
    x: torch.Tensor,
    weight: FrozenWeight,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """x @ weight.T + scale * (x @ a.T) @ b.T + bias, differentiable by x, a and b (once); weight and bias are frozen.

    x [..., num_in]; weight [num_out, num_in], a tensor of x's type, or anything that has a shape and dequantizes (it is
    unpacked once in each direction); a [rank, num_in] and b [num_out, rank] of any floating type, computed in x's type
    and with gradients of their own. Saves x and the rank-sized x @ a.T for the backward pass and nothing else.
    """
    if _takes_triton(x):
        from .gpu import lora_train as on_card

        return on_card.lora_linear(x, weight, a, b, scale, bias)
    return lora_train.lora_linear(x, weight, a, b, scale, bias, lora_train.TorchSteps())


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
    """One step of AdamW on one parameter, in place; `step` counts from 1.

    param and grad are contiguous, of one shape and any floating type. The moments are those of `adamw.new_moments`:
    tensors in at least float32, or in eight bits. `master`: the parameter in at least float32, which is stepped in its
    place, and rounded into it. `grad_scale`: a tensor of one number that the gradient is multiplied by first (what
    clipping to a norm computes, without waiting for it).
    """
    if _takes_triton(param):
        from .gpu import adamw as on_card

        on_card.adamw_step(param, grad, first, second, step, hyper, master, grad_scale)
    else:
        adamw.adamw_step(param, grad, first, second, step, hyper, master, grad_scale)
