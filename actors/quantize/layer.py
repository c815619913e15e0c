"""One layer quantized: inputs are looked at, scales found and folded, and each product rounded in the order in which
they compute, so that each makes up for what those before it have lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...kernels.quantize_gptq import Rounded, gptq, round_to_nearest
from ...kernels.quantize_grid import clip_grid
from ...kernels.quantize_scales import awq_scales, output_error, smooth_scales
from ..models.errors import UnsupportedModel
from ..models.llama import LlamaLayer
from .block import Block, in_chunks
from .recipe import Recipe, Rounding, Scaling


@dataclass
class Inputs:
    """What is kept of a product's inputs x: hessian [num_in, num_in], the mean of x x^T, and the largest magnitudes
    [num_in]."""

    hessian: torch.Tensor
    largest: torch.Tensor
    count: int = 0

    @classmethod
    def empty(cls, num_in: int) -> Inputs:
        return cls(torch.zeros(num_in, num_in), torch.zeros(num_in))

    def add(self, x: torch.Tensor) -> None:
        """x [..., num_in]. Raises UnsupportedModel where it is not finite."""
        x = x.flatten(0, -2)
        self.hessian *= self.count / (self.count + len(x))
        self.count += len(x)
        self.hessian.addmm_(x.T, x, alpha=1 / self.count)
        self.largest = torch.maximum(self.largest, x.abs().amax(0))
        if not bool(self.largest.isfinite().all()):
            raise UnsupportedModel("the model's activations overflow on the calibration text: its weights are damaged")


@dataclass(frozen=True)
class QuantizedLayer:
    """`products`: the four by name. `error`: of each, the share of the outputs' mean square that is lost."""

    products: dict[str, Rounded]
    error: dict[str, float]


def quantize_layer(block: Block, hidden: torch.Tensor, recipe: Recipe) -> QuantizedLayer:
    """Quantize `block.layer` in place: its products become what the codes stand for, its norms take the scales.

    hidden [num_seqs, length, hidden]: the calibration's stream before this layer, and after it when this returns.
    """
    layer = block.layer
    block.rounds_inputs = False
    if recipe.method.scaling is not Scaling.NONE:
        _scale(block, hidden, recipe)
    block.rounds_inputs = recipe.quantized_inputs
    rounding = _Rounding(layer, recipe)

    def attended(part: torch.Tensor) -> torch.Tensor:
        return block.attend(block.attention_inputs(part))

    def gated(part: torch.Tensor) -> torch.Tensor:
        return block.gate(block.mlp_inputs(part))

    rounding.product("qkv", hidden, block.attention_inputs)
    rounding.product("o", hidden, attended)
    for where, part in in_chunks(hidden):
        hidden[where] += block.product("o", attended(part))
    rounding.product("gate_up", hidden, block.mlp_inputs)
    rounding.product("down", hidden, gated)
    for where, part in in_chunks(hidden):
        hidden[where] += block.product("down", gated(part))
    return QuantizedLayer(rounding.products, rounding.error)


class _Rounding:
    def __init__(self, layer: LlamaLayer, recipe: Recipe) -> None:
        self.layer = layer
        self.recipe = recipe
        self.products: dict[str, Rounded] = {}
        self.error: dict[str, float] = {}

    def product(self, name: str, hidden: torch.Tensor, stage: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Round one product, of which `stage` gives the inputs."""
        weight = getattr(self.layer, name).data
        inputs = look_at(hidden, stage, weight.shape[1])
        rounded = self._round(weight, inputs.hessian)
        values = rounded.values()
        lost = output_error(values - weight, inputs.hessian)
        self.error[name] = float(lost / output_error(weight, inputs.hessian).clamp(min=torch.finfo(lost.dtype).tiny))
        self.products[name] = rounded
        getattr(self.layer, name).data.copy_(values)

    def _round(self, weight: torch.Tensor, hessian: torch.Tensor) -> Rounded:
        spec = self.recipe.spec
        match self.recipe.method.rounding(self.recipe.bits):
            case Rounding.GPTQ:
                return gptq(weight, hessian, spec)
            case Rounding.CLIPPED:
                grid = clip_grid(weight, hessian, spec)
                return Rounded(grid.codes(weight), grid)
            case Rounding.NEAREST:
                return round_to_nearest(weight, spec)


def look_at(hidden: torch.Tensor, stage: Callable[[torch.Tensor], torch.Tensor], num_in: int) -> Inputs:
    inputs = Inputs.empty(num_in)
    for _, part in in_chunks(hidden):
        inputs.add(stage(part))
    return inputs


def _scale(block: Block, hidden: torch.Tensor, recipe: Recipe) -> None:
    """Find the scales of all four products on the layer as it is, and fold them into what comes before each."""
    layer = block.layer
    of = {name: Inputs.empty(getattr(layer, name).shape[1]) for name in ("qkv", "o", "gate_up", "down")}
    for _, part in in_chunks(hidden):
        inputs = block.attention_inputs(part)
        of["qkv"].add(inputs)
        attended = block.attend(inputs)
        of["o"].add(attended)
        inputs = block.mlp_inputs(part + block.product("o", attended))
        of["gate_up"].add(inputs)
        of["down"].add(block.gate(inputs))
    channels = value_channels(layer)
    for name, inputs in of.items():
        weight = getattr(layer, name).data
        sources = channels if name == "o" else None
        if recipe.method.scaling is Scaling.AWQ:
            scales = awq_scales(weight, inputs.hessian, recipe.spec, sources)
        else:
            scales = smooth_scales(weight, inputs.largest, recipe.alpha, sources)
        weight *= scales if sources is None else scales[sources]
        _divide(layer, name, scales)


def value_channels(layer: LlamaLayer) -> torch.Tensor:
    """Of each input of `o`, the channel of the values that it is a mixture of: int64 [q_size]."""
    group = layer.q_size // layer.kv_size
    return torch.arange(layer.kv_size).view(-1, 1, layer.head_dim).expand(-1, group, -1).flatten()


def _divide(layer: LlamaLayer, name: str, scales: torch.Tensor) -> None:
    """Divide what a product's inputs are computed from."""
    match name:
        case "qkv":
            layer.input_norm.data /= scales
        case "gate_up":
            layer.post_norm.data /= scales
        case "o":
            _divide_rows(layer, "qkv", slice(layer.q_size + layer.kv_size, None), scales)
        case "down":
            _divide_rows(layer, "gate_up", slice(layer.intermediate_size, None), scales)


def _divide_rows(layer: LlamaLayer, name: str, rows: slice, scales: torch.Tensor) -> None:
    getattr(layer, name).data[rows] /= scales[:, None]
    bias = getattr(layer, f"{name}_bias")
    if bias is not None:
        bias.data[rows] /= scales
