"""How fast a run is: tokens, the share of the device's matrix rate, memory, time to the end."""

from __future__ import annotations

import functools
import resource
import time
from typing import TypedDict

import torch
from torch import nn

from .batches import StepPlan

# A product whose rate the device is measured by: as large as those of a small model's step, quick enough for a start.
_SIDE = {"cpu": 1024, "cuda": 4096}
_REPEATS = 5
# What a new step adds to the mean that the time to the end is guessed from.
_NEW = 0.1


class Metered(TypedDict):
    tokens_per_s: float
    memory_bytes: int
    eta_s: float
    mfu: float


class Meter:
    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """`model`: transformers' own, whose linear layers are what is counted."""
        self._device = device
        head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        self._head = head.weight.numel() if isinstance(head, nn.Linear) else 0
        # A frozen product is computed forward, and backward for its input; a trained one also for its weight.
        self._per_token = sum(
            layer.in_features * layer.out_features * (6 if layer.weight.requires_grad else 4)
            for layer in model.modules()
            if isinstance(layer, nn.Linear) and layer is not head
        )
        self._per_head = 6 if isinstance(head, nn.Linear) and head.weight.requires_grad else 4
        self._peak = matrix_rate(device, next(model.parameters()).dtype)
        self._seconds = 0.0

    def step(self, plan: StepPlan, seconds: float, left: int, world_size: int) -> Metered:
        self._seconds = seconds if not self._seconds else (1 - _NEW) * self._seconds + _NEW * seconds
        operations = self._per_token * plan.num_tokens + self._per_head * self._head * plan.num_loss_tokens
        return {
            "tokens_per_s": plan.num_tokens / seconds,
            "memory_bytes": peak_memory(self._device),
            "eta_s": left * self._seconds,
            "mfu": operations / seconds / (self._peak * world_size),
        }


@functools.cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square product in `dtype`, the best of a few. Measured once a process."""
    side = _SIDE[device.type]
    a = torch.ones(side, side, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(_REPEATS + 1):
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, a)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def peak_memory(device: torch.device) -> int:
    """Bytes: of the card that this process held at most, on a CPU of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
