"""A frozen linear layer in four bits: NF4 with double quantization (QLoRA, arXiv:2305.14314), as in bitsandbytes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from ...kernels.nf4 import BLOCK, Nf4Weight
from ...runtime.errors import ConfigError


class Nf4Linear(nn.Linear):
    """Its weight is `matrix`, which is unpacked for each product and let go. `weight`, where PEFT looks for the device,
    is the codes."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.matrix = Nf4Weight.from_float(linear.weight.detach())
        bias = linear.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.matrix.codes

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _Nf4Product.apply(input, self.matrix, self.bias)  # pyright: ignore[reportReturnType]


class _Nf4Product(torch.autograd.Function):
    """Saves nothing: the gradient of a frozen product needs the weight alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, matrix: Nf4Weight, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.matrix = matrix
        return nn.functional.linear(x, matrix.dequantize(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grads[0] @ ctx.matrix.dequantize(grads[0].dtype), None, None


def quantize_linears(model: nn.Module, keep: Collection[nn.Module]) -> int:
    """Put every linear layer but those in `keep` into four bits, one at a time; returns how many. ConfigError where
    none has inputs in whole blocks."""
    done, odd = 0, ""
    kept = set(map(id, keep))
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or id(module) in kept:
            continue
        if module.in_features % BLOCK:
            odd = odd or name
            continue
        model.set_submodule(name, Nf4Linear(module))
        done += 1
    if not done:
        raise ConfigError(
            f"no linear layer has inputs in blocks of {BLOCK} ('{odd}' has not)", hint="use `method = lora`"
        )
    return done
