"""A folder of quantized weights as transformers can take it: numbers first, and the matrices that they came from.

Transformers' own quantizers are not asked: they want a package for each layout, and cards. Its loading is, for it knows
what became of names over the years.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from .folder import ModelFolder
from .matrices import QUANTIZED, Quantized, linear
from .quantized_folder import folder_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class PlainState(NamedTuple):
    """`state`: every tensor of the model's files as numbers. `matrices`: the quantized ones by their module's name.
    `model_class`: what to load `state` into, with `config`."""

    model_class: Any
    config: PreTrainedConfig
    state: dict[str, torch.Tensor]
    matrices: dict[str, Quantized]


def plain_state(folder: ModelFolder, config: PreTrainedConfig, dtype: torch.dtype, *, keep: bool) -> PlainState:
    """`keep`: with the matrices, which are in memory beside the numbers. Raises ModelDamaged, UnsupportedModel."""
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    vars(config).pop("quantization_config", None)  # else transformers would want to load the layout itself
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config)
    # GPT-2's kind of linear layer has its matrix the other way round than every file of quantized ones.
    turned = {name for name, module in empty.named_modules() if isinstance(module, Conv1D)}
    state: dict[str, torch.Tensor] = {}
    matrices: dict[str, Quantized] = {}
    for name, weight in folder_weights(folder):
        if not isinstance(weight, QUANTIZED):
            state[name] = weight
            continue
        module = name.removesuffix(".weight")
        numbers = weight.dequantize(dtype)
        state[name] = numbers.T.contiguous() if module in turned else numbers
        if keep:
            matrices[module] = weight
    return PlainState(type(empty), config, state, matrices)


class QuantizedLinear(nn.Module):
    """A linear layer with its weight in a format of few bits."""

    def __init__(self, weight: Quantized, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = linear(x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y.add_(self.bias)
