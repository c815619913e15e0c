"""What training keeps in memory: by formula from the types that are kept, as measured, and foreseen before a run."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import nn
from torch.distributed.tensor import DTensor

from ...kernels.blockwise8 import BLOCK
from ...schemas.train import TrainConfig

# Bytes of a moment's value: a float32, or a code and its share of a scale.
MOMENT_BYTES = {32: 4.0, 8: 1 + 4 / BLOCK}


@dataclass(frozen=True)
class StateBytes:
    """One rank's bytes of a model in training, without activations.

    `parameters`: as they lie there between steps, frozen ones too. `gradients`: when a step's are complete. `masters`:
    where they are not the parameters themselves. `gathered`: whole parameters that stay from the forward to the
    backward pass beside the rank's rows (ZeRO-2).
    """

    parameters: float
    gradients: float
    moments: float
    masters: float
    average: float
    gathered: float = 0

    @property
    def total(self) -> float:
        return sum(getattr(self, each.name) for each in fields(self))


@dataclass(frozen=True)
class Sizes:
    """How many values are trained, in 16 bits (`num_short`) and in float32 (`num_wide`), and the bytes of the rest."""

    num_short: int
    num_wide: int
    frozen_bytes: int

    @classmethod
    def of(cls, module: nn.Module) -> Sizes:
        """Of a model that is not sharded yet."""
        trained = [param for param in module.parameters() if param.requires_grad]
        num_short = sum(param.numel() for param in trained if param.dtype.itemsize < 4)
        num_wide = sum(param.numel() for param in trained) - num_short
        return cls(num_short, num_wide, bytes_of(module) - 2 * num_short - 4 * num_wide)

    @property
    def num_trained(self) -> int:
        return self.num_short + self.num_wide

    @property
    def whole_bytes(self) -> int:
        return self.frozen_bytes + 2 * self.num_short + 4 * self.num_wide


def bytes_of(module: nn.Module) -> int:
    """Of parameters and buffers as this rank has them; what is shared counts once."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.to_local().nbytes if isinstance(tensor, DTensor) else tensor.nbytes for tensor in tensors)


def by_formula(sizes: Sizes, config: TrainConfig, world_size: int) -> StateBytes:
    """With Ψ values trained in 16 bits and N ranks: 2Ψ + 4Ψ + 12Ψ/N at stage 1 (gradients are float32 sums), 2Ψ + 16Ψ/N
    at stage 2, 16Ψ/N at stage 3; in float32 4Ψ + 4Ψ + 8Ψ/N, 4Ψ + 16Ψ/N and 16Ψ/N."""
    settings = config.optimizer
    share = 1 / world_size
    rounds = settings.stochastic_rounding
    moments = 2 * MOMENT_BYTES[settings.bits] * sizes.num_trained * share
    average = 4 * sizes.num_trained * share if settings.ema else 0
    if config.shards.zero == 1 or world_size == 1:
        return StateBytes(
            parameters=sizes.whole_bytes,
            gradients=4 * sizes.num_trained,
            moments=moments,
            masters=0 if rounds else 4 * sizes.num_short * share,
            average=average,
        )
    rows = sizes.frozen_bytes + (2 if rounds else 4) * sizes.num_short + 4 * sizes.num_wide
    return StateBytes(
        parameters=rows * share,
        gradients=4 * sizes.num_trained * share,
        moments=moments,
        masters=0,
        average=average,
        gathered=sizes.whole_bytes if config.shards.zero == 2 else 0,
    )


def zero_memory_error(measured: StateBytes, formula: StateBytes) -> float:
    """How far the formula is off, as a share of what was measured."""
    return abs(measured.total - formula.total) / measured.total
