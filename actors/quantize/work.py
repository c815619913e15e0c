"""The folder beside the result in which it is put together: what was done stays when the work is interrupted.

    .OUT.quantize/
        job.json                      what the work is; other work is not mixed into it
        result/                       becomes OUT by one rename, when all is there
            model-0000i-of-0000n.safetensors    one file a layer, then one for what belongs to none
        stream-i.safetensors          the calibration's hidden states before layer i
        errors.json                   what each product of the layers done so far has lost

Every file is written aside and renamed, so one that is there is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch

from ...runtime.errors import ModelDamaged, UsageError
from ...runtime.files import write_private
from .stream import Stream

_JOB, _RESULT, _ERRORS, _STREAM = "job.json", "result", "errors.json", "stream"


def work_folder(out: Path) -> Path:
    """Where the work for `out` is done, beside it: one rename must do in the end."""
    return out.parent / f".{out.name}.quantize"


class WorkFolder:
    """Raises UsageError where `out` exists, or where the folder holds other work than `job`."""

    def __init__(self, out: Path, job: Mapping[str, object], num_layers: int) -> None:
        if out.exists() or out.is_symlink():
            raise UsageError(f"{out} is there already", hint="give another place with -o, or remove it first")
        if not out.parent.is_dir():
            raise UsageError(f"there is no folder {out.parent}", hint="make it first")
        self.out = out
        self.num_layers = num_layers
        self.path = work_folder(out)
        self.result = self.path / _RESULT
        wanted = json.dumps(job, sort_keys=True, indent=2)
        if self.path.exists():
            have = self.path / _JOB
            if not have.is_file() or have.read_text() != wanted:
                raise UsageError(
                    f"{self.path} holds unfinished work of other settings", hint="finish that, or remove the folder"
                )
        else:
            write_private(self.path / _JOB, wanted)
        self.result.mkdir(exist_ok=True)

    def shard(self, index: int) -> Path:
        """The file of a layer; of `num_layers`, that of all other tensors."""
        return self.result / f"model-{index + 1:05}-of-{self.num_layers + 1:05}.safetensors"

    def is_done(self, index: int) -> bool:
        return self.shard(index).is_file()

    def write_shard(self, index: int, tensors: Mapping[str, torch.Tensor]) -> None:
        _write(self.shard(index), tensors)

    def has_stream(self, layer: int) -> bool:
        return self._stream(layer).is_file()

    def stream(self, layer: int) -> Stream:
        """The calibration's hidden states before `layer`. ModelDamaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._stream(layer)
        try:
            return Stream.of(load_file(path))
        except (SafetensorError, KeyError, OSError) as error:
            raise ModelDamaged(f"{path} is damaged: {error}", hint=f"remove {self.path} and begin again") from error

    def write_stream(self, layer: int, stream: Stream) -> None:
        _write(self._stream(layer), stream.tensors())

    def drop_stream(self, layer: int) -> None:
        self._stream(layer).unlink(missing_ok=True)

    def _stream(self, layer: int) -> Path:
        return self.path / f"{_STREAM}-{layer}.safetensors"

    def errors(self) -> dict[str, dict[str, float]]:
        path = self.path / _ERRORS
        return msgspec.json.decode(path.read_bytes()) if path.is_file() else {}

    def add_errors(self, layer: int, errors: Mapping[str, float]) -> None:
        write_private(self.path / _ERRORS, msgspec.json.encode({**self.errors(), str(layer): dict(errors)}))

    def finish(self) -> None:
        """The result takes its place, whole, and the rest goes. UsageError where somebody else has put something there
        meanwhile."""
        self.result.chmod(0o755)
        for file in self.result.iterdir():
            file.chmod(0o644)
        if self.out.exists():
            raise UsageError(f"{self.out} is there already", hint=f"the finished model is in {self.result}")
        os.rename(self.result, self.out)
        shutil.rmtree(self.path)


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    aside = path.with_name(f".{path.name}.part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, metadata={"format": "pt"})
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)
