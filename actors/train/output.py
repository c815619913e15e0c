"""What comes of a run: an adapter in PEFT's format, or a model's folder, there whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ...schemas.models import FineTuneResults
from ...schemas.train import TrainConfig
from ..models.folder import WEIGHTS
from ..models.results import TRAINING
from ..models.transformers_model import quiet
from .adapters import save_adapter
from .companions import copy_companions
from .group import Group
from .sharded import ShardedModel
from .whole import check_free, whole_folder

# Says which run a folder came of. A run that ended in the moment after it had written it may write it again.
ABOUT = TRAINING


class About(msgspec.Struct, frozen=True):
    """`job` is the job's own folder."""

    job: str
    steps: int
    config: TrainConfig
    results: FineTuneResults | None = None


def check_output(out: Path, job: Path) -> None:
    """ConfigError where something is in the way of what is to come; said before the work."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        if msgspec.json.decode((out / ABOUT).read_bytes(), type=About).job == str(job):
            return
    check_free(out, "out")


def write_output(
    about: About,
    group: Group,
    sharded: ShardedModel,
    model: Any,
    wrapped: Any | None,
    base: Path,
    card: Mapping[str, str],
) -> None:
    """Every rank calls it, and rank 0 writes. `model`: transformers' own, whose parameters are the sharded ones;
    `wrapped`: PEFT's wrapper, of an adapter. `card`: texts by the names of their files. Raises OSError."""
    out = Path(about.config.out)
    tensors = {name.removeprefix("model."): tensor for name, tensor in sharded.export()}
    if wrapped is None:
        tensors |= _untrained(model, tensors.keys())
    if group.rank != 0:
        return
    with whole_folder(out) as making:
        if wrapped is not None:
            save_adapter(wrapped, tensors, str(base), making)
        else:
            _save_model(model, tensors, base, making)
        for name, text in card.items():
            (making / name).write_text(text, "utf-8")
        (making / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(about)))
        shutil.rmtree(out, ignore_errors=True)  # this run's own or empty, see `check_output`


def _untrained(model: nn.Module, trained: Any) -> dict[str, torch.Tensor]:
    """The other parameters and the buffers that are saved, whole."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name not in trained:
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            found[name] = whole.detach().cpu()
    return found


def _save_model(model: Any, tensors: dict[str, torch.Tensor], base: Path, folder: Path) -> None:
    stored: torch.dtype = getattr(model.config, "dtype", None) or torch.float32
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = {
        name: tensor.to(stored).contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if name not in tied
    }
    with quiet():
        model.save_pretrained(folder, state_dict=state)
    copy_companions(base, folder)
    assert (folder / WEIGHTS).is_file() or any(folder.glob("*.safetensors"))
