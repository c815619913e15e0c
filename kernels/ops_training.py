"""The door to what only training needs: each op has one signature here and picks its path by device.

A card takes the Triton path where it can run (`gpu.launch.unavailable` says why not), a processor the native one
(`native_training.unavailable`), everything else torch's. All are differentiable, once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import adamw, cross_entropy, lora_train, native_lora, native_training, training_rows
from .adamw import Hyper
from .blockwise8 import Moment
from .gpu import launch
from .lora_train import FrozenWeight, LoraPart


def _takes_triton(x: torch.Tensor) -> bool:
    """Float64 is for checks, and stays with torch."""
    return x.device.type == "cuda" and x.dtype != torch.float64 and not launch.unavailable(x.device)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., hidden] scaled to root mean square one (in at least float32), times weight [hidden] of the same type."""
    _check_norm(x, weight)
    if native_training.takes(x, weight):
        return native_training.rms_norm(x, weight, eps)
    return training_rows.rms_norm(x, weight, eps)


def rms_norm_and_input(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x), x), of which a gradient for both is one pass."""
    _check_norm(x, weight)
    if native_training.takes(x, weight):
        return native_training.rms_norm_and_input(x, weight, eps)
    return training_rows.rms_norm(x, weight, eps), x


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual), each [..., hidden] and new."""
    _check_norm(x, weight)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(f"residual is {residual.dtype} of {tuple(residual.shape)}, x {x.dtype} of {tuple(x.shape)}")
    if native_training.takes(x, residual, weight):
        return native_training.add_rms_norm(x, residual, weight, eps)
    return training_rows.add_rms_norm(x, residual, weight, eps)


def _check_norm(x: torch.Tensor, weight: torch.Tensor) -> None:
    if weight.ndim != 1 or x.shape[-1:] != weight.shape or weight.dtype != x.dtype:
        raise ValueError(
            f"a weight of {weight.dtype} {tuple(weight.shape)} does not go with rows of {x.dtype} {tuple(x.shape)}"
        )


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding of the first 2 * num_pairs dimensions of each head; the others stay.

    q [num_tokens, num_heads, head_dim], k [num_tokens, num_kv_heads, head_dim] of one type, of any strides between
    tokens and heads; cos, sin [num_tokens, num_pairs], of that type or float32, which get no gradient. Dimension i
    turns with i + num_pairs (halves), or, interleaved, 2 i with 2 i + 1. Returns the turned q and k.
    """
    if q.ndim != 3 or k.ndim != 3 or q.shape[::2] != k.shape[::2] or q.dtype != k.dtype:
        raise ValueError(f"q is {q.dtype} of {tuple(q.shape)}, k {k.dtype} of {tuple(k.shape)}")
    if cos.shape != sin.shape or cos.dtype != sin.dtype or cos.ndim != 2 or len(cos) != len(q):
        raise ValueError(f"cos is {cos.dtype} of {tuple(cos.shape)}, sin {sin.dtype} of {tuple(sin.shape)}")
    if 2 * cos.shape[1] > q.shape[2]:
        raise ValueError(f"heads of {q.shape[2]} have no {cos.shape[1]} pairs")
    if native_training.takes(q, k) and cos.dtype in (q.dtype, torch.float32):
        return native_training.rotary(q, k, cos, sin, interleaved)
    return training_rows.rotary(q, k, cos, sin, interleaved)


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, both [..., intermediate] of one type. Saves the two for the backward pass and nothing else."""
    if gate.shape != up.shape or gate.dtype != up.dtype or not gate.ndim:
        raise ValueError(f"gate is {gate.dtype} of {tuple(gate.shape)}, up {up.dtype} of {tuple(up.shape)}")
    if native_training.takes(gate, up):
        return native_training.silu_mul(gate, up)
    return training_rows.silu_mul(gate, up)


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
    return cross_entropy.linear_cross_entropy(hidden, weight, targets, settings, _row_losses)


def _row_losses(
    logits: torch.Tensor, targets: torch.Tensor, settings: cross_entropy.Settings, with_gradient: bool
) -> torch.Tensor:
    """`cross_entropy.RowLosses`, natively where that takes the logits."""
    if settings.softcap or logits.stride(-1) != 1 or not native_training.takes(logits):
        return cross_entropy.row_losses(logits, targets, settings, with_gradient)
    return native_training.row_losses(
        logits, targets, settings.ignore_index, settings.label_smoothing, with_gradient
    )  # fmt: skip


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
    return lora_linears(x, (LoraPart(weight, a, b, scale, bias),))[0]


def lora_linears(x: torch.Tensor, parts: Sequence[LoraPart]) -> tuple[torch.Tensor, ...]:
    """`lora_linear` of several layers that share x, whose low-rank sides are computed together where they can be."""
    if _takes_triton(x):
        from .gpu import lora_train as on_card

        return tuple(on_card.lora_linear(x, p.weight, p.a, p.b, p.scale, p.bias) for p in parts)
    if native_lora.takes(x, parts):
        for part in parts:
            lora_train.check(x, part)
        made = native_lora.lora_linears(x.reshape(-1, x.shape[-1]), parts)
        return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in made)
    steps = lora_train.TorchSteps()
    return tuple(lora_train.lora_linear(x, p.weight, p.a, p.b, p.scale, p.bias, steps) for p in parts)


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
