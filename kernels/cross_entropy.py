"""Cross-entropy of a linear output layer that never holds all logits: loss and gradients, some tokens at a time.

The softmax of a token needs nothing of the others, and the loss is a sum. So the forward pass takes a chunk of tokens,
computes its logits, turns them in place into the gradient of the loss by the logits, multiplies that into the gradients
of hidden states and weight while it is there, and lets it go; the backward pass only scales what is ready. One chunk of
logits is in memory, where the plain way holds all of them, their softmax and their gradient. The two products are done
once each, as in the plain way; a forward pass without gradients does the first alone.

The idea is that of Liger Kernel's fused linear cross-entropy (arXiv:2410.10989); Wijmans et al., "Cut Your Losses"
(arXiv:2411.09009) goes without even one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

# Logits that are there at once. A chunk of a thousand tokens and more keeps a card's products busy; a processor's own
# caches are small, and its products are no faster for more rows than that.
CHUNK_BYTES = {"cpu": 1 << 26, "cuda": 1 << 28}
# Rows of the weight whose gradient is added at once, where that is kept in a wider type than it is computed in.
WEIGHT_ROWS = 8192


@dataclass(frozen=True)
class Settings:
    """What the loss of a token is made of, beside its logits; see `ops_training.linear_cross_entropy`."""

    ignore_index: int
    softcap: float
    label_smoothing: float


# (logits [num_rows, vocab], targets [num_rows], settings, with_gradient) -> losses [num_rows] in at least float32; 0
# where ignored. With gradient, the logits become the gradient of the losses' sum by themselves, before the cap.
RowLosses = Callable[[torch.Tensor, torch.Tensor, Settings, bool], torch.Tensor]


def row_losses(logits: torch.Tensor, targets: torch.Tensor, settings: Settings, with_gradient: bool) -> torch.Tensor:
    """`RowLosses` in torch, on any device."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))  # the logits themselves where they are wide
    capped = settings.softcap * torch.tanh(wide / settings.softcap) if settings.softcap else wide
    counted = targets != settings.ignore_index
    index = targets.where(counted, 0)[:, None]
    log_sum = capped.logsumexp(-1, keepdim=True)
    smoothing = settings.label_smoothing
    losses = log_sum[:, 0] - (1 - smoothing) * capped.gather(1, index)[:, 0]
    if smoothing:
        losses = losses - smoothing * capped.mean(-1)
    losses = losses.where(counted, 0)
    if with_gradient:
        slope = 1 - (capped / settings.softcap).square_() if settings.softcap else None
        gradient = torch.sub(capped, log_sum, out=wide if slope is None else None).exp_()
        if smoothing:
            gradient.sub_(smoothing / logits.shape[1])
        gradient.scatter_add_(1, index, torch.full_like(index, -(1 - smoothing), dtype=gradient.dtype))
        if slope is not None:
            gradient.mul_(slope)
        gradient.masked_fill_(~counted[:, None], 0)
        if gradient.data_ptr() != logits.data_ptr():
            logits.copy_(gradient)
    return losses


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, settings: Settings, losses_of: RowLosses
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ops_training.linear_cross_entropy`."""
    _check(hidden, weight, targets, settings)
    count = (targets != settings.ignore_index).sum()
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _Chunked.apply(hidden, weight, targets, settings, losses_of), count  # pyright: ignore[reportReturnType]
    return _forward(hidden, weight, targets, settings, losses_of, None, None), count


def _check(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, settings: Settings) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} does not go with a weight of {tuple(weight.shape)}")
    if hidden.dtype != weight.dtype or not hidden.dtype.is_floating_point:
        raise ValueError(f"hidden is {hidden.dtype} and weight {weight.dtype}: one floating type is needed")
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"targets is {targets.dtype} of the shape {tuple(targets.shape)}; int64 of {len(hidden)} is needed"
        )
    if not hidden.device == weight.device == targets.device:
        raise ValueError(f"hidden is on {hidden.device}, weight on {weight.device}, targets on {targets.device}")
    if settings.softcap < 0 or not 0 <= settings.label_smoothing < 1:
        raise ValueError(f"softcap is {settings.softcap}, label_smoothing {settings.label_smoothing}")
    if not targets.is_cuda and len(targets):  # on a card looking would wait for it: there such a loss is NaN
        counted = targets[targets != settings.ignore_index]
        if len(counted) and not 0 <= int(counted.min()) <= int(counted.max()) < len(weight):
            raise ValueError(f"targets go from {int(counted.min())} to {int(counted.max())}; there are {len(weight)}")


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        settings: Settings,
        losses_of: RowLosses,
    ) -> torch.Tensor:
        wide = torch.promote_types(weight.dtype, torch.float32)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        loss = _forward(hidden, weight, targets, settings, losses_of, grad_hidden, grad_weight)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        (grad_loss,) = grad_outputs
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_loss.to(grad_hidden.dtype)
        if grad_weight is not None:
            scaled = torch.empty_like(grad_weight, dtype=ctx.weight_dtype)
            grad_weight = torch.mul(grad_weight, grad_loss, out=scaled)
        return grad_hidden, grad_weight, None, None, None


def _forward(
    hidden: torch.Tensor,  # [num_tokens, hidden]
    weight: torch.Tensor,  # [vocab, hidden]
    targets: torch.Tensor,  # [num_tokens]
    settings: Settings,
    losses_of: RowLosses,
    grad_hidden: torch.Tensor | None,  # written: [num_tokens, hidden]
    grad_weight: torch.Tensor | None,  # added to: [vocab, hidden], in at least float32
) -> torch.Tensor:
    """The loss, in at least float32."""
    loss = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    with_gradient = grad_hidden is not None or grad_weight is not None
    with torch.no_grad():
        parts = _chunks(len(hidden), weight.shape[0] * weight.element_size(), hidden.device.type)
        # One for all chunks: to get so much memory from the system costs a tenth of a chunk's time.
        buffer = hidden.new_empty(max((part.stop - part.start for part in parts), default=0), len(weight))
        for part in parts:
            logits = torch.mm(hidden[part], weight.T, out=buffer[: part.stop - part.start])
            loss += losses_of(logits, targets[part], settings, with_gradient).sum()
            if grad_hidden is not None:
                torch.mm(logits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                _add_weight_gradient(grad_weight, logits, hidden[part])
    return loss


def _chunks(num_tokens: int, bytes_per_token: int, device: str) -> list[slice]:
    """As few chunks as the limit allows, of equal size but for the last."""
    limit = max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // max(1, bytes_per_token))
    num_chunks = max(1, -(-num_tokens // limit))
    size = max(1, -(-num_tokens // num_chunks))
    return [slice(first, min(first + size, num_tokens)) for first in range(0, num_tokens, size)]


def _add_weight_gradient(total: torch.Tensor, gradient: torch.Tensor, hidden: torch.Tensor) -> None:
    """total [vocab, hidden] += gradient.T @ hidden. Where `total` is the wider, a sum of chunks keeps its small terms;
    rows of it at a time, so that no second matrix of its size is there."""
    if total.dtype == hidden.dtype:
        total.addmm_(gradient.T, hidden)
        return
    for first in range(0, len(total), WEIGHT_ROWS):
        rows = slice(first, first + WEIGHT_ROWS)
        total[rows] += gradient[:, rows].T @ hidden
