"""The model that is trained, as transformers has it: its weights, its type, its attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...runtime.errors import ConfigError, ModelDamaged
from ...schemas.train import ComputeSettings, Packing, Task
from ..models.device import card_of, check_type, compute_device, half_type
from ..models.errors import UnsupportedModel
from ..models.folder import ModelFolder
from ..models.loading import dtype_of
from ..models.transformers_config import transformers_config
from ..models.transformers_model import quiet
from . import attention


def device_of(settings: ComputeSettings, rank: int = 0) -> torch.device:
    """A rank's device. Raises ConfigError for one that is not there."""
    device = compute_device("" if settings.device == "auto" else settings.device)
    if device.type == "cuda" and settings.device in ("auto", "cuda"):
        return torch.device("cuda", rank % torch.cuda.device_count())
    return device


def type_of(settings: ComputeSettings, device: torch.device) -> torch.dtype:
    """The type of products: on a CPU float32 unless it multiplies bfloat16 itself."""
    card = card_of(device)
    if settings.precision != "auto":
        check_type(settings.precision, card)
        return dtype_of(settings.precision)
    if card is None and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return dtype_of(half_type(card))


def load_base(path: Path, task: Task, dtype: torch.dtype, packing: Packing) -> Any:
    """The `PreTrainedModel` in a folder of Hugging Face's layout, on the CPU, in training mode.

    For rewards its output matrix is a score of one number for the last token, new where the folder has none. Raises
    NoSuchModel, ModelDamaged, UnsupportedModel; ConfigError where the model's attention cannot be packed.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    folder = ModelFolder(path)
    if folder.scheme is not None:
        raise UnsupportedModel(
            f"{path} has quantized weights, which cannot be trained",
            hint="train the model that it was made from; `method = qlora` keeps that in four bits",
        )
    config = transformers_config(folder)
    folder.weight_files()  # says clearly what is missing
    _no_attention_dropout(config)
    attention.register()
    auto: Any = AutoModelForCausalLM
    options: dict[str, Any] = {"config": config}
    if task is Task.REWARD:
        auto = AutoModelForSequenceClassification
        config.num_labels = 1
    try:
        with quiet():
            model, report = auto.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation=attention.NAME if packing is Packing.PACKED else "sdpa",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report
                **options,
            )
    except SafetensorError as error:
        raise ModelDamaged(f"{path} is damaged: {error}", hint="fetch the model again") from error
    except (ValueError, ImportError) as error:
        if packing is Packing.PACKED and "attn" in str(error):
            raise ConfigError(
                f"the attention of {path} cannot be kept within samples that are packed",
                hint='set `batch.packing` to "sorted"',
            ) from error
        raise UnsupportedModel(f"{path}: transformers cannot load this model: {error}") from error
    except (RuntimeError, KeyError, OSError) as error:
        raise UnsupportedModel(f"{path}: transformers cannot load this model: {error}") from error
    new = {"score.weight"} if task is Task.REWARD else set[str]()
    unused = {"lm_head.weight"} if task is Task.REWARD else set[str]()
    for what, allowed in (("missing_keys", new), ("unexpected_keys", unused), ("mismatched_keys", set[str]())):
        if found := sorted(set(map(str, report.get(what) or ())) - allowed):
            raise ModelDamaged(f"{path}: {len(found)} {what.replace('_', ' ')}, among them '{found[0]}'")
    if "score.weight" in set(report.get("missing_keys") or ()):
        nn.init.normal_(model.score.weight, std=model.config.hidden_size**-0.5)
    for name, weight in model.named_parameters():
        if not bool(weight.sum(dtype=torch.float32).isfinite()):
            raise ModelDamaged(f"{path}: tensor '{name}' holds values that are not finite")
    return model.train()


def _no_attention_dropout(config: Any) -> None:
    """Fused attention has none."""
    for name in ("attention_dropout", "attn_pdrop"):
        if getattr(config, name, 0):
            setattr(config, name, 0.0)
