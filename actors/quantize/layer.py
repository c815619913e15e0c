"""One layer quantized: inputs are looked at, scales found and folded, and each product rounded in the order in which
they compute, so that each makes up for what those before it have lost.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ...kernels.quantize_gptq import Rounded, fit_to_inputs, gptq, round_to_nearest
from ...kernels.quantize_grid import clip_grid
from ...kernels.quantize_scales import awq_scales, output_error, searched_smooth_scales, smooth_scales
from ...kernels.wide_products import second_moment
from ..models.errors import UnsupportedModel
from ..models.llama import LlamaLayer
from .block import Block, advance, in_chunks
from .learn import learn_rounding
from .recipe import Recipe, Rounding, Scaling
from .stream import Stream

# Of each chunk of the text, so many tokens' inputs are kept to try scales on.
KEPT_TOKENS = 64

# From a block and some of its stream to the inputs of one of its products.
Stage = Callable[[Block, torch.Tensor], torch.Tensor]


@dataclass
class Inputs:
    """What is kept of a product's inputs x: hessian [num_in, num_in], the mean of x x^T, and the largest magnitudes
    [num_in]; `shift` [num_in, num_in], the mean of (y - x) x^T over the inputs y that the model itself gives, where
    these were there too."""

    hessian: torch.Tensor
    largest: torch.Tensor
    shift: torch.Tensor | None = None
    kept: list[torch.Tensor] = field(default_factory=list)
    count: int = 0

    @classmethod
    def empty(cls, num_in: int) -> Inputs:
        return cls(torch.zeros(num_in, num_in), torch.zeros(num_in))

    def add(self, x: torch.Tensor, plain: torch.Tensor | None = None) -> None:
        """x [..., num_in], and y of the same shape. Raises UnsupportedModel where it is not finite."""
        x = x.flatten(0, -2)
        kept = self.count / (self.count + len(x))
        self.count += len(x)
        self.hessian.mul_(kept).add_(second_moment(x), alpha=1 / self.count)
        if plain is not None:
            shift = torch.zeros_like(self.hessian) if self.shift is None else self.shift
            self.shift = shift.mul_(kept).add_(second_moment(plain.flatten(0, -2) - x, x), alpha=1 / self.count)
        self.largest = torch.maximum(self.largest, x.abs().amax(0))
        self.kept.append(x[:: -(-len(x) // KEPT_TOKENS)].clone())
        if not bool(self.largest.isfinite().all()):
            raise UnsupportedModel("the model's activations overflow on the calibration text: its weights are damaged")


@dataclass(frozen=True)
class QuantizedLayer:
    """`products`: the four by name. `error`: of each, the share of the outputs' mean square that is lost."""

    products: dict[str, Rounded]
    error: dict[str, float]


def quantize_layer(block: Block, stream: Stream, recipe: Recipe) -> QuantizedLayer:
    """Quantize `block.layer` in place: its products become what the codes stand for, its norms take the scales.

    stream: the calibration's before this layer, and after it when this returns. A recipe that `wants_plain` needs both
    parts of it.
    """
    layer, hidden = block.layer, stream.quantized
    block.rounds_inputs = False
    if recipe.method.scaling is not Scaling.NONE:
        _scale(block, hidden, recipe)
    streams = [(block, hidden)]
    if recipe.wants_plain:
        assert stream.plain is not None, "this method needs the model's own stream"
        streams.append((_as_it_is(block), stream.plain))
    block.rounds_inputs = recipe.quantized_inputs
    rounding = _Rounding(layer, recipe, streams)
    rounding.product("qkv", Block.attention_inputs)
    rounding.product("o", _attended)
    _add(streams, "o", _attended)
    rounding.product("gate_up", Block.mlp_inputs)
    rounding.product("down", _gated)
    _add(streams, "down", _gated)
    return QuantizedLayer(rounding.products, rounding.error)


def _as_it_is(block: Block) -> Block:
    """The block with the weights that it has now."""
    kept = copy.copy(block)
    kept.layer = copy.deepcopy(block.layer)
    return kept


def _attended(block: Block, part: torch.Tensor) -> torch.Tensor:
    return block.attend(block.attention_inputs(part))


def _gated(block: Block, part: torch.Tensor) -> torch.Tensor:
    return block.gate(block.mlp_inputs(part))


def _add(streams: Sequence[tuple[Block, torch.Tensor]], name: str, stage: Stage) -> None:
    """What a product gives, to each stream."""
    for block, hidden in streams:
        for where, part in in_chunks(hidden):
            hidden[where] += block.product(name, stage(block, part))


class _Rounding:
    """`streams`: the block that is rounded and its stream, and where the recipe wants it, the model's own."""

    def __init__(self, layer: LlamaLayer, recipe: Recipe, streams: Sequence[tuple[Block, torch.Tensor]]) -> None:
        self.layer = layer
        self.recipe = recipe
        self.streams = streams
        self.products: dict[str, Rounded] = {}
        self.error: dict[str, float] = {}
        self.learned: dict[str, Rounded] = {}
        if recipe.method.rounding(recipe.bits) is Rounding.LEARNED:
            (block, hidden), (plain_block, plain) = streams
            wanted = plain.clone()
            advance(plain_block, wanted)
            self.learned = learn_rounding(block, hidden, wanted, recipe)

    def product(self, name: str, stage: Stage) -> None:
        """Round one product, of which `stage` gives the inputs."""
        weight = getattr(self.layer, name).data
        inputs = look_at(self.streams if self.recipe.fits_inputs else self.streams[:1], stage, weight.shape[1])
        wanted = weight if inputs.shift is None else fit_to_inputs(weight, inputs.hessian, inputs.shift)
        rounded = self._round(name, wanted, inputs.hessian)
        values = rounded.values()
        lost = output_error(values - wanted, inputs.hessian)
        self.error[name] = float(lost / output_error(wanted, inputs.hessian).clamp(min=torch.finfo(lost.dtype).tiny))
        self.products[name] = rounded
        weight.copy_(values)

    def _round(self, name: str, weight: torch.Tensor, hessian: torch.Tensor) -> Rounded:
        spec = self.recipe.spec
        match self.recipe.method.rounding(self.recipe.bits):
            case Rounding.GPTQ:
                return gptq(weight, hessian, spec)
            case Rounding.CLIPPED:
                grid = clip_grid(weight, hessian, spec)
                return Rounded(grid.codes(weight), grid)
            case Rounding.NEAREST:
                return round_to_nearest(weight, spec)
            case Rounding.LEARNED:
                return self.learned[name]


def look_at(streams: Sequence[tuple[Block, torch.Tensor]], stage: Stage, num_in: int) -> Inputs:
    """The inputs that `stage` gives of the first stream, and how those of the second, if there is one, differ."""
    inputs = Inputs.empty(num_in)
    for parts in zip(*(in_chunks(hidden) for _, hidden in streams), strict=True):
        inputs.add(*(stage(block, part) for (block, _), (_, part) in zip(streams, parts, strict=True)))
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
        elif recipe.alpha is None:
            scales = searched_smooth_scales(weight, torch.cat(inputs.kept), inputs.largest, sources)
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
