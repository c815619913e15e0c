"""What comes of a run: an adapter in PEFT's format, or a model's folder, there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ...runtime.errors import ConfigError
from ...schemas.train import TrainConfig
from ..models.folder import WEIGHTS
from ..models.transformers_model import quiet
from .adapters import save_adapter
from .group import Group
from .sharded import ShardedModel

# What a model's folder has beside its weights and belongs to the new one, too.
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json", ".md", ".gitattributes")


# Says which run a folder came of. A run that ended in the moment after it had written it may write it again.
ABOUT = "training.json"


class About(msgspec.Struct, frozen=True):
    """`job` is the job's own folder."""

    job: str
    steps: int
    config: TrainConfig


def check_output(out: Path, job: Path) -> None:
    """ConfigError where something is in the way of what is to come; said before the work."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    with contextlib.suppress(OSError, msgspec.DecodeError):
        if msgspec.json.decode((out / ABOUT).read_bytes(), type=About).job == str(job):
            return
    raise ConfigError(f"{out} is there already", hint="name another folder in `out`, or remove it")


def write_output(
    about: About, group: Group, sharded: ShardedModel, model: Any, wrapped: Any | None, base: Path, card: str
) -> None:
    """Every rank calls it, and rank 0 writes. `model`: transformers' own, whose parameters are the sharded ones;
    `wrapped`: PEFT's wrapper, of an adapter. Raises OSError."""
    out = Path(about.config.out)
    tensors = {name.removeprefix("model."): tensor for name, tensor in sharded.export()}
    if wrapped is None:
        tensors |= _untrained(model, tensors.keys())
    if group.rank != 0:
        return
    making = out.with_name(f".{out.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        if wrapped is not None:
            save_adapter(wrapped, tensors, str(base), making)
        else:
            _save_model(model, tensors, base, making)
        (making / "README.md").write_text(card, "utf-8")
        (making / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(about)))
        _sync(making)
        shutil.rmtree(out, ignore_errors=True)  # this run's own or empty, see `check_output`
        os.rename(making, out)
        _sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


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
    for path in base.iterdir():
        if path.is_file() and not path.name.endswith(_NOT_COPIED) and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    assert (folder / WEIGHTS).is_file() or any(folder.glob("*.safetensors"))


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
