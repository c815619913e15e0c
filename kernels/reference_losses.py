"""References of the losses: the whole of the logits at once, in any floating type, differentiated by autograd."""

from __future__ import annotations

import torch


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    ignore_index: int = -100,
    softcap: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    counted = targets != ignore_index
    logits = hidden[counted].to(wide) @ weight.to(wide).T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logprobs = logits.log_softmax(-1)
    own = -logprobs.gather(1, targets[counted, None])[:, 0]
    losses = (1 - label_smoothing) * own - label_smoothing * logprobs.mean(-1)
    return losses.sum(), counted.sum()


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    y = x @ weight.T + scale * ((x @ a.T) @ b.T)
    return y if bias is None else y + bias
