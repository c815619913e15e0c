"""LoRA over a model of transformers: PEFT puts it there and writes it down, our kernels compute it.

PEFT's own layers stay, with their names and parameters, so that everything that reads PEFT's format reads what comes of
it. Only the forward pass of plain ones is ours: without dropout or DoRA it is `ops_training.lora_linear`.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...kernels import ops_training
from ...kernels.lora_train import LoraPart
from ...runtime.errors import ConfigError
from ...schemas.train import LoraSettings, Task
from .nf4_linear import Nf4Linear

ADAPTER = "default"
PREFIX = "base_model.model."


def add_adapter(model: Any, settings: LoraSettings, task: Task) -> Any:
    """Put LoRA into `model`, in place; returns PEFT's wrapper, which saves it. Everything else is frozen, but a score.

    Raises ConfigError where nothing of the model has the names that are to be adapted.
    """
    import peft

    targets: Any = "all-linear" if settings.targets == ("all-linear",) else list(settings.targets)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] # a fraction does as well
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        task_type=peft.TaskType.SEQ_CLS if task is Task.REWARD else peft.TaskType.CAUSAL_LM,
        modules_to_save=["score"] if task is Task.REWARD else None,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers in a way that is going to change
            wrapped = peft.get_peft_model(model, config, adapter_name=ADAPTER)
    except ValueError as error:
        names = sorted({name.rpartition(".")[2] for name, layer in model.named_modules() if _is_linear(layer)})
        raise ConfigError(
            f"LoRA cannot be put into this model: {error}", hint=f"its linear layers are named {', '.join(names)}"
        ) from error
    for layer in model.modules():
        if _is_plain(layer):
            layer.forward = types.MethodType(_forward, layer)
    return wrapped


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear)


def _is_plain(layer: nn.Module) -> bool:
    from peft.tuners.lora.layer import Linear

    if type(layer) is not Linear or layer.lora_variant or layer.fan_in_fan_out or layer.lora_bias.get(ADAPTER):
        return False
    return type(layer.base_layer) in (nn.Linear, Nf4Linear) and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if layer.disable_adapters:
        return layer.base_layer(x)
    return ops_training.lora_linears(x, (_part(layer),))[0]


def _part(layer: Any) -> LoraPart:
    base = layer.base_layer
    weight = base.matrix if isinstance(base, Nf4Linear) else base.weight
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    return LoraPart(weight, a, b, layer.scaling[ADAPTER], base.bias)


def outputs_of(layers: Sequence[Any], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What linear layers make of one input: together where all have an adapter that is computed here."""
    if all(_is_ours(layer) for layer in layers):
        return ops_training.lora_linears(x, tuple(_part(layer) for layer in layers))
    return tuple(layer(x) for layer in layers)


def _is_ours(layer: Any) -> bool:
    """Nobody's hook wants to see this layer called."""
    if getattr(layer.forward, "__func__", None) is not _forward or layer.disable_adapters:
        return False
    return not layer._forward_hooks and not layer._forward_pre_hooks and not layer._backward_hooks


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The model as it was before, for what DPO and KTO compare with. What is trained stays so."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True  # `enable_adapters(False)` would also freeze it
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def save_adapter(wrapped: Any, tensors: dict[str, torch.Tensor], base: str, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` into a folder. `tensors`: the trained parameters by
    their names in the model; `base`: what the configuration says the adapter is of."""
    import peft
    from safetensors.torch import save_file

    state = peft.get_peft_model_state_dict(
        wrapped,
        state_dict={PREFIX + name: tensor for name, tensor in tensors.items()},
        adapter_name=ADAPTER,
        save_embedding_layers=False,
    )
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "adapter_model.safetensors")
    config = wrapped.peft_config[ADAPTER]
    before, config.base_model_name_or_path, config.inference_mode = config.base_model_name_or_path, base, True
    config.save_pretrained(str(folder))
    config.base_model_name_or_path, config.inference_mode = before, False
