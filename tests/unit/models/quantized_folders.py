"""Folders of quantized weights as the quantizers of the field write them, made of tiny random models.

What a written folder stands for is known: the model of transformers that is returned has the numbers of its codes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from random_models import make_model
from safetensors.torch import load_file, save_file
from torch import nn

from callboard.kernels import checkpoint_formats, native
from callboard.kernels.channels import ChannelInt8
from callboard.kernels.grouped import GroupedInt4

GROUP = 32
SIZES: dict[str, Any] = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96}
Tensors = dict[str, torch.Tensor]
Matrix = GroupedInt4 | ChannelInt8
# The name of a module and its weight -> the tensors that stand for it, without their prefix, and its numbers.
Quantizer = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]


def compressed(layout: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


PACKED = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP, "actorder": None}
EIGHT = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
    "gptq_act_order": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": True},
    "pack": compressed("pack-quantized", PACKED),
    "pack_zeros": compressed("pack-quantized", {**PACKED, "symmetric": False}),
    "pack_act_order": compressed("pack-quantized", {**PACKED, "actorder": "group"}),
    "int": compressed("int-quantized", EIGHT, TOKENS),
    "naive": compressed("naive-quantized", EIGHT),
}
FOUR_BITS = tuple(name for name in CONFIGS if name not in ("int", "naive"))


def write_folder(
    folder: Path,
    layout: str,
    *,
    kind: str = "Llama",
    options: Mapping[str, Any] | None = None,
    one_order: bool = True,
    skip: tuple[str, ...] = ("lm_head",),
) -> Any:
    """A folder in a layout of `CONFIGS`, and the model of transformers with the same numbers.

    `one_order`: products of one input have it in one order, as GPTQ finds them. `skip`: modules that stay numbers.
    """
    model = make_model(kind, {**SIZES, **(options or {})}, folder)
    tensors = load_file(folder / "model.safetensors")
    orders: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name.endswith(skip):
            continue
        matrix = _round(module.weight.detach(), layout)
        # Which products read the same input: those of one layer with one part of the name before the last.
        shared = name.rpartition(".")[0] + ("" if not name.endswith(("o_proj", "down_proj")) else name)
        key = shared if one_order else name
        if layout.endswith("act_order") and isinstance(matrix, GroupedInt4):
            if key not in orders:
                orders[key] = torch.randperm(matrix.shape[1])
            matrix = GroupedInt4(matrix.codes, matrix.scales, matrix.zeros, orders[key])
            module.order = orders[key]
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{part}": tensor for part, tensor in _parts(matrix, layout).items()}
        module.weight.data = matrix.dequantize()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": CONFIGS[layout]}))
    return model


def _round(weight: torch.Tensor, layout: str) -> Matrix:
    """Codes with random scales about as large as they should be: nothing here must hold just because it is neat."""
    num_out, num_in = weight.shape
    if layout not in FOUR_BITS:
        scales = weight.abs().amax(1) / 127 * (1 + torch.rand(num_out))
        return ChannelInt8((weight / scales[:, None]).round().to(torch.int8), scales)
    symmetric = layout in ("pack", "pack_act_order", "gptq_act_order")
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    if symmetric:
        scales = (torch.maximum(-low / 8, high / 7) * (1 + torch.rand_like(low) / 8)).half()
        zeros = torch.full_like(scales, 8)
    else:
        scales = ((high - low) / 15 * (1 + torch.rand_like(low) / 8)).half()
        zeros = (-low / scales.float()).round().clamp(1, 15).half()
    codes = (groups / scales.float()[..., None] + zeros.float()[..., None]).round().clamp(0, 15).flatten(1)
    pairs = codes.to(torch.uint8).unflatten(1, (-1, 2))
    assert num_in == codes.shape[1]
    return GroupedInt4(pairs[..., 0] | pairs[..., 1] << 4, scales, zeros)


def _parts(matrix: Matrix, layout: str) -> Tensors:
    if isinstance(matrix, ChannelInt8):
        return checkpoint_formats.to_compressed_int8(matrix)
    if layout == "awq":
        return checkpoint_formats.to_awq(matrix)
    if layout.startswith("gptq"):
        return gptq_parts(matrix, version=2 if layout == "gptq_v2" else 1)
    return checkpoint_formats.to_compressed_int4(matrix, symmetric=layout != "pack_zeros")


def unpacked(matrix: GroupedInt4) -> torch.Tensor:
    """Codes [num_out, num_in], as they are kept."""
    return torch.stack([matrix.codes & 0x0F, matrix.codes >> 4], -1).flatten(1)


def in_input_order(matrix: GroupedInt4) -> torch.Tensor:
    """Its codes, two a byte, in the order of the inputs."""
    codes = unpacked(matrix)
    if matrix.order is not None:
        codes = torch.empty_like(codes).index_copy_(1, matrix.order, codes)
    return codes[:, 0::2] | codes[:, 1::2] << 4


def group_of_input(matrix: GroupedInt4) -> torch.Tensor:
    """[num_in]: which scale each input has."""
    groups = torch.arange(matrix.shape[1]) // matrix.group_size
    return groups if matrix.order is None else torch.empty_like(groups).index_copy_(0, matrix.order, groups)


def gptq_parts(matrix: GroupedInt4, version: int) -> Tensors:
    """GPTQ's layout, a number at a time: eight codes of one output in a word, the first input lowest; zero points of
    eight outputs in a word, in the first version less one."""
    pairs = in_input_order(matrix)
    codes = torch.stack([pairs & 0x0F, pairs >> 4], -1).flatten(1).tolist()
    num_out, num_in = matrix.shape
    zeros = matrix.zeros.int().tolist()
    less = 1 if version == 1 else 0

    def word(values: list[int]) -> int:
        packed = sum(value << 4 * place for place, value in enumerate(values))
        return packed - (1 << 32) if packed >= 1 << 31 else packed

    qweight = [
        [word([codes[out][first + i] for i in range(8)]) for out in range(num_out)] for first in range(0, num_in, 8)
    ]
    qzeros = [
        [word([zeros[first + i][group] - less for i in range(8)]) for first in range(0, num_out, 8)]
        for group in range(matrix.scales.shape[1])
    ]
    return {
        "qweight": torch.tensor(qweight, dtype=torch.int32),
        "qzeros": torch.tensor(qzeros, dtype=torch.int32),
        "scales": matrix.scales.T.contiguous(),
        "g_idx": group_of_input(matrix).to(torch.int32),
    }


def round_inputs(model: Any, group: int = 0, largest: int = 127) -> Any:
    """Let a model of transformers round what enters its products, as those of quantized weights do, to codes up to
    `largest`: a scale for `group` inputs in the order that the product has them in, or for a whole row."""

    def rounded(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        order = getattr(module, "order", torch.arange(args[0].shape[-1]))
        groups = args[0][..., order].unflatten(-1, (-1, group or len(order)))
        steps = groups.abs().amax(-1, keepdim=True) / largest
        values = ((groups / steps).round() * steps).nan_to_num().flatten(-2)
        return (torch.empty_like(values).index_copy_(-1, order, values),)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            module.register_forward_pre_hook(rounded)
    return model


def round_inputs_of_int8(model: Any) -> Any:
    """As products with weights in int8 round them on this machine."""
    return round_inputs(model, 0, 32639) if native.int8_input_bits(1) == 16 else round_inputs(model, 32)


def as_native(model: Any, layout: str) -> Any:
    """The same with what the native kernels round in a model of few bits: inputs, and the vocabulary's matrices."""
    for module in (model.model.embed_tokens, model.lm_head):
        steps = module.weight.detach().abs().amax(1, keepdim=True) / 127
        module.weight.data = (module.weight.detach() / steps).round().nan_to_num() * steps
    if layout in FOUR_BITS:
        round_inputs(model, 32)
    else:
        round_inputs_of_int8(model)
    hook = next(iter(model.model.layers[0].mlp.gate_proj._forward_pre_hooks.values()))
    model.lm_head.register_forward_pre_hook(hook)
    return model
