"""From a configuration to what is trained: the model with its method, and the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ...runtime.errors import ConfigError
from ...schemas.train import Method, Packing, Task, TrainConfig
from ..data.dataset import TrainingData, load_data
from ..data.lengths import Counts, TooLong
from ..data.options import DataOptions
from ..models.converted import transformers_folder
from ..models.folder import ModelFolder
from ..models.store import ModelStore
from ..models.transformers_config import transformers_config
from .adapters import add_adapter
from .base_model import load_base
from .batches import Item
from .fast_layers import use_fast_layers
from .needs import Plan, is_trained
from .nf4_linear import quantize_linears
from .stream import SampleStream, evaluation_items
from .trainable import TrainableModel


@dataclass(frozen=True)
class BuiltModel:
    """`wrapped`: PEFT's wrapper, for methods with an adapter. `folder`: where the weights came from."""

    module: TrainableModel
    wrapped: Any | None
    folder: Path

    @property
    def model(self) -> Any:
        return self.module.model


def plan_run(config: TrainConfig, dtype: torch.dtype, device: torch.device, world_size: int) -> Plan:
    """What the run will take of memory, from the model's configuration alone."""
    folder = ModelFolder(transformers_folder(ModelStore().path(config.model)))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(transformers_config(folder))
    return Plan(model, config, world_size, dtype, device.type)


def build_model(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> BuiltModel:
    """The model on its device, with what is trained marked so. The same numbers on every rank: what is new in it is
    drawn from the seed. Raises what `load_base` and `add_adapter` raise, and ConfigError."""
    folder = transformers_folder(ModelStore().path(config.model))
    torch.manual_seed(config.seed)
    model = load_base(folder, config.task, dtype, config.batch.packing)
    use_fast_layers(model)
    wrapped = None
    if config.method is Method.FULL:
        _freeze(model, config)
    else:
        model.requires_grad_(False)
        if config.method is Method.QLORA:
            head = model.get_output_embeddings()
            quantize_linears(model, [layer for layer in (head, getattr(model, "score", None)) if layer is not None])
        wrapped = add_adapter(model, config.lora, config.task)
    module = TrainableModel(model, is_packed=config.batch.packing is Packing.PACKED)
    _checkpoint_activations(model, config)
    return BuiltModel(module.to(device).train(), wrapped, folder)


def _freeze(model: Any, config: TrainConfig) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, config))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        some = [name for name, _ in model.named_parameters()]
        raise ConfigError(
            "`trainable` and `frozen` leave no parameter to train",
            hint=f"patterns are matched with names like {some[0]} and {some[-1]}",
        )


def _checkpoint_activations(model: Any, config: TrainConfig) -> None:
    if config.compute.checkpointing == "none":
        return
    from transformers.modeling_layers import GradientCheckpointingLayer

    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if config.compute.checkpointing == "selective":
        layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
        for layer in layers[1::2]:
            layer.gradient_checkpointing = False


@dataclass(frozen=True)
class BuiltData:
    """`remarks`: what became of records that could not be taken as they are, a line each."""

    stream: SampleStream
    evaluation: list[Item]
    num_steps: int
    remarks: tuple[str, ...]


def build_data(config: TrainConfig, folder: Path, context_length: int) -> BuiltData:
    """Raises what `load_data` raises, ConfigError where the data is not what the task wants."""
    batch = config.batch
    options = DataOptions(
        template=batch.template,
        max_tokens=min(batch.max_tokens or context_length, context_length),
        too_long=TooLong(batch.too_long),
        skip_bad=batch.skip_bad,
    )
    data = load_data(config.data, folder, options, seed=config.seed)
    _check_pairs(data, config, config.data)
    other = None
    if config.evaluation.data:
        other = load_data(config.evaluation.data, folder, options, seed=config.seed)
        _check_pairs(other, config, config.evaluation.data)
    stream = SampleStream(data, config.evaluation.share, config.seed)
    num_steps = config.steps or max(1, math.ceil(config.epochs * stream.num_samples / batch.samples))
    items = evaluation_items(config.evaluation, stream, other)
    return BuiltData(stream, items, num_steps, tuple(_remarks(data.counts(), options.max_tokens)))


def _remarks(counts: Counts, max_tokens: int) -> Iterator[str]:
    for number, what in (
        (counts.num_bad, "records could not be used and are left out"),
        (counts.num_truncated, f"samples were cut off at {max_tokens} tokens"),
        (counts.num_split, f"samples were split at {max_tokens} tokens"),
        (counts.num_dropped, "samples are left out: they are too long, or nothing to learn was left of them"),
    ):
        if number:
            yield f"{number:,} of {counts.num_records:,} {what}"


def _check_pairs(data: TrainingData, config: TrainConfig, name: str) -> None:
    wants_pairs = config.task is not Task.SFT
    if data.is_pairs == wants_pairs:
        return
    if wants_pairs:
        raise ConfigError(
            f"the task {config.task} learns from preferences, and {name} has none",
            hint='records are {"prompt", "chosen", "rejected"}; `callboard data check` says what a file holds',
        )
    raise ConfigError(f"{name} has preferences", hint="choose a task that learns from them: dpo, orpo, simpo, kto")
