"""AdamW's state for a stretch of parameters that lies on this rank: what every ZeRO stage steps with.

A stretch is a flat tensor of one type: a parameter's rows, or those of several parameters end to end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...kernels import ops_training
from ...kernels.adamw import Hyper, new_moments
from ...kernels.blockwise8 import Blockwise8, Moment
from ...runtime.errors import ConfigError
from ...schemas.train import TrainConfig
from .rounding import round_stochastically


@dataclass(frozen=True)
class Recipe:
    """What of a configuration AdamW depends on, beside the learning rate.

    `offload`: the state lies in the host's memory, and is stepped there. `paged`: only the moments lie there, and come
    to the device for their step. Where the device is the CPU, neither changes anything.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    eight_bits: bool = False
    ema: float = 0.0
    stochastic_rounding: bool = False
    offload: bool = False
    paged: bool = False
    seed: int = 0

    @classmethod
    def of(cls, config: TrainConfig) -> Recipe:
        settings = config.optimizer
        if settings.bits not in (8, 32):
            raise ConfigError(f"optimizer.bits is {settings.bits}", hint="moments have 8 bits or 32")
        return cls(
            settings.beta1,
            settings.beta2,
            settings.eps,
            settings.weight_decay,
            settings.bits == 8,
            settings.ema,
            settings.stochastic_rounding,
            config.shards.offload,
            settings.paged,
            config.seed,
        )


def decays(param: torch.Tensor) -> bool:
    """Matrices are held small; norms and biases are not."""
    return param.ndim >= 2


class Stretch:
    """The optimizer's state of some flat values: moments, a float32 master where the values have 16 bits, an average.

    `values` is only read here, and may be given up: `step` is told each time where the parameters are now. Where there
    is a master, what they hold before a step does not matter. `number` tells this stretch's random numbers from those
    of others.
    """

    def __init__(self, values: torch.Tensor, recipe: Recipe, *, decays: bool, number: int) -> None:
        assert values.ndim == 1
        self.recipe = recipe
        self.number = number
        self._weight_decay = recipe.weight_decay if decays else 0.0
        is_short = values.dtype.itemsize < 4
        if recipe.stochastic_rounding and values.dtype == torch.float16:
            raise ConfigError(
                "float16 weights cannot be rounded stochastically: their range is too small",
                hint="train in bfloat16, or with a float32 master (stochastic_rounding = false)",
            )
        host = torch.device("cpu")
        home = host if recipe.offload else values.device
        wide = values.detach().to(home, torch.promote_types(values.dtype, torch.float32))
        self.master = wide if is_short and not recipe.stochastic_rounding else None
        self.average = wide.clone() if recipe.ema else None
        self.first, self.second = _to(
            new_moments(wide, eight_bits=recipe.eight_bits), host if recipe.paged else home, pin=recipe.paged
        )
        self._home = home

    @torch.no_grad()
    def step(self, values: torch.Tensor, grad: torch.Tensor, lr: float, step: int, scale: torch.Tensor) -> None:
        """One step, the first being 1, of `values` in place, with the gradient times `scale`."""
        home = self._home
        there = values if values.device == home else values.to(home)
        self._step_at_home(there, grad.to(home), lr, step, scale.to(home))
        if there is not values:
            values.copy_(there)

    def _step_at_home(
        self, values: torch.Tensor, grad: torch.Tensor, lr: float, step: int, scale: torch.Tensor
    ) -> None:
        recipe = self.recipe
        hyper = Hyper(lr, recipe.beta1, recipe.beta2, recipe.eps, self._weight_decay)
        first, second = _to((self.first, self.second), values.device)
        if values.dtype.itemsize < 4 and self.master is None:
            wide = values.float()
            ops_training.adamw_step(wide, grad, first, second, step, hyper, None, scale)
            round_stochastically(wide, values, (recipe.seed, step, self.number))
        else:
            ops_training.adamw_step(values, grad, first, second, step, hyper, self.master, scale)
            wide = values if self.master is None else self.master
        if self.average is not None:
            self.average.lerp_(wide.to(self.average.dtype), 1 - recipe.ema)
        _write_back((first, second), (self.first, self.second))


def _parts(moment: Moment) -> tuple[torch.Tensor, ...]:
    return (moment.codes, moment.scales) if isinstance(moment, Blockwise8) else (moment,)


def _to(moments: tuple[Moment, Moment], device: torch.device, *, pin: bool = False) -> tuple[Moment, Moment]:
    """The very moments where they are there already."""

    def place(tensor: torch.Tensor) -> torch.Tensor:
        moved = tensor.to(device, non_blocking=True)
        return moved.pin_memory() if pin and tensor.device.type == "cuda" else moved

    first, second = (_mapped(moment, place) for moment in moments)
    return first, second


def _mapped(moment: Moment, change: Callable[[torch.Tensor], torch.Tensor]) -> Moment:
    if isinstance(moment, Blockwise8):
        return Blockwise8(change(moment.codes), change(moment.scales), moment.signed)
    return change(moment)


def _write_back(changed: tuple[Moment, Moment], kept: tuple[Moment, Moment]) -> None:
    for new, old in zip(changed, kept, strict=True):
        for source, target in zip(_parts(new), _parts(old), strict=True):
            if source is not target:
                target.copy_(source)  # waits: whoever reads the host's memory next does not know of streams


def moment_bytes(stretch: Stretch) -> int:
    return sum(part.nbytes for moment in (stretch.first, stretch.second) for part in _parts(moment))
