"""What is written: the tensors of a quantized layer in an established layout, and what `config.json` says of them.

Layouts: compressed-tensors (pack-quantized for 4-bit weights, int-quantized for 8-bit weights and inputs), or AWQ's
GEMM layout. Embeddings, the output matrix and norms stay floating.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...kernels import checkpoint_formats
from ...kernels.channels import ChannelInt8
from ...kernels.grouped import GroupedInt4, pack_nibbles
from ...kernels.quantize_gptq import Rounded
from ...runtime.files import write_private
from ..models.errors import UnsupportedModel
from ..models.folder import CONFIG, INDEX
from ..models.llama import LlamaLayer
from .recipe import Layout, Recipe
from .work import WorkFolder

LAYER_ROOT = "model.layers"


def layer_tensors(
    index: int, layer: LlamaLayer, products: Mapping[str, Rounded], recipe: Recipe, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Every tensor of a layer as it is written, by its full name, contiguous."""
    tensors: dict[str, torch.Tensor] = {}
    for name, part in layer.parts().items():
        full = f"{LAYER_ROOT}.{index}.{name}"
        rounded = products.get(part.parameter)
        rows = part.rows or slice(None)
        if rounded is None:
            tensors[full] = plain(full, getattr(layer, part.parameter).data[rows], dtype)
        else:
            matrix = full.removesuffix(".weight")
            for kind, tensor in _laid_out(rounded, rows, recipe).items():
                tensors[f"{matrix}.{kind}"] = tensor.contiguous()
    return tensors


def plain(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor that stays floating, in the type of the checkpoint. A copy: nothing else keeps its memory."""
    written = tensor.to(dtype, copy=True)
    if not bool(written.isfinite().all()):
        raise UnsupportedModel(f"tensor '{name}' holds values beyond what {dtype} reaches")
    return written


def _laid_out(rounded: Rounded, rows: slice, recipe: Recipe) -> dict[str, torch.Tensor]:
    spec = rounded.grid.spec
    codes = rounded.codes[rows]
    scales, zeros = rounded.grid.scales[rows], rounded.grid.zeros[rows]
    if recipe.bits == 8:
        return checkpoint_formats.to_compressed_int8(ChannelInt8((codes - zeros).to(torch.int8), scales[:, 0].float()))
    if rounded.order is not None:
        codes = codes[:, rounded.order]
    weight = GroupedInt4(
        pack_nibbles(codes.to(torch.uint8)), scales.to(spec.scale_dtype), zeros.to(spec.scale_dtype), rounded.order
    )
    if recipe.layout is Layout.AWQ:
        return checkpoint_formats.to_awq(weight)
    return checkpoint_formats.to_compressed_int4(weight, symmetric=recipe.symmetric)


def quantization_config(recipe: Recipe) -> dict[str, Any]:
    if recipe.layout is Layout.AWQ:
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": recipe.group_size,
            "zero_point": True,
            "modules_to_not_convert": None,
        }
    weights: dict[str, Any] = {"num_bits": recipe.bits, "type": "int", "dynamic": False, "observer": "minmax"}
    inputs: dict[str, Any] | None = None
    if recipe.bits == 4:
        weights |= {"strategy": "group", "group_size": recipe.group_size, "symmetric": recipe.symmetric}
    else:
        weights |= {"strategy": "channel", "group_size": None, "symmetric": True}
        inputs = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
    layout = "pack-quantized" if recipe.bits == 4 else "int-quantized"
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": _kv_scheme(recipe.kv),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": inputs,
                "output_activations": None,
                "format": layout,
            }
        },
    }


def _kv_scheme(kv: str) -> dict[str, Any] | None:
    """Keys and values get a scale for each token and head as they come, so none is written."""
    if not kv:
        return None
    return {"num_bits": int(kv.removeprefix("int")), "type": "int", "strategy": "token", "dynamic": True}


def write_config(work: WorkFolder, config: Mapping[str, Any], recipe: Recipe, dtype: torch.dtype) -> None:
    """`config.json` and the index of the shards, whose tensors are read from their heads."""
    from safetensors import safe_open

    name = str(dtype).removeprefix("torch.")
    content = {**config, "dtype": name, "quantization_config": quantization_config(recipe)}
    content.pop("torch_dtype", None)
    write_private(work.result / CONFIG, json.dumps(content, indent=2) + "\n")
    places: dict[str, str] = {}
    total = 0
    for index in range(work.num_layers + 1):
        shard = work.shard(index)
        with safe_open(shard, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), shard.name)
        total += shard.stat().st_size
    index_of = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_private(work.result / INDEX, json.dumps(index_of, indent=2) + "\n")


def size_of(folder: Path) -> int:
    """Bytes of the tensors' files in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
