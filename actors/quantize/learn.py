"""A layer's four products rounded together: offsets and ends of grids are learned until the layer's output is what it
was (AutoRound; kernels/quantize_learned.py is its arithmetic).

The rounded layer gets what the quantized layers before it give, and is to give what the model's own layers give: so it
makes up for what was lost before, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from ...kernels.quantize_gptq import Rounded
from ...kernels.quantize_learned import LearnedRounding
from ..models.llama import PRODUCTS
from .block import Block
from .recipe import Recipe

# Tokens of a step, more or less: whole sequences.
BATCH_TOKENS = 1024


def learn_rounding(block: Block, inputs: torch.Tensor, wanted: torch.Tensor, recipe: Recipe) -> dict[str, Rounded]:
    """The products of `block.layer`, which stays as it is. inputs, wanted [num_seqs, length, hidden]: the stream before
    the layer and the one that is to be after it.

    The same seed takes the same sequences in the same order. Callable under `torch.inference_mode`.
    """
    with torch.inference_mode(False), torch.enable_grad():
        rounding = {name: LearnedRounding(getattr(block.layer, name).data.clone(), recipe.spec) for name in PRODUCTS}
        rounded = copy.copy(block)
        rounded.layer = copy.deepcopy(block.layer).requires_grad_(False)
        for name in PRODUCTS:
            delattr(rounded.layer, name)  # a parameter's place takes no other tensor
        in_bf16 = torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())
        for step, where in enumerate(_batches(len(inputs), inputs.shape[1], recipe)):
            for name, learned in rounding.items():
                setattr(rounded.layer, name, learned.values())
            with in_bf16:
                output = rounded.forward(inputs[where])
            (output.float() - wanted[where]).square().mean().backward()
            # As the paper has it: half a step of the grid is all that can be gone, then slower and slower.
            rate = (1 - step / recipe.steps) / recipe.steps
            for learned in rounding.values():
                learned.step(rate)
        return {name: learned.rounded() for name, learned in rounding.items()}


def _batches(num_seqs: int, length: int, recipe: Recipe) -> Iterator[torch.Tensor]:
    """int64 [batch]: which sequences each step looks at; every one before any comes again."""
    size = min(max(1, BATCH_TOKENS // length), num_seqs)
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(recipe.steps):
        if len(order) < size:
            order = torch.randperm(num_seqs, generator=generator)
        yield order[:size]
        order = order[size:]
