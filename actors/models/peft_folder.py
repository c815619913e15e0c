"""Reads a LoRA adapter in PEFT's format: a folder with `adapter_config.json` and `adapter_model.safetensors`.

What would change more than low-rank products (DoRA, trained biases or embeddings, ...) is refused, never left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...runtime.errors import ModelDamaged, NoSuchModel
from .errors import UnsupportedModel
from .folder import read_json, read_safetensors
from .lora import LowRank

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_TENSOR = re.compile(r"(.+)\.lora_(A|B)\.weight")
# Settings that, where they are set, make an adapter more than a pair of matrices for each product.
_REFUSED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
)
# Ways to start training that also change the base model's weights.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


def read_peft(path: Path) -> dict[str, LowRank]:
    """Module of the base model -> its matrices, the scale already in `b`. Float32.

    Raises NoSuchModel, ModelDamaged, UnsupportedModel.
    """
    if not (path / CONFIG).is_file():
        raise NoSuchModel(f"{path} is no adapter: it has no {CONFIG}", hint="give a folder that PEFT has saved")
    config = read_json(path / CONFIG)
    _check(path, config)
    if not (path / WEIGHTS).is_file():
        raise ModelDamaged(f"{path} has no {WEIGHTS}")
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in read_safetensors(path / WEIGHTS):
        match = _TENSOR.fullmatch(name.removeprefix(PREFIX))
        if match is None:
            raise UnsupportedModel(f"{path} holds the tensor '{name}', which belongs to no low-rank product")
        if tensor.ndim != 2 or not bool(tensor.isfinite().all()):
            raise ModelDamaged(f"{path}: tensor '{name}' is no matrix of finite numbers")
        halves.setdefault(match[1], {})[match[2]] = tensor.float()
    if not halves:
        raise ModelDamaged(f"{path / WEIGHTS} holds no tensors")
    return {module: _pair(path, config, module, found) for module, found in halves.items()}


def _check(path: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise UnsupportedModel(f"{path} is an adapter of the kind {config.get('peft_type')!r}; LORA is read here")
    for key in _REFUSED:
        if config.get(key):
            raise UnsupportedModel(f"{path} uses '{key}', which is not implemented here")
    if config.get("bias", "none") != "none":
        raise UnsupportedModel(f"{path} has trained biases (bias: {config['bias']!r}), which are not read here")
    check_base_is_unchanged(path, config)


def check_base_is_unchanged(path: Path, config: Mapping[str, Any]) -> None:
    """Raises UnsupportedModel for an adapter whose training began by changing the base."""
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.startswith(_CHANGES_BASE):
        raise UnsupportedModel(
            f"{path} was trained over a changed base model (init_lora_weights: {start!r})",
            hint="save it again with PEFT's `path_initial_model_for_weight_conversion`",
        )


def _pair(path: Path, config: Mapping[str, Any], module: str, found: Mapping[str, torch.Tensor]) -> LowRank:
    if found.keys() != {"A", "B"}:
        raise ModelDamaged(f"{path}: of the two matrices for '{module}' there is only lora_{''.join(found)}")
    a, b = found["A"], found["B"]
    rank = a.shape[0]
    expected = _pattern(path, config, "rank_pattern", module, "r")
    if b.shape[1] != rank or rank != expected:
        raise ModelDamaged(
            f"{path}: '{module}' should have rank {expected:g}, but the matrices have {rank}, {b.shape[1]}"
        )
    alpha = _pattern(path, config, "alpha_pattern", module, "lora_alpha")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LowRank(a, b * scale)


def _pattern(path: Path, config: Mapping[str, Any], patterns: str, module: str, default: str) -> float:
    """A module's own number, where one of the patterns names it or the end of its name; else the adapter's."""
    for pattern, value in (config.get(patterns) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return _number(path, patterns, value)
        except re.error as error:
            raise ModelDamaged(f"{path / CONFIG}: {patterns} has the bad pattern {pattern!r}: {error}") from error
    return _number(path, default, config.get(default))


def _number(path: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelDamaged(f"{path / CONFIG}: '{key}' is {value!r}, which is no number")
    return float(value)
