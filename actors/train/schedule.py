"""The learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable

from ...schemas.train import OptimizerSettings


def _cosine(done: float, decay: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _linear(done: float, decay: float) -> float:
    return 1 - done


def _constant(done: float, decay: float) -> float:
    return 1.0


def _wsd(done: float, decay: float) -> float:
    """Warm-up, stable, decay (Hu et al., MiniCPM, arXiv:2404.06395), linear at the end."""
    return min(1.0, (1 - done) / decay) if decay else 1.0


SHAPES: dict[str, Callable[[float, float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _wsd,
}


def warmup_steps(settings: OptimizerSettings, num_steps: int) -> int:
    return math.ceil(settings.warmup * num_steps) if settings.warmup < 1 else int(settings.warmup)


def learning_rate(settings: OptimizerSettings, step: int, num_steps: int) -> float:
    """Of step `step`, from 0: it rises by as much in each of the warm-up's steps and is whole in the one after, and at
    `num_steps` it would be `min_lr` of the whole."""
    warmup = warmup_steps(settings, num_steps)
    if step < warmup:
        return settings.lr * step / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    shape = SHAPES[settings.schedule](min(1.0, done), settings.decay)
    return settings.lr * (settings.min_lr + (1 - settings.min_lr) * shape)
