"""What a run tells of itself at its end: kept in its checkpoints, so that a run that went on tells all of it."""

from __future__ import annotations

import msgspec

from ...schemas.train import TrainProgress

# Points of the loss at most; beyond, neighbours become their mean.
_MAX_POINTS = 2000


class RunHistory(msgspec.Struct):
    """`losses`, `evaluations`: (step, loss), in order. `num_tokens`, `num_loss_tokens`: that went through the model."""

    losses: list[tuple[float, float]] = []
    evaluations: list[tuple[int, float]] = []
    num_tokens: int = 0
    num_loss_tokens: int = 0

    def progressed(self, progress: TrainProgress) -> None:
        self.num_tokens += progress.tokens
        self.num_loss_tokens += progress.loss_tokens
        if progress.loss is not None:
            self.losses.append((progress.step, progress.loss))
        if len(self.losses) >= _MAX_POINTS:
            self.losses = thinned(self.losses, _MAX_POINTS // 2)

    def evaluated(self, step: int, loss: float) -> None:
        self.evaluations.append((step, loss))


def thinned(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points, each the mean of a stretch of as many as the others'."""
    size = max(1, -(-len(points) // most))
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in stretches]
